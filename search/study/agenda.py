"""What a search does before its sampler draws: it screens solved heads, then fine-tunes the best of them.

A solved head costs a pass over the images and says which backbone, size, features and policy suit them; what
it says holds for fine-tuning too, which costs some twenty times as much. So the first third of a search's
trials, and of its time, goes at most to heads: first each backbone at each size on each kind of features,
then the other solver and each policy on the best of these. The best few are fine-tuned by recipe, each from
its own head, one is trained by each other recipe, and then what did well on other tasks. The sampler has the
rest. Heads end sooner where fine-tuning would no longer end in time, and have all of it where that is too
short to fine-tune at all; one that would not end itself, since its policy has many views, is left out.

All of it follows from the trials that were begun, so that a resumed search goes on with it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from search.spec.domains import Choice, Fixed
from search.spec.search_spec import SearchSpec
from search.study import space
from search.study.portfolio import portfolio
from search.study.recipes import RECIPES, SHARE, most_trials, offered, recipe_of
from search.study.trials import seconds_of

__all__ = ["PHASE", "SCREEN", "TUNE", "Agenda", "Step", "agenda_notes", "cores_worth", "pool_size"]

PHASE = "phase"
"""What a trial's phase is written down as."""
SCREEN, TUNE = "screen", "tune"
_OF_HEADS = ("features", "solver")
"""Knobs of a head on a frozen trunk, and of what begins with one."""

_FEW = 3
"""Configurations whose heads are fine-tuned."""
_OVER_HEAD = 3
"""An epoch of fine-tuning over the first head, whose features are computed: a pass back is two forward."""
_AMPLE = 1.3
"""What is left for fine-tuning over what it is expected to take."""
_POOL = 8
"""Trials that an ensemble of heads and fine-tunes is chosen from."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A trial that the agenda wants next: the phase that it is of, and its Optuna parameters."""

    phase: str
    params: Mapping[str, Any]


class Agenda:
    """The agenda of a search whose space has both solved heads and trunks that train.

    Args:
        spec: of the search.
        budget: of trials.

    Attributes:
        is_done: whether the sampler's turn has come.
    """

    def __init__(self, spec: SearchSpec, budget: int) -> None:
        self._spec = spec
        self._most = most_trials(budget)
        self._seen = (*spec.modality.backbone_knobs, "features")  # what a head sees, beside the policy
        self.is_done = False

    @classmethod
    def has(cls, spec: SearchSpec) -> bool:
        """Whether a search of the spec has one."""
        tuned = [strategy for strategy in RECIPES if strategy != "probe" and _has(spec, "strategy", strategy)]
        solved = any(_has(spec, "solver", solver) for solver in ("ridge", "logistic"))
        return (
            bool(tuned and solved)
            and _has(spec, "strategy", "probe")
            and not spec.multi_objective
            and spec.search.sampler != "grid"
        )

    def next(
        self,
        begun: Sequence[FrozenTrial],
        ranked: Sequence[FrozenTrial],
        seconds: float = 0.0,
        refit_times: float = 0.0,
    ) -> Step | None:
        """The next step; None where the sampler's turn has come.

        Args:
            begun: every trial so far.
            ranked: those that completed, best first.
            seconds: that the search was worked on, as far as that is written down.
            refit_times: how many times as long as a trial its refit takes.
        """
        if self.is_done:
            return None
        known = [space.configured(trial.params, self._spec) for trial in begun]
        phases = [trial.user_attrs.get(PHASE) for trial in begun]
        heads = [trial for trial in ranked if _is_head(space.configured(trial.params, self._spec))]
        best = [space.configured(trial.params, self._spec) or {} for trial in heads]
        left, tuning_fits = self._left(begun, phases, seconds, refit_times)
        for params in self._heads(best):
            values = space.configured(params, self._spec)
            if values not in known and self._head_seconds(values, begun) <= left:
                return Step(phase=SCREEN, params=params)
        if tuning_fits and phases.count(TUNE) < self._most:
            for params in self._tuned(best):
                if space.configured(params, self._spec) not in known:
                    return Step(phase=TUNE, params=params)
        self.is_done = True
        return None

    def _left(
        self, begun: Sequence[FrozenTrial], phases: Sequence[str | None], seconds: float, refit_times: float
    ) -> tuple[float, bool]:
        """The seconds that one more head may take, and whether there is time to fine-tune again and refit.

        What fine-tuning takes is known of one that has ended, or is guessed of the first head.
        """
        in_turn = TUNE not in phases and phases.count(SCREEN) < self._most
        time, each = self._spec.search.time, [seconds_of(trial) for trial in begun]
        if time is None or not each or not each[0]:
            return math.inf if in_turn else -math.inf, True
        workers = 1 + sum(trial.datetime_complete is None for trial in begun)
        spent = max(seconds, sum(each) / workers)
        tuned = [took for took, phase in zip(each, phases, strict=True) if took and phase == TUNE]
        tuning = max(tuned) if tuned else each[0] * _OVER_HEAD * self._spec.search.max_epochs
        tuning *= 1 + refit_times / cores_worth(workers)
        if spent + tuning > time:
            return time - spent, False
        return min(time / SHARE, time - _AMPLE * tuning) - spent if in_turn else -math.inf, True

    def _head_seconds(self, values: Mapping[str, Any] | None, begun: Sequence[FrozenTrial]) -> float:
        """What a head is expected to take, by the first one: each view of a policy is a pass of its own."""
        views = 1 if (values or {}).get("policy", "none") == "none" else self._spec.cache.views or 1
        return views * seconds_of(begun[0]) if begun else 0.0

    def _heads(self, best: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Heads to screen, the cheap ones first."""
        first = recipe_of(self._spec, "probe")
        for values in itertools.product(*(self._values(name, first) for name in self._seen)):
            yield from self._fitted({**first, **dict(zip(self._seen, values, strict=True))})
        leader = {**first, **(self._as_seen(best[0]) if best else {})}
        for solver in self._values("solver", first):
            if solver != "gradient":
                yield from self._fitted({**leader, "solver": solver})
        for policy in self._values("policy", first):
            if not self._has_rows(policy):
                yield from self._fitted({**leader, "policy": policy})

    def _tuned(self, best: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """What is fine-tuned: the best head, what other recipes make of its configuration, further heads."""
        distinct = self._distinct(best) or [{}]
        others = [name for name in RECIPES if name not in ("probe", "lp_ft")]
        chosen = [("lp_ft", distinct[0]), *((name, distinct[0]) for name in others)]
        for strategy, seen in (*chosen, *(("lp_ft", each) for each in distinct[1:])):
            if _has(self._spec, "strategy", strategy):
                # Features of stages suit what was fitted to them; what begins anew has its own.
                kept = {name: seen[name] for name in seen if name not in _OF_HEADS or strategy == "lp_ft"}
                yield from self._fitted({**recipe_of(self._spec, strategy), **kept})
        own = {name: distinct[0][name] for name in self._spec.modality.backbone_knobs if name in distinct[0]}
        for values in self._did_well:
            yield from self._fitted({**values, **own})

    @functools.cached_property
    def _did_well(self) -> Sequence[Mapping[str, Any]]:
        """Fine-tunes that did well on other tasks."""
        return list(portfolio(self._spec, fine_tuned=True))

    def _values(self, name: str, first: Mapping[str, Any]) -> list[Any]:
        """What a knob may be, the recipe's value first."""
        match self._spec.domain(name):
            case Choice(values=values):
                wanted = first.get(name)
                return sorted(values, key=lambda value: value != wanted)
            case Fixed(value=value):
                return [value]
        return [first.get(name, self._spec.default(name))]

    def _has_rows(self, policy: Any) -> bool:
        """Whether a policy is a table, which is yet to be drawn."""
        rows = (known for known in self._spec.knobs.values() if known.rows is not None)
        return any(policy in known.when.get("policy", ()) for known in rows)

    def _distinct(self, best: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The few best of what heads see, each with the solver of its best head."""
        found: list[tuple[dict[str, Any], Any]] = []
        for values in best:
            seen = self._as_seen(values)
            if seen not in (known for known, _ in found):
                found.append((seen, values["solver"]))
        return [{**seen, "solver": solver} for seen, solver in found[:_FEW]]

    def _as_seen(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in (*self._seen, "policy") if name in values}

    def _fitted(self, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        params = space.fitted_params(self._spec, values)
        if params is not None and space.configured(params, self._spec) is not None:
            yield params


def pool_size(spec: SearchSpec) -> int:
    """How many of the best trials an ensemble is chosen from; 0 where there is to be none."""
    (metric, *others) = spec.search.objective
    if others or not metric.startswith("val_"):
        return 0
    if spec.search.ensemble != "auto":
        return spec.search.ensemble
    return _POOL if Agenda.has(spec) and not spec.search.costs else 0


def agenda_notes(spec: SearchSpec) -> list[str]:
    """What a person should know of the spec's agenda before it runs."""
    if not Agenda.has(spec):
        return []
    most, then = most_trials(spec.search.trials), spec.search.sampler
    return [
        f"phases: at most {most} solved heads are screened, the best {_FEW} fine-tuned by recipe, "
        f"then {then} searches"
    ]


def cores_worth(at_once: int) -> float:
    """How many times as fast one training is on the cores of `at_once` trials, as far as one can guess."""
    return float(max(1, at_once) ** 0.75)


def _has(spec: SearchSpec, name: str, value: Any) -> bool:
    return offered(spec, name, value) is not None


def _is_head(values: Mapping[str, Any] | None) -> bool:
    return (
        values is not None
        and values["strategy"] == "probe"
        and values.get("solver", "gradient") != "gradient"
    )
