"""What a search demands of its trials beside their objectives: a trial that lacks it is never the best.

Optuna is told of each bound by how much it is missed, 0 or less where it is met, and its samplers that can
(TPE, GP, NSGA-II) keep away from where trials miss them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from optuna.trial import FrozenTrial

from search.spec.sections import Bounds
from trainables.training.keeping import value_of

__all__ = ["is_feasible", "misses", "violated"]

_UNKNOWN = 1e9
"""By how much a bound on what was not measured is missed."""


def misses(best: Mapping[str, float], constraints: Mapping[str, Bounds]) -> dict[str, float]:
    """By how much a trial misses each bound, by the bound's name.

    Args:
        best: what the trial tells of its kept epoch.
        constraints: bounds by metric.
    """
    found: dict[str, float] = {}
    for metric, bounds in constraints.items():
        value = value_of(best, metric) if metric in best else math.nan
        for name, missed in (("max", bounds.above(value)), ("min", bounds.below(value))):
            if missed is not None:
                found[f"{metric} {name}"] = missed if math.isfinite(missed) else _UNKNOWN
    return found


def violated(best: Mapping[str, float] | None, constraints: Mapping[str, Bounds]) -> Iterator[str]:
    """The bounds that a trial misses, in words."""
    for metric, bounds in constraints.items() if best else ():
        missed = misses(best or {}, {metric: bounds})
        if any(each > 0 for each in missed.values()):
            told = f"{value_of(best, metric):g}" if best and metric in best else "not measured"
            yield f"{metric} {told}, but {bounds.told}"


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial meets all constraints that its search has."""
    return all(missed <= 0 for missed in trial.constraints.values())
