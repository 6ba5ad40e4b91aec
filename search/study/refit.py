"""Refits: a winner's configuration trained once more, on training and validation images together.

A search sets validation images aside to choose by. When it has chosen, they are as good for learning from as
the others, and what is served should have learned from all of them. Nothing is chosen any more: epochs and
schedule are the winner's, the model is that of the last epoch. So the refit has no validation score of its
own, since it has seen those images; what is known of it before the test split is the winner's value, and that
more images of the same kind rarely harm. It is scored once on the test split, where there is one. Where an
ensemble takes the winner's place, its members are refitted instead, heads first, as far as there is time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from search.home import Home
from search.spec.search_spec import SearchSpec
from search.spec.sections import Resources
from search.study.agenda import cores_worth
from search.study.finalists import distinct
from search.study.planned import PlannedStudy
from search.study.search_study import SearchStudy
from search.study.trials import TrialRecord
from trainables.training.hparams import TRUNK_TRAINS, HParams

__all__ = ["SEEN", "RefitStudy", "Winner", "affordable", "named", "refit_seconds", "takes_all_cores"]

_MEMBERS = 4
"""As many as an ensemble usually has."""

SEEN = "seen_"
"""Begins the names of a refit's scores on validation images, which it was trained on."""


def named(metric: str, role: str) -> str:
    """What a metric of a run is called: nobody is to take what a refit has seen for a validation score."""
    return f"{SEEN}{metric}" if role == RefitStudy.role and metric.startswith("val_") else metric


def takes_all_cores(spec: SearchSpec, hparams: HParams) -> bool:
    """Whether a refit runs on the cores of all trials: where it trains a backbone, and on no GPU."""
    return not spec.resources.gpu and hparams.strategy in TRUNK_TRAINS


def refit_seconds(search: SearchStudy, at_once: int) -> float:
    """What refits are going to take where `at_once` trials run; 0 where unknown.

    Of the trial that leads, and before it of the best heads, as many as an ensemble usually has.
    """
    best = list(distinct(search, min(_MEMBERS, search.pool_size or 1))) if search.is_refitted else []
    heads = [_refit_seconds(search, number, 1) for number in best[1:] if _is_head(search, number)]
    return sum(_refit_seconds(search, number, at_once) for number in best[:1]) + _beside(heads, at_once)


def affordable(search: SearchStudy, members: Sequence[int], at_once: int, seconds: float | None) -> list[int]:
    """Those of an ensemble's members that are refitted: its heads, and others as far as there is time.

    Args:
        search: whose trials they are.
        members: their numbers, of the largest share first.
        at_once: how many refits run at a time.
        seconds: that are left; None: any.
    """
    taken: list[int] = []
    for number in sorted(members, key=lambda each: not _is_head(search, each)):
        took = [_refit_seconds(search, each, 1) for each in (*taken, number)]
        if seconds is None or _is_head(search, number) or _beside(took, at_once) <= seconds:
            taken.append(number)
    return taken


def _beside(each: Sequence[float], at_once: int) -> float:
    """What runs of so many seconds each take beside one another."""
    return max(sum(each) / max(1, at_once), max(each, default=0.0))


def _is_head(search: SearchStudy, trial: int) -> bool:
    begun = search.begun(trial)
    return begun is not None and begun.hparams.strategy not in TRUNK_TRAINS


def _refit_seconds(search: SearchStudy, trial: int, cores: int) -> float:
    begun = search.begun(trial)
    if begun is None:
        return 0.0
    hparams, times = begun.hparams, search.refit_times
    epochs: float = hparams.epochs * (search.record(trial).best or {}).get("epoch_seconds", 0.0)
    faster = 1.0 if search.spec.resources.gpu else cores_worth(cores)
    seconds = times * epochs / (faster if takes_all_cores(search.spec, hparams) else 1.0)
    if hparams.policy == "none":
        return seconds
    # The views of training images are there; of the others none was drawn yet.
    return seconds + (times - 1) * max(0.0, search.seconds_of(trial) - epochs) / faster


@dataclass(frozen=True, kw_only=True)
class Winner:
    """What a search has found: a trial's number, and the hyperparameters of the run that stands for it."""

    trial: int
    hparams: HParams

    @property
    def entry(self) -> dict[str, Any]:
        """The same as a plan has it."""
        entry: dict[str, Any] = json.loads(json.dumps({"of": self.trial, "hparams": self.hparams.to_dict()}))
        return entry


class RefitStudy(PlannedStudy):
    """The refits of winners, or of ensembles' members, that the search had when it came to its end."""

    role = "refit"
    part = "refit"

    @classmethod
    def begin(cls, search: SearchStudy, home: Home, winners: Sequence[Winner], resources: Resources) -> Self:
        """The study with the runs that these winners need, each of which takes `resources`."""
        study = cls.begun_in(search, home)
        study.spec = study.spec.model_copy(update={"resources": resources})
        study.extend([winner.entry for winner in winners if winner.entry not in study.plan])
        return study

    def label(self, number: int) -> str:
        return str(self.plan[number]["of"])

    def latest(self, winner: Winner) -> TrialRecord | None:
        """What was begun last for a winner."""
        plan = self.plan
        mine = [record for record in self.records() if plan[record.number] == winner.entry]
        return mine[-1] if mine else None

    def ended(self, winner: Winner) -> TrialRecord | None:
        """The refit of a winner, if it has come to its end."""
        record = self.latest(winner)
        return record if record is not None and record.state == "COMPLETE" else None
