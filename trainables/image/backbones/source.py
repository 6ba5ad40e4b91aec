"""Where networks and their weights come from: what each source answers, state dicts read as untrusted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
import torch
from torch import Tensor, nn

from trainables.errors import BackboneError
from trainables.image.preprocessing import Preprocessing

__all__ = ["READERS", "Source", "State", "Unloadable", "few", "first_lines", "load", "read"]


class Unloadable(Exception):
    """A state dict does not fit a network."""


State: TypeAlias = Mapping[str, Tensor]


class Source(ABC):
    """Where names, architectures and weights come from."""

    prefix = ""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """The names without the prefix."""

    @abstractmethod
    def preprocessing(self, name: str) -> Preprocessing:
        """What the pretrained weights were trained with."""

    @abstractmethod
    def parameters(self, name: str) -> int | None:
        """How many the network has, the classifier included, if known without building it."""

    @abstractmethod
    def file(self, name: str) -> Path | None:
        """The pretrained weights on this machine; `None` if they are not here."""

    @abstractmethod
    def remedy(self, name: str) -> str:
        """How to get the pretrained weights, as the end of a sentence."""

    @abstractmethod
    def licence(self, name: str) -> str:
        """Under which terms the pretrained weights are, as far as their source says."""

    @abstractmethod
    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        """The network without its classifier, loaded with `state`, or random."""

    def pretrained(self, full: str, name: str) -> Path:
        """The pretrained weights' file, or an error that says how to get it."""
        file = self.file(name)
        if file is None:
            raise BackboneError(
                f"the pretrained weights of {full} are not on this machine, and nothing is "
                f"downloaded during a search: {self.remedy(name)}; or give `weights` the path of a "
                "state dict file, or `none`; or take backbone efficientnet_lite0"
            )
        return file


# Weights


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_pickle,
    ".pt": _read_pickle,
    ".bin": _read_pickle,
    ".safetensors": safetensors.torch.load_file,
}


def read(source: Source, full: str, name: str, weights: str) -> State:
    """The tensors that `weights` names, on the CPU."""
    path = source.pretrained(full, name) if weights == "pretrained" else Path(weights)
    if path.suffix not in READERS:
        raise BackboneError(
            f"weights is {weights!r}, but must be `pretrained`, `none`, or the path of a file "
            f"that ends in {', '.join(READERS)}"
        )
    if not path.is_file():
        raise BackboneError(f"weights is {weights!r}, but there is no such file")
    try:
        content = READERS[path.suffix](path)
    except Exception as error:
        # A reader that is fed with garbage raises whatever it stumbles over.
        raise BackboneError(
            f"the weights file {path} cannot be read as tensors alone: {first_lines(error)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise BackboneError(f"the weights file {path} holds no state dict")
    strange = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise BackboneError(
            f"the weights file {path} holds more than tensors: {few(map(str, strange))}; "
            "save `model.state_dict()` alone"
        )
    return content


def load(module: nn.Module, state: State, *, ignored: tuple[str, ...]) -> None:
    """Loads `state` strictly, but for tensors under the `ignored` names, which may be there."""
    ours = module.state_dict()
    prefixes = tuple(f"{name}." for name in ignored)
    missing = [
        name
        for name in ours
        # Counters of batches, which older files lack, change nothing that we compute.
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in ours and not name.startswith(prefixes)]
    misshapen = [
        f"{name} is {list(state[name].shape)} for {list(tensor.shape)}"
        for name, tensor in ours.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{what} {few(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise Unloadable("; ".join(problems))
    fitting = OrderedDict((name, state.get(name, tensor)) for name, tensor in ours.items())
    # Versions of layouts, by which modules translate what older versions of them saved.
    fitting._metadata = getattr(state, "_metadata", ours._metadata)  # type: ignore[attr-defined]
    try:
        module.load_state_dict(fitting)
    except RuntimeError as error:
        raise Unloadable(first_lines(error)) from error


# Words


def first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def few(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - 4} more" if len(every) > 4 else ""
    return ", ".join(every[:4]) + more
