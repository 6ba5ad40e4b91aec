"""Optuna's samplers of a search, which learn from failed trials too.

Optuna's samplers see completed and pruned trials alone: a region in which trials diverge, run out of memory
or raise is drawn again and again. Here a failed trial keeps its state in the storage, and a sampler is shown
it as the worst: as pruned before its first epoch where it learns from pruned trials, else as completed and
a little worse than the worst. What was given up (`abandoned`) says nothing of its hyperparameters.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState

from search.errors import BadInput
from search.spec.search_spec import SearchSpec
from search.spec.sections import SAMPLERS
from trainables.seeds import derived_seed

__all__ = ["LearningSampler", "build_sampler", "population", "sampler_notes"]

_GENERATIONS = 6
_POPULATIONS = (4, 50)
_MARGIN = 0.1
"""How much worse than the worst a failed trial is, of the range of the values."""


def build_sampler(spec: SearchSpec, begun: int, is_bad: Callable[[FrozenTrial], bool]) -> BaseSampler:
    """The spec's sampler; its seed moves on with the trials begun, since a resumed one would repeat itself.

    Args:
        spec: of the search.
        begun: how many trials its study has.
        is_bad: whether a failed trial says something bad of its hyperparameters.
    """
    seed = derived_seed(spec.search.seed, "sampler", begun) % 2**32
    as_pruned = spec.search.sampler == "tpe" and not spec.multi_objective
    return LearningSampler(_inner(spec, seed), is_bad, as_pruned=as_pruned)


def _inner(spec: SearchSpec, seed: int) -> BaseSampler:
    samplers = optuna.samplers
    with warnings.catch_warnings():
        # What conditional spaces and continuous samplers need is marked experimental.
        warnings.simplefilter("ignore", ExperimentalWarning)
        match spec.search.sampler:
            case "tpe":
                return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
            case "random":
                return samplers.RandomSampler(seed=seed)
            case "gp":
                return samplers.GPSampler(seed=seed)
            case "cmaes":
                return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case "qmc":
                return samplers.QMCSampler(
                    scramble=True,
                    seed=derived_seed(spec.search.seed, "qmc") % 2**32,  # a resumed search goes on with it
                    independent_sampler=samplers.RandomSampler(seed=seed),
                    warn_independent_sampling=False,
                )
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=population(spec.search.trials))
            case "grid":
                return samplers.RandomSampler(seed=seed)  # of what is enqueued nothing is left to draw
        return _added(spec.search.sampler, seed)


def _added(name: str, seed: int) -> BaseSampler:
    """The sampler that an installed package adds.

    Raises:
        BadInput: where it cannot be used.
    """
    try:
        found = SAMPLERS.load(name)(seed=seed)
    except ValueError as error:
        raise BadInput(str(error)) from error
    except Exception as error:  # a stranger's code raises whatever it likes
        raise BadInput(
            f"the sampler {name!r} of {SAMPLERS.origin(name)} cannot be used: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, BaseSampler):
        raise BadInput(
            f"the sampler {name!r} of {SAMPLERS.origin(name)} gives {type(found).__name__}, but must give an "
            "optuna.samplers.BaseSampler"
        )
    return found


def population(trials: int) -> int:
    """NSGA-II's population: a budget has several generations, for the first of them is drawn at random."""
    least, most = _POPULATIONS
    return max(least, min(most, trials // _GENERATIONS))


def sampler_notes(spec: SearchSpec) -> list[str]:
    """What a person should know of the spec's sampler before it runs."""
    if spec.search.sampler in ("gp", "cmaes", "nsga2") and spec.search.pruner != "none":
        return [
            f"sampler {spec.search.sampler} learns nothing of pruned trials, only of others; "
            "tpe learns of all, or set search.pruner to none"
        ]
    if spec.search.constraints and spec.search.sampler not in ("tpe", "gp", "nsga2"):
        return [f"sampler {spec.search.sampler} does not learn of search.constraints; tpe, gp and nsga2 do"]
    return []


class LearningSampler(BaseSampler):
    """A sampler that is shown failed trials as the worst.

    Args:
        inner: draws.
        is_bad: whether a failed trial says something bad of its hyperparameters.
        as_pruned: whether `inner` learns from pruned trials, and ranks one without an epoch last.
    """

    def __init__(
        self, inner: BaseSampler, is_bad: Callable[[FrozenTrial], bool], *, as_pruned: bool = False
    ) -> None:
        self.inner = inner
        self._is_bad = is_bad
        self._as_pruned = as_pruned

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(self._shown(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(self._shown(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(self._shown(study), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(self._shown(study), trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.inner.after_trial(self._shown(study), trial, state, values)

    def reseed_rng(self) -> None:
        self.inner.reseed_rng()

    def _shown(self, study: Study) -> Study:
        return _ShownStudy(study, self._is_bad, self._as_pruned)


class _ShownStudy(Study):
    """A study as a sampler sees it."""

    def __init__(self, study: Study, is_bad: Callable[[FrozenTrial], bool], as_pruned: bool) -> None:
        vars(self).update(vars(study))
        self._is_bad = is_bad
        self._as_pruned = as_pruned

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy=False, states=None, use_cache=use_cache)
        if any(trial.state == TrialState.FAIL for trial in trials):
            worst = None if self._as_pruned else _worse_than_all(trials, self.directions)
            trials = [
                _as_worst(trial, worst, trials)
                if trial.state == TrialState.FAIL and self._is_bad(trial)
                else trial
                for trial in trials
            ]
        shown = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(shown) if deepcopy else shown


def _as_worst(
    trial: FrozenTrial, values: Sequence[float] | None, others: Sequence[FrozenTrial]
) -> FrozenTrial:
    """A failed trial as completed with `values`, or where there are none as pruned before its first epoch.

    Of constraints nobody knows whether it would have met them; a sampler wants all trials to have the same.
    """
    shown = copy.copy(trial)
    shown.state = TrialState.PRUNED if values is None else TrialState.COMPLETE
    shown.values = None if values is None else list(values)
    shown.intermediate_values = {}
    names = {name for other in others for name in other.constraints}
    shown.system_attrs = {**shown.system_attrs, **{f"{_CONSTRAINTS_KEY}:{name}": 0.0 for name in names}}
    return shown


def _worse_than_all(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[float]:
    """For each objective a value that is a little worse than that of every completed trial."""
    completed = [trial.values for trial in trials if trial.state == TrialState.COMPLETE]
    found = []
    for place, direction in enumerate(directions):
        values = [each[place] for each in completed if math.isfinite(each[place])] or [0.0]
        margin = _MARGIN * (max(values) - min(values)) or 1.0
        found.append(min(values) - margin if direction == StudyDirection.MAXIMIZE else max(values) + margin)
    return found
