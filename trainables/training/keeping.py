"""Which epoch's model a trial keeps, and what that model is expected to be worth. Knows no torch.

The best of many noisy epochs is partly the luckiest. So a trial keeps the model of its last epoch, and its
value is the mean of the last epochs of that phase: of three, or of half where the phase has fewer than six. A
fine-tune that collapses is then worth what it became, and not what its probe was before. So is a trial whose
rate never falls, or that ends early: the last model is kept, and its neighbours say what it is worth.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from trainables.training.phases import Phase

__all__ = [
    "BEST_EPOCH",
    "EXPECTED",
    "LAST_EPOCHS",
    "counted",
    "expected",
    "expected_name",
    "value_of",
]

LAST_EPOCHS = "last_epochs"
"""The rule: the last epoch's model, worth the mean of the last epochs."""
BEST_EPOCH = "best_epoch"
"""The rule of searches of old: the model of the best epoch, worth what it had there."""

EXPECTED = "expected_"
_WIDEST = 3
"""Epochs, of which a value is the mean at most."""


def counted(phases: Sequence[Phase], epoch: int) -> range:
    """The epochs, from 1, whose mean is the value of a trial that has run `epoch` of them."""
    phase = next(each for each in phases if epoch <= each.first + each.epochs)
    width = min(_WIDEST, max(1, phase.epochs // 2))
    return range(max(phase.first, epoch - width) + 1, epoch + 1)


def expected_name(metric: str) -> str:
    """What the expected value of a metric is called beside the kept epoch's own."""
    return f"{EXPECTED}{metric}"


def expected(epochs: Mapping[int, Mapping[str, float]], window: Iterable[int]) -> dict[str, float]:
    """What the metrics of a window of epochs are expected to be: their means, under names of their own."""
    counting = [epochs[epoch] for epoch in window if epoch in epochs]  # states of old knew no epochs
    known = [name for name in counting[-1] if all(name in each for each in counting)]
    return {expected_name(name): statistics.fmean(each[name] for each in counting) for name in known}


def value_of(kept: Mapping[str, float], metric: str) -> float:
    """What a trial is worth by `metric`, of what it tells of the epoch whose model it keeps."""
    return kept.get(expected_name(metric), kept[metric])
