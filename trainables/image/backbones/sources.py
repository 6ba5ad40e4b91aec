"""All sources of networks by name, and what installed packages add to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from trainables.errors import BackboneError, did_you_mean
from trainables.image.backbones.lite import Lite
from trainables.image.backbones.source import Source, State, first_lines, load
from trainables.image.backbones.timm_source import Timm
from trainables.image.backbones.torchvision_source import TorchVision
from trainables.image.preprocessing import Preprocessing
from trainables.plugins import PluginError, Registry, takes

__all__ = ["ADDED_BACKBONES", "SOURCES", "AddedBackbone", "find"]


class AddedBackbone(Protocol):
    """What an installed package registers under `transfer_search.backbones`.

    Attributes:
        preprocessing: what the pretrained weights were trained with.
        parameters: how many the network has; None where only building would tell.
        licence: under which terms the weights are.
    """

    preprocessing: Preprocessing
    parameters: int | None
    licence: str

    def weights(self) -> Path | None:
        """The file of the pretrained state dict (`.pth` or `.safetensors`); None where it has none here."""

    def trunk(self, image_size: int) -> nn.Module:
        """The network without a classifier, random: normalised float [B, 3, s, s] to float [B, F]."""


def _check_added(name: str, found: Any) -> None:
    if name.startswith(Timm.prefix):
        raise ValueError(f"names that begin with {Timm.prefix} are timm's")
    missing = [
        each
        for each in ("preprocessing", "parameters", "licence", "weights", "trunk")
        if not hasattr(found, each)
    ]
    if missing:
        raise TypeError(f"it has no {', '.join(missing)}")
    if not isinstance(found.preprocessing, Preprocessing):
        raise TypeError("its preprocessing must be a `trainables.image.preprocessing.Preprocessing`")
    takes("weights", found.weights)
    takes("trunk", found.trunk, "image_size")


class Added(Source):
    """The networks of installed packages."""

    def names(self) -> Iterable[str]:
        return ADDED_BACKBONES.added

    def preprocessing(self, name: str) -> Preprocessing:
        return self._of(name).preprocessing

    def parameters(self, name: str) -> int | None:
        return self._of(name).parameters

    def file(self, name: str) -> Path | None:
        return self._of(name).weights()

    def remedy(self, name: str) -> str:
        return f"see the documentation of {ADDED_BACKBONES.origin(name)}"

    def licence(self, name: str) -> str:
        return self._of(name).licence

    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        try:
            trunk = self._of(name).trunk(image_size)
        except Exception as error:  # a stranger's code raises whatever it likes
            raise BackboneError(
                f"backbone {name} of {ADDED_BACKBONES.origin(name)} cannot be built at image_size "
                f"{image_size}: {type(error).__name__}: {first_lines(error)}"
            ) from error
        if state is not None:
            load(trunk, state, ignored=())
        return trunk

    def _of(self, name: str) -> AddedBackbone:
        try:
            found: AddedBackbone = ADDED_BACKBONES.load(name)
        except PluginError as error:
            raise BackboneError(str(error)) from error
        return found


_OURS: tuple[Source, ...] = (Lite(), TorchVision(), Timm())
SOURCES: tuple[Source, ...] = (*_OURS, Added())

ADDED_BACKBONES = Registry(
    "backbones",
    "backbone",
    [*_OURS[0].names(), *_OURS[1].names()],
    _check_added,
)
"""The names of all backbones; what packages add is an `AddedBackbone`."""


def _names_added() -> str:
    return "".join(f", {name}" for name in ADDED_BACKBONES.added)


def find(name: str) -> tuple[Source, str]:
    for source in SOURCES:
        inner = name.removeprefix(source.prefix)
        if name.startswith(source.prefix) and inner in source.names():
            return source, inner
    every = [source.prefix + inner for source in SOURCES for inner in source.names()]
    raise BackboneError(
        f"backbone is {name!r}, but must be efficientnet_lite0, efficientnet_lite1, "
        f"efficientnet_lite2, a classification network of torchvision, timm/NAME{_names_added()}"
        f"{did_you_mean(name, every, most=4)}"
    )
