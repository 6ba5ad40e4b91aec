"""What an earlier search found, as first trials of a new one: on other data its best are a good start too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.errors import BadInput
from search.home import Home
from search.spec.search_spec import SearchSpec, read_spec
from search.study import space
from search.study.recipes import carried_over
from search.study.search_study import SearchStudy, first_steps
from trainables.errors import did_you_mean
from trainables.training.hparams import HParams

__all__ = ["Start", "start_of"]

_BEST = 5
"""How many of its configurations: on other data the first few rank alike, and each costs a trial."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The trials that a search begins with because an earlier one did well with them.

    Attributes:
        name: of the earlier search.
        trials: Optuna parameters by the number that the trial had there, best first.
        left_out: how many that did better than the last of these chose what the new space does not have.
    """

    name: str
    trials: Mapping[int, Mapping[str, Any]]
    left_out: int

    @property
    def line(self) -> str:
        """The same for a person."""
        if not self.trials:
            return f"starts from {self.name}: its best are the recipe's defaults here"
        taken = ", ".join(map(str, self.trials))
        text = f"starts from {self.name}: its trials {taken} after the recipe's defaults"
        if self.left_out:
            text += f"; {self.left_out} better ones chose what this space does not have"
        return text


def start_of(spec: SearchSpec, home: Home) -> Start | None:
    """The best configurations of `search.start_from`, as far as they fit; None where it names no search.

    Of each set of hyperparameters the best trial. A number is cut to its range here; a trial that chose
    what is no choice here is left out, and so is one that would run as an earlier one here.

    Raises:
        BadInput: if there is no such search, nothing of it has completed, or nothing of it fits.
    """
    if spec.search.start_from is None:
        return None
    earlier = _earlier(spec.search.start_from, home)
    study = SearchStudy.open(read_spec(earlier.spec), earlier)
    ranked = study.best() if study.spec.multi_objective else study.ranked()
    if not ranked:
        raise BadInput(
            f"no trial of the search {earlier.name!r} has completed; wait for one, or leave start_from out"
        )
    seen = [space.configured(step.params, spec) for step in first_steps(spec)]
    told: list[dict[str, Any]] = []
    taken: dict[int, Mapping[str, Any]] = {}
    left_out = passed = 0
    for trial in ranked:
        begun = study.begun(trial.number)
        if begun is None or _alike(begun.hparams) in told:
            continue
        told.append(_alike(begun.hparams))
        params = space.fitted_params(spec, carried_over(begun.hparams, spec))
        if params is None:
            passed += 1
            continue
        runs_as = space.configured(params, spec)
        if runs_as is None or runs_as not in seen:
            seen.append(runs_as)
            taken[trial.number], left_out = params, passed
        if len(taken) == _BEST:
            break
    if passed == len(told):
        raise BadInput(
            f"this space holds none of the {passed} configurations that {earlier.name!r} completed; allow "
            "their choices (strategy, policy and so on), or leave start_from out"
        )
    return Start(name=earlier.name, trials=taken, left_out=left_out)


def _alike(hparams: HParams) -> dict[str, Any]:
    """What a trial is without its seed."""
    return {name: value for name, value in hparams.active.items() if name != "seed"}


def _earlier(text: str, home: Home) -> Home:
    """The home of a search beside `home`, or at a path."""
    if os.sep in text:
        found = Home(Path(text))
        if not found.spec.is_file():
            raise BadInput(f"{text} is no search's home: it has no spec.yaml; give a search's name or home")
        return found
    beside = home.root.parent
    known = sorted(other.name for other in Home.all(beside) if other.root != home.root)
    if text not in known:
        there = f"there are: {', '.join(known)}" if known else "there is none to start from"
        raise BadInput(f"there is no search {text!r} in {beside}; {there}{did_you_mean(text, known)}")
    return Home.of(text, beside)
