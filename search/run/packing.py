"""How many trials share a GPU: what each kind of a spec's trials takes, and the fraction that follows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from search.run.planning import cache_root, values_of
from search.spec.domains import Fixed
from search.spec.search_spec import SearchSpec
from trainables.training.footprint import GIB, peak_bytes
from trainables.training.hparams import HParams
from trainables.training.settings import Settings

__all__ = ["Need", "card_bytes", "needs", "share", "trials_of"]

_DECIDE = ("batch_size", "strategy")
"""What decides the memory of a trial, beside what decides its backbone."""
_CONTEXT = GIB // 2
"""What CUDA's context and kernels take in each process, beside what torch reserves."""
_MARGIN = 1.15
_MOST = 20


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one kind of trial takes.

    Attributes:
        trial: the knobs that decide it.
        bytes: peak memory of its training; None where this machine's memory did not suffice.
        device: where it was measured, `cuda` or `cpu`.
        share: of the card asked about; None where it does not fit, or no card is known.
    """

    trial: dict[str, Any]
    bytes: int | None
    device: str
    share: float | None


def card_bytes() -> int | None:
    """Memory of this machine's first GPU; None without one."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def share(needed: int | None, card: int | None) -> float | None:
    """The fraction of a card, one of 1/1, 1/2, 1/3 ..., rounded down to hundredths, that holds a trial."""
    if needed is None or card is None:
        return None
    trials = min(_MOST, math.floor(card / (needed * _MARGIN + _CONTEXT)))
    return math.floor(100 / trials) / 100 if trials else None


def trials_of(spec: SearchSpec) -> list[HParams]:
    """One trial of each kind that the space can draw, training as much of the backbone as it allows."""
    fixed = {name: domain.value for name, domain in spec.space.items() if isinstance(domain, Fixed)}
    fixed = {name: value for name, value in fixed.items() if spec.knobs[name].rows is None}
    fixed["freeze"] = min(values_of(spec.domain("freeze")), default=0.0)
    kinds = product(*(values_of(spec.domain(name)) for name in _deciding(spec)))
    return [spec.hparams(**{**fixed, **dict(zip(_deciding(spec), kind, strict=True))}) for kind in kinds]


def _deciding(spec: SearchSpec) -> tuple[str, ...]:
    return (*spec.modality.backbone_knobs, *_DECIDE)


def needs(spec: SearchSpec, card: int | None = None) -> Iterator[Need]:
    """Measures each kind of trial, one after another; on the GPU where there is one.

    Args:
        spec: whose data has been checked.
        card: memory of the GPU that shares are proposed for, bytes; None: this machine's.
    """
    card = card or card_bytes()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(device=device, views=1)
    for trial in trials_of(spec):
        taken = peak_bytes(trial, spec.data.config, cache_dir=Path(cache_root(spec)), settings=settings)
        told = {name: getattr(trial, name) for name in _deciding(spec)}
        yield Need(trial=told, bytes=taken, device=device, share=share(taken, card))
