"""The modalities by name: ours, and those of installed packages."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any

from trainables.modality import Modality
from trainables.plugins import Registry, takes

__all__ = ["MODALITIES", "modality"]

_OWN = {"image": "trainables.image.modality:IMAGE", "text": "trainables.text.modality:TEXT"}
"""Those of this package; named rather than imported, since each is made of what stands above this module."""


@cache
def modality(name: str) -> Modality[Any]:
    """The modality `name`, our own or an installed package's.

    Raises:
        UnknownName: where there is none.
        PluginError: where it cannot be used.
    """
    if name not in _OWN:
        plugged: Modality[Any] = MODALITIES.load(name)
        return plugged
    module, _, attribute = _OWN[name].partition(":")
    found: Modality[Any] = getattr(importlib.import_module(module), attribute)
    return found


def _check(name: str, found: Any) -> None:
    """Sees that an object is a modality as far as its shape tells."""
    missing = [each for each in _members() if not hasattr(found, each)]
    if missing:
        raise TypeError(f"it has no {', '.join(missing)}, which `trainables.modality.Modality` asks for")
    if found.name != name:
        raise ValueError(f"its name is {found.name!r}, but it is registered as {name!r}")
    if getattr(found.hparams, "modality", None) != name:
        raise ValueError(f"the class variable `modality` of its hparams must be {name!r}")
    for each in _members():
        asked = getattr(Modality, each)
        if not inspect.isfunction(asked):
            continue
        parameters = list(inspect.signature(asked).parameters.values())[1:]
        named = {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        takes(each, getattr(found, each), *(p.name for p in parameters if p.name not in named), **named)


def _members() -> list[str]:
    return [each for each in vars(Modality) if not each.startswith("_")]


MODALITIES = Registry("modalities", "modality", _OWN, _check)
"""The names of all modalities."""
