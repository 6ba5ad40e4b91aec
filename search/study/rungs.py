"""When trials are compared, and which of them go on: arithmetic, which knows no Optuna.

Curves of different kinds (strategy, horizon, where the backbone unfreezes) say different things at the same
epoch: a probe is ahead of what has just been unfrozen and will pass it. So a trial is compared at the stages
of its kind, and with other kinds only by what each is expected to end at: its value there plus what completed
trials of its kind gained from there (their median). As long as too few have completed to know that, a kind
is compared with itself alone.

No epoch before the second is a stage, none of the warm-up, none within two epochs of unfreezing, and none
beyond half the horizon.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainables.training.hparams import HParams
from trainables.training.phases import phases

__all__ = [
    "FACTOR",
    "Curve",
    "below_the_median",
    "bracket",
    "comparable",
    "kind_of",
    "promoted",
    "rungs",
]

FACTOR = 3
"""Of so many trials at a rung one goes on."""
_FIRST = 2
_SETTLING = 2
_ENOUGH = 2
"""Completed trials of a kind, from which its gain is known."""
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trial at a stage: its kind, its value there (more is better), and its last one once it completed."""

    kind: Hashable
    value: float
    final: float | None = None


def kind_of(hparams: HParams) -> tuple[str, int, int]:
    """What trials must share for their values at an epoch to mean the same."""
    return hparams.strategy, hparams.epochs, phases(hparams)[-1].first


def comparable(hparams: HParams) -> list[int]:
    """The epochs, from 1, after which a trial's value says something of its end."""
    warm, forbidden = math.ceil(hparams.warmup_epochs), set[int]()
    for phase in phases(hparams):
        unfreezes = phase.kind == "trunk" and hparams.strategy == "lp_ft"
        settling = max(warm, _SETTLING if unfreezes else 0)
        forbidden |= set(range(phase.first + 1, phase.first + settling + 1))
    return [epoch for epoch in range(_FIRST, hparams.epochs // 2 + 1) if epoch not in forbidden]


def rungs(hparams: HParams) -> list[int]:
    """The epochs at which a trial is halved away or goes on: each at least `FACTOR` times the one before."""
    epochs, found, wanted = comparable(hparams), list[int](), _FIRST
    while epochs and wanted <= epochs[-1]:
        found.append(next(epoch for epoch in epochs if epoch >= wanted))
        wanted = found[-1] * FACTOR
    return found


def bracket(number: int, rungs: int) -> int:
    """How many of its first rungs Hyperband (Li et al., 2018) lets trial `number` skip.

    Brackets have the shares that Hyperband gives them; the golden ratio spreads the trials over them.
    """
    shares = [math.ceil((rungs + 1) / (left + 1) * FACTOR**left) for left in range(rungs, -1, -1)]
    place, skipped = (number * _GOLDEN) % 1 * sum(shares), 0
    while place >= shares[skipped]:
        place -= shares[skipped]
        skipped += 1
    return skipped


def promoted(own: Curve, others: Sequence[Curve]) -> bool:
    """Whether a trial is in the best third of those at its rung so far (ASHA; Li et al., 2020)."""
    value, field = _on_one_scale(own, others)
    kept = max(1, (len(field) + 1) // FACTOR)
    return sum(each > value for each in field) < kept


def below_the_median(own: Curve, others: Sequence[Curve]) -> bool:
    """Whether a trial is worse than half of the others at its stage (Golovin et al., 2017)."""
    value, field = _on_one_scale(own, others)
    return bool(field) and value < statistics.median(field)


def _on_one_scale(own: Curve, others: Sequence[Curve]) -> tuple[float, list[float]]:
    """A trial's value and those of all it can be compared with: at the stage, or expected at the end."""
    gains = _gains(others)
    if own.kind not in gains:
        return own.value, [each.value for each in others if each.kind == own.kind]
    expected = (each.value + gains[each.kind] for each in others if each.kind in gains)
    return own.value + gains[own.kind], list(expected)


def _gains(curves: Iterable[Curve]) -> Mapping[Hashable, float]:
    """What completed trials of a kind gained from the stage to their end; of kinds with enough of them."""
    gained: dict[Hashable, list[float]] = {}
    for curve in curves:
        if curve.final is not None:
            gained.setdefault(curve.kind, []).append(curve.final - curve.value)
    return {kind: statistics.median(each) for kind, each in gained.items() if len(each) >= _ENOUGH}
