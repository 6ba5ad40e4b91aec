"""A study whose runs are planned and not drawn: what a search does with its best trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from search.home import Home
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from trainables.training.hparams import HParams

__all__ = ["PlannedStudy"]

_PLAN = "plan"


class PlannedStudy(SearchStudy):
    """Runs that a plan names: run `n` is what entry `n` of a list says that is only ever added to.

    An entry has the hyperparameters of its run, as `hparams`, and the number of the search's trial that it is
    made of, as `of`.
    """

    part = ""
    """Behind the search's name, what the study is called; no search can be called so."""

    @classmethod
    def study_name(cls, spec: SearchSpec) -> str:
        return f"{spec.name}/{cls.part}"

    @classmethod
    def begun_in(cls, search: SearchStudy, home: Home) -> Self:
        """The study of a search, made where there is none, with what it has planned so far."""
        return cls.create(_unpruned(search.spec), home, part_of=search)

    @classmethod
    def within(cls, search: SearchStudy, home: Home) -> Self | None:
        """The study, if the search has come to it before."""
        return cls.find(_unpruned(search.spec), home)

    @property
    def plan(self) -> list[dict[str, Any]]:
        """The entries, by the number of their run."""
        return list(self._study.user_attrs.get(_PLAN, ()))

    def extend(self, entries: Sequence[dict[str, Any]]) -> None:
        """Plans more runs."""
        plan = self.plan + list(entries)
        self._study.set_user_attr(_PLAN, plan)
        self.budget = len(plan)

    def retry_failed(self) -> None:
        """Plans every run that failed once more."""
        plan = self.plan
        last = {str(plan[record.number]): record for record in self.records()}
        self.extend([plan[record.number] for record in last.values() if record.state == "FAIL"])

    def tags(self, number: int) -> dict[str, str]:
        entry = self.plan[number]
        return {"role": self.role, "of": str(entry["of"]), "seed": str(entry["hparams"]["seed"])}

    def _suggest(self, trial: Any) -> HParams:
        return self.spec.hparams.from_dict(self.plan[trial.number]["hparams"])


def _unpruned(spec: SearchSpec) -> SearchSpec:
    return spec.model_copy(update={"search": spec.search.model_copy(update={"pruner": "none"})})
