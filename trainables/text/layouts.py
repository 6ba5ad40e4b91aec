"""Folders in Hugging Face's layout: `config.json`, `tokenizer.json`, `model.safetensors`, read as untrusted.

No code of a folder runs and no pickle is opened: the configuration is numbers, and the weights are tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainables.errors import BackboneError
from trainables.text.preprocessing import Architecture

__all__ = ["CONFIG", "TOKENIZER", "WEIGHTS", "folder_architecture", "folder_state"]

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_BERT = {
    r"embeddings\.word_embeddings\.": "embeddings.words.",
    r"embeddings\.position_embeddings\.": "embeddings.positions.",
    r"embeddings\.token_type_embeddings\.": "embeddings.types.",
    r"embeddings\.LayerNorm\.": "embeddings.norm.",
    r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.": r"layers.\1.\2.",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"layers.\1.out.",
    r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.": r"layers.\1.attention_norm.",
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.": r"layers.\1.up.",
    r"encoder\.layer\.(\d+)\.output\.dense\.": r"layers.\1.down.",
    r"encoder\.layer\.(\d+)\.output\.LayerNorm\.": r"layers.\1.norm.",
}
_DISTILBERT = {
    r"embeddings\.word_embeddings\.": "embeddings.words.",
    r"embeddings\.position_embeddings\.": "embeddings.positions.",
    r"embeddings\.LayerNorm\.": "embeddings.norm.",
    r"transformer\.layer\.(\d+)\.attention\.q_lin\.": r"layers.\1.query.",
    r"transformer\.layer\.(\d+)\.attention\.k_lin\.": r"layers.\1.key.",
    r"transformer\.layer\.(\d+)\.attention\.v_lin\.": r"layers.\1.value.",
    r"transformer\.layer\.(\d+)\.attention\.out_lin\.": r"layers.\1.out.",
    r"transformer\.layer\.(\d+)\.sa_layer_norm\.": r"layers.\1.attention_norm.",
    r"transformer\.layer\.(\d+)\.ffn\.lin1\.": r"layers.\1.up.",
    r"transformer\.layer\.(\d+)\.ffn\.lin2\.": r"layers.\1.down.",
    r"transformer\.layer\.(\d+)\.output_layer_norm\.": r"layers.\1.norm.",
}
_PREFIX = re.compile(r"^(?:bert|roberta|distilbert)\.")
"""Of the names in a model that has a head of its own."""
_KINDS = ("bert", "roberta", "xlm-roberta", "distilbert")
_CONFIG_BYTES = 2**20


def folder_architecture(folder: Path) -> Architecture:
    """The plan of the network in a folder.

    Raises:
        BackboneError: where it is none that can be read here.
    """
    config = _config(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in _KINDS:
        raise BackboneError(
            f"{folder / CONFIG} has model_type {kind!r}, but must have one of {', '.join(_KINDS)}"
        )
    names = _DISTILBERT_KEYS if kind == "distilbert" else _BERT_KEYS
    missing = [name for name in (names["width"], names["layers"], "vocab_size") if name not in config]
    if missing:
        raise BackboneError(f"{folder / CONFIG} lacks {', '.join(missing)}")
    places = config.get("position_embedding_type", "absolute")
    if places != "absolute":
        raise BackboneError(
            f"{folder / CONFIG} has position_embedding_type {places!r}, but must have 'absolute'"
        )
    given = config.get(names["activation"], "gelu")
    if given not in _ACTIVATIONS:
        raise BackboneError(
            f"{folder / CONFIG} has the activation {given!r}, but must have one of {', '.join(_ACTIVATIONS)}"
        )
    offset = int(config.get("pad_token_id") or 0) + 1 if "roberta" in kind else 0
    try:
        return Architecture(
            kind="transformer",
            vocabulary=config["vocab_size"],
            width=config[names["width"]],
            layers=config[names["layers"]],
            heads=config.get(names["heads"], 12),
            inner=config.get(names["inner"], 3072),
            positions=config.get("max_position_embeddings", 512),
            offset=offset,
            types=0 if kind == "distilbert" else config.get("type_vocab_size", 2),
            activation=_ACTIVATIONS[given],
            epsilon=config.get("layer_norm_eps", 1e-12),
            dropout=config.get(names["dropout"], 0.1),
            attention_dropout=config.get(names["attention_dropout"], 0.1),
        )
    except BackboneError as error:
        raise BackboneError(f"{folder / CONFIG} describes no network: {error}") from error


_BERT_KEYS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "inner": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_DISTILBERT_KEYS = {
    "width": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "inner": "hidden_dim",
    "activation": "activation",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
}


def folder_state(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network in a folder, under our names.

    Args:
        folder: what holds it.
        wanted: the state that they must fit.

    Raises:
        BackboneError: where they do not fit.
    """
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        others = sorted(each.name for each in folder.glob("*.bin"))
        hint = f" ({', '.join(others)} is not opened: a pickle may run code)" if others else ""
        raise BackboneError(f"{path} cannot be read as tensors: {error}{hint}") from error
    state = {name: tensor for full, tensor in tensors.items() if (name := _ours(full))}
    missing = sorted(set(wanted) - set(state))
    misshapen = [
        f"{name} is {list(state[name].shape)} for {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or misshapen:
        told = [*([f"missing {_few(missing)}"] if missing else []), *([_few(misshapen)] if misshapen else [])]
        raise BackboneError(f"{path} does not fit {CONFIG}: {'; '.join(told)}")
    return {name: state[name].to(tensor.dtype) for name, tensor in wanted.items()}


def _ours(name: str) -> str | None:
    """Our name of a tensor; None for what no trunk has, such as a pooler."""
    plain = _PREFIX.sub("", name)
    for table in (_BERT, _DISTILBERT):
        for pattern, replacement in table.items():
            found, count = re.subn(f"^{pattern}", replacement, plain)
            if count:
                return found
    return None


def _config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_CONFIG_BYTES)
        values = json.loads(content)
    except OSError as error:
        raise BackboneError(
            f"{path} cannot be read: {error.strerror}; give a folder in Hugging Face's layout, with "
            f"{CONFIG}, {TOKENIZER} and {WEIGHTS}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BackboneError(f"{path} holds no JSON object")
    return values


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
