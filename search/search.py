"""One opened search: what every command, report and check reads of it, opened once."""

from __future__ import annotations

from functools import cached_property
from typing import Self

from search.home import Home
from search.spec.search_spec import SearchSpec, read_spec
from search.study.finalists import Finalist, FinalistStudy, standings
from search.study.search_study import SearchStudy
from search.tracking.links import Links

__all__ = ["Search"]


class Search:
    """A search that was launched: its home, spec, study and finalists, and where MLflow keeps its runs.

    The study is read when the search is opened and knows nothing of what other processes write later: open
    the search again to see that.

    Args:
        spec: as launched.
        home: where the search lives.
        study: its trials.
    """

    def __init__(self, spec: SearchSpec, home: Home, study: SearchStudy) -> None:
        self.spec = spec
        self.home = home
        self.study = study

    @classmethod
    def open(cls, home: Home, spec: SearchSpec | None = None) -> Self:
        """The search that was launched in `home`.

        Args:
            home: where the search lives.
            spec: in place of the one that is kept there, of the same search.

        Raises:
            BadInput: if there is none, or its spec is damaged.
            TransferSearchError: if Optuna's storage holds no such study.
        """
        if not home.spec.exists():
            home.check_free()
        spec = spec or read_spec(home.spec)
        return cls(spec, home, SearchStudy.open(spec, home))

    @classmethod
    def create(cls, spec: SearchSpec, home: Home) -> Self:
        """The search of a spec, whose study is made where Optuna's storage has none."""
        return cls(spec, home, SearchStudy.create(spec, home))

    @property
    def name(self) -> str:
        return self.home.name

    @property
    def metric(self) -> str:
        """The first objective."""
        return next(iter(self.spec.search.objective))

    @cached_property
    def finalists(self) -> FinalistStudy | None:
        """The study of the finalists' runs, if the search has come to them."""
        return FinalistStudy.within(self.study, self.home)

    def begin_finalists(self) -> FinalistStudy:
        """The study of the finalists' runs with all that are to be run, and their home."""
        self.finalists = begun = FinalistStudy.begin(self.study, self.home)
        self.home.finalists.make()
        return begun

    @property
    def standings(self) -> list[Finalist]:
        """The finalists, the winner first; empty until all their runs have ended."""
        return standings(self.study, self.finalists)

    @property
    def studies(self) -> list[tuple[Home, SearchStudy]]:
        """The search's own study and that of its finalists, if there is one, each with its home."""
        own: list[tuple[Home, SearchStudy]] = [(self.home, self.study)]
        return own + ([(self.home.finalists, self.finalists)] if self.finalists else [])

    @cached_property
    def links(self) -> Links:
        """Where people and programs find the runs and models of the search's trials."""
        return Links(self.spec, self.study)
