"""The ensemble: the best trials' probabilities averaged, where that is better than the winner alone.

Members are chosen on the validation images (`trainables.training.selection`), by the models that the trials
kept. Then they are refitted where the search refits, as far as there is time, and refits averaged in their
place and with their shares; so the ensemble has seen the validation images, and what is told of it on these
is what it had before.
Choosing costs a pass of the validation images, and the ensemble one of the test split, which it is scored on
once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from search.home import Home
from search.spec.sections import AUTO
from search.study.finalists import distinct
from search.study.planned import PlannedStudy
from search.study.search_study import SearchStudy
from search.study.trials import TrialRecord
from trainables.training.hparams import TRUNK_TRAINS

__all__ = ["EnsembleStudy", "made_of", "pool_of", "shares_told"]


def pool_of(search: SearchStudy) -> list[int]:
    """The trials that a search's ensemble may be made of now, best first; none where it is to have none.

    Of heads alone there is none unless the spec says how many: they are too much alike.
    """
    chosen = distinct(search, search.pool_size)
    tuned = any(each.strategy in TRUNK_TRAINS for each in chosen.values())
    if search.spec.search.ensemble == AUTO and not tuned:
        return []
    return list(chosen)


def shares_told(shares: Mapping[int, float]) -> str:
    """The members of an ensemble with their shares, for a person."""
    return ", ".join(f"{number} ({share:.0%})" for number, share in shares.items())


def made_of(role: str, trial: int, shares: Mapping[int, float]) -> str:
    """What was made of a winner, an `ensemble` or a `refit`, for a person."""
    return f"{role} of trials {shares_told(shares)}" if shares else f"{role} of trial {trial}"


class EnsembleStudy(PlannedStudy):
    """The ensembles: one for each pool that the search has had when it came to its end, if it paid.

    An entry has the pool that it was chosen from and its members' shares by trial, both as JSON has them, and
    which members are refits.
    """

    role = "ensemble"
    part = "ensemble"

    @classmethod
    def begin(
        cls,
        search: SearchStudy,
        home: Home,
        pool: Sequence[int],
        shares: Mapping[int, float],
        refitted: Sequence[int] = (),
    ) -> Self:
        """The study with an ensemble that was chosen."""
        study = cls.begun_in(search, home)
        first = next(iter(shares))
        begun = search.begun(first)
        assert begun is not None, f"trial {first} completed and was never begun"
        entry: dict[str, Any] = {
            "of": first,
            "pool": list(pool),
            "shares": {str(number): share for number, share in shares.items()},
            "refitted": sorted(refitted),
            "hparams": begun.hparams.to_dict(),
        }
        entry = json.loads(json.dumps(entry))  # as a plan has it
        if entry not in study.plan:
            study.extend([entry])
        return study

    def label(self, number: int) -> str:
        return shares_told(self.shares(number))

    def shares(self, number: int) -> dict[int, float]:
        """The shares of an ensemble's members, by trial."""
        return {int(trial): share for trial, share in self.plan[number]["shares"].items()}

    def tells_expected(self, number: int) -> bool:
        return bool(self.plan[number].get("refitted"))

    def tags(self, number: int) -> dict[str, str]:
        return {"role": self.role, "of": ", ".join(self.plan[number]["shares"])}

    def ended(self, pool: Sequence[int]) -> TrialRecord | None:
        """The ensemble of a pool, if it is made."""
        plan = self.plan
        mine = [r for r in self.records() if plan[r.number]["pool"] == list(pool) and r.state == "COMPLETE"]
        return mine[-1] if mine else None
