"""Optuna's pruners of a search: `rungs` decides, of what the study knows of its trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.errors import Problem
from search.spec.search_spec import SearchSpec
from search.study import rungs
from trainables.training.hparams import HParams

__all__ = ["build_pruner", "pruner_problems"]

_STARTUP = 5
"""Completed trials before the median stops any."""

HParamsOf = Callable[[FrozenTrial], HParams | None]


def build_pruner(spec: SearchSpec, hparams_of: HParamsOf) -> BasePruner:
    """The spec's pruner; `hparams_of` tells what a trial runs, None as long as nobody knows."""
    match spec.search.pruner:
        case "asha":
            return HalvingPruner(hparams_of)
        case "hyperband":
            return HalvingPruner(hparams_of, brackets=True)
        case "median":
            return MedianPruner(hparams_of)
        case "wilcoxon":  # of searches of old: none is launched with it now
            return optuna.pruners.WilcoxonPruner()
        case "none":
            return optuna.pruners.NopPruner()


def pruner_problems(spec: SearchSpec) -> Iterator[Problem]:
    """Why no new search is launched with the spec's pruner."""
    if spec.search.pruner == "wilcoxon":
        yield Problem(
            place="search.pruner",
            given="wilcoxon",
            message="compares trials on the same instances, such as folds, and epochs are none; "
            "use asha, hyperband, median or none",
        )


@dataclass(frozen=True)
class _Course:
    """When a trial is compared, and with which."""

    kind: Hashable
    stages: Sequence[int]


class _CurvePruner(BasePruner):
    """Compares a trial at its stages with all that have come to theirs."""

    def __init__(self, hparams_of: HParamsOf) -> None:
        self._hparams_of = hparams_of
        self._courses: dict[int, _Course] = {}

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        course, epoch = self._course(trial), trial.last_step
        if course is None or epoch not in course.stages:
            return False
        stage = course.stages.index(epoch)
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        own, others = None, []
        for each in study.get_trials(deepcopy=False):
            curve = self._curve(each, stage, sign)
            if curve is not None and each.number == trial.number:
                own = curve
            elif curve is not None and self._compares(trial.number, each.number, len(course.stages)):
                others.append(curve)
        return own is not None and self._stops(trial.number, stage, own, others)

    def _course(self, trial: FrozenTrial) -> _Course | None:
        if trial.number not in self._courses:
            hparams = self._hparams_of(trial)
            if hparams is None:
                return None
            self._courses[trial.number] = _Course(rungs.kind_of(hparams), self._stages(hparams))
        return self._courses[trial.number]

    def _curve(self, trial: FrozenTrial, stage: int, sign: int) -> rungs.Curve | None:
        """The trial at the stage; None where it has not come so far, or failed."""
        course = None if trial.state in (TrialState.FAIL, TrialState.WAITING) else self._course(trial)
        if course is None or stage >= len(course.stages):
            return None
        value = trial.intermediate_values.get(course.stages[stage], math.nan)
        if not math.isfinite(value):
            return None
        final = sign * trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else None
        return rungs.Curve(kind=course.kind, value=sign * value, final=final)

    def _stages(self, hparams: HParams) -> Sequence[int]:
        raise NotImplementedError

    def _compares(self, number: int, other: int, stages: int) -> bool:
        return True

    def _stops(self, number: int, stage: int, own: rungs.Curve, others: Sequence[rungs.Curve]) -> bool:
        raise NotImplementedError


class HalvingPruner(_CurvePruner):
    """Asynchronous successive halving; with `brackets` Hyperband's, of which each begins at a later rung."""

    def __init__(self, hparams_of: HParamsOf, *, brackets: bool = False) -> None:
        super().__init__(hparams_of)
        self._brackets = brackets

    def _stages(self, hparams: HParams) -> Sequence[int]:
        return rungs.rungs(hparams)

    def _skipped(self, number: int, stages: int) -> int:
        return rungs.bracket(number, stages) if self._brackets else 0

    def _compares(self, number: int, other: int, stages: int) -> bool:
        return self._skipped(number, stages) == self._skipped(other, stages)

    def _stops(self, number: int, stage: int, own: rungs.Curve, others: Sequence[rungs.Curve]) -> bool:
        stages = len(self._courses[number].stages)
        return stage >= self._skipped(number, stages) and not rungs.promoted(own, others)


class MedianPruner(_CurvePruner):
    """Stops what is worse than the median of the others, once enough have completed."""

    def _stages(self, hparams: HParams) -> Sequence[int]:
        return rungs.comparable(hparams)

    def _stops(self, number: int, stage: int, own: rungs.Curve, others: Sequence[rungs.Curve]) -> bool:
        completed = sum(each.final is not None for each in others)
        return completed >= _STARTUP and rungs.below_the_median(own, others)
