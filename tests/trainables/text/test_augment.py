"""Policies: by a text's own seed alone, whole words, negations kept where they matter."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from trainables.modality import Backbone
from trainables.text import synonyms
from trainables.text.augment import Policy, build, plain
from trainables.text.hparams import OPERATIONS, TextHParams
from trainables.text.modality import TEXT
from trainables.text.synonyms import WordNet
from trainables.text.tokens import tokenizer_of

TEXTS = ["the cat was not good today", "my dog isn't bad, zebras run", "a fish", "sun"]


@pytest.fixture(autouse=True)
def _words(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A WordNet of two meanings, in its files' own format."""
    folder = tmp_path_factory.mktemp("wordnet")
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"index.{part}").write_text("  1 a licence\n")
        (folder / f"data.{part}").write_text("  1 a licence\n")
    licence = "  1 a licence\n"
    first = "00000014 05 n 03 cat 0 true_cat 0 fish 1 000 | an animal\n"
    second = f"{len(licence + first):08d} 05 n 02 dog 0 domestic_dog 0 000 | another\n"
    (folder / "data.noun").write_text(licence + first + second)
    (folder / "index.noun").write_text(
        f"{licence}cat n 2 1 @ 2 1 {len(licence):08d} {len(licence + first):08d}\n"
        f"dog n 1 0 1 0 {len(licence + first):08d}\n"
    )
    monkeypatch.setenv("WNSEARCHDIR", str(folder))


def read(backbone: Backbone) -> Tensor:
    return torch.stack([TEXT.read(text, backbone.preprocessing) for text in TEXTS])


def words(policy: Policy, rows: Tensor, seed: int) -> list[str]:
    """What a policy makes of texts, as text."""
    own = tokenizer_of(policy.preprocessing)
    drawn = policy(rows, torch.full((len(rows),), seed, dtype=torch.int64))
    assert drawn.dtype == torch.int64
    return [own.text_of(ids[mask > 0].tolist()) for ids, mask in drawn]


def made(backbone: Backbone, name: str, edited: float = 0.4, *, matter: bool = False) -> Policy:
    return build(TextHParams(policy=name, edited=edited), backbone.preprocessing, negations_matter=matter)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_text_and_a_seed_give_the_same_in_any_batch(backbone: Backbone, name: str) -> None:
    policy, rows = made(backbone, name), read(backbone)
    seeds = torch.tensor([7, -3, 2**62, 0])
    together = policy(rows, seeds)
    assert together.shape == (4, 2, 24)
    assert torch.equal(policy(rows[[1, 3]], seeds[[1, 3]]), together[[1, 3]])
    assert any(not torch.equal(policy(rows, seeds + n), together) for n in range(1, 6))


def test_the_identity_leaves_words_out_of_the_inputs_alone(backbone: Backbone) -> None:
    policy, rows = plain(backbone.preprocessing), read(backbone)
    assert policy.is_identity
    assert torch.equal(policy(rows, torch.zeros(4, dtype=torch.int64)), rows[:, :2])


def test_deletion_leaves_words_out_and_one_at_least(backbone: Backbone) -> None:
    rows = read(backbone)
    for seed in range(20):
        first, _, third, last = words(made(backbone, "deletion", 0.5), rows, seed)
        assert len(first.split()) == 2 + 3
        assert third in ("[CLS] a [SEP]", "[CLS] fish [SEP]")
        assert last == "[CLS] sun [SEP]"


def test_negations_stay_where_they_matter(backbone: Backbone) -> None:
    rows = read(backbone)
    lost = 0
    for name in OPERATIONS:
        for seed in range(10):
            first, second, *_ = words(made(backbone, name, 0.9, matter=True), rows, seed)
            assert "not" in first.split()
            assert "' t" in second
            lost += "not" not in words(made(backbone, name, 0.9), rows, seed)[0].split()
    assert lost > 5


def test_synonyms_are_those_of_the_commonest_meaning(backbone: Backbone) -> None:
    known = synonyms.lexicon()
    assert isinstance(known, WordNet)
    assert known.of("cat") == ("true cat", "fish")
    assert known.of("dog") == ("domestic dog",)
    assert known.of("today") == ()
    found = {words(made(backbone, "synonyms", 0.1), read(backbone), seed)[0] for seed in range(9)}
    assert "[CLS] the fish was not good today [SEP]" in found
    assert len(found) == 2
    for seed in range(5):
        put = words(made(backbone, "insertion", 0.1), read(backbone), seed)[0]
        assert len(put) >= len("[CLS] the cat was not good today [SEP]")


def test_swaps_keep_the_words_and_masks_hide_them(backbone: Backbone) -> None:
    before = "[CLS] the cat was not good today [SEP]"
    swapped = words(made(backbone, "swap"), read(backbone), 1)[0]
    assert swapped != before
    assert sorted(swapped.split()) == sorted(before.split())
    masked = words(made(backbone, "masking", 0.5), read(backbone), 1)
    assert masked[0].split().count("[MASK]") == 3


def test_a_sampled_policy_draws_a_sub_policy_for_each_text(backbone: Backbone) -> None:
    rows = ((("deletion", 1.0, 10),), (("masking", 1.0, 10), ("swap", 0.5, 2)))
    policy = build(TextHParams(policy="sampled", sub_policies=rows), backbone.preprocessing)
    found = [words(policy, read(backbone), seed)[0] for seed in range(12)]
    assert {"[MASK]" in text for text in found} == {True, False}
    assert policy.describe()[0].startswith("one of 2 sub-policies")
    with pytest.raises(ValueError, match="at least one"):
        build(TextHParams(policy="sampled"), backbone.preprocessing)


def test_keys_tell_what_changes_a_text(backbone: Backbone) -> None:
    keys = {
        made(backbone, name, edited, matter=matter).key
        for name in OPERATIONS
        for edited in (0.1, 0.2)
        for matter in (False, True)
    }
    assert len(keys) == 4 * len(OPERATIONS)


def test_without_synonyms_the_policy_says_what_to_install(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    monkeypatch.setattr(synonyms, "_PLACES", ())
    monkeypatch.setattr("trainables.text.vectors.GLOVE_PACKAGE", "no_such_package_of_vectors")
    with pytest.raises(ValueError, match=r"install WordNet .* or word vectors"):
        made(backbone, "synonyms")
    made(backbone, "deletion")


def test_a_preview_is_a_picture(backbone: Backbone) -> None:
    png = TEXT.preview(made(backbone, "swap"), read(backbone)[:2])
    assert png is not None
    assert Image.open(io.BytesIO(png)).size[1] > 200
