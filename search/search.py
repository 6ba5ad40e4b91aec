"""One opened search: what every command, report and check reads of it, opened once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from search.home import Home
from search.spec.search_spec import SearchSpec, read_spec
from search.spec.sections import Resources
from search.study.ensemble import EnsembleStudy, made_of, pool_of
from search.study.finalists import Finalist, FinalistStudy, standings
from search.study.optimism import corrected_accuracy
from search.study.refit import RefitStudy, Winner
from search.study.search_study import SearchStudy
from search.study.trials import TrialRecord
from search.tracking.links import Links
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import read_right
from trainables.record import MODEL_FOLDER, TEST_METRICS

__all__ = ["Champion", "Search"]


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A model that was made of the winner when the search had chosen, and takes its place.

    Attributes:
        role: what it is: `refit` or `ensemble`.
        trial: the number of the trial that it is made of.
        record: its run, in a study of its own.
        home: where that run has its files.
        shares: of an ensemble, what part each trial has in it.
        has_seen_validation: whether validation images trained it.
    """

    role: str
    trial: int
    record: TrialRecord
    home: Home
    shares: Mapping[int, float] = field(default_factory=dict)
    has_seen_validation: bool = True

    @property
    def told(self) -> str:
        """The same for a person."""
        return made_of(self.role, self.trial, self.shares)

    @property
    def test_scores(self) -> dict[str, float]:
        """What it has on the test split, under names that say what it is."""
        best = self.record.best or {}
        return {f"{self.role}_{name}": best[name] for name in TEST_METRICS if name in best}


def _right(folder: Path) -> list[bool] | None:
    try:
        return read_right(folder)
    except Damaged:
        return None


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
    def winner(self) -> Winner | None:
        """The best of the finalists, or else the best trial; None as long as there is none."""
        ranked = self.standings
        if ranked:
            assert self.finalists is not None, "finalists stand only where their study is"
            assert ranked[0].run is not None, "a winner has completed a run"
            stands = self.finalists.begun(ranked[0].run)
            return None if stands is None else Winner(trial=ranked[0].trial, hparams=stands.hparams)
        if self.spec.multi_objective or self.spec.search.finalists is not None:
            return None
        leader = self.study.leader()
        begun = None if leader is None else self.study.begun(leader[0])
        return None if begun is None else Winner(trial=begun.number, hparams=begun.hparams)

    @cached_property
    def refits(self) -> RefitStudy | None:
        """The study of refits, if the search has come to one."""
        return RefitStudy.within(self.study, self.home)

    def begin_refits(self, winners: Sequence[Winner], resources: Resources) -> RefitStudy:
        """The study of refits with those of some winners, which take `resources` each, and its home."""
        self.refits = begun = RefitStudy.begin(self.study, self.home, winners, resources)
        self.home.refit.make()
        return begun

    def correct(self) -> float | None:
        """The best trial's accuracy on new images, as far as the validation images tell; written down.

        None where another metric is the objective, or trials of old did not write down what that needs.
        """
        best = self.study.ranked() if list(self.spec.search.objective) == ["val_accuracy"] else []
        right = [_right(self.home.trial(trial.number)) for trial in best]
        if not right or right[0] is None:
            return None
        known = [each for each in right if each is not None and len(each) == len(right[0])]
        value = corrected_accuracy(known, self.spec.search.seed)
        if value is not None:
            self.study.corrected = {"trial": best[0].number, "value": value}
        return value

    @property
    def pool(self) -> list[int]:
        """The trials that an ensemble may be made of, best first."""
        return pool_of(self.study)

    @cached_property
    def ensembles(self) -> EnsembleStudy | None:
        """The study of ensembles, if one was ever made."""
        return EnsembleStudy.within(self.study, self.home)

    def members(self, trials: Sequence[int]) -> list[Winner]:
        """Trials as winners: what an ensemble is made of."""
        begun = {number: self.study.begun(number) for number in trials}
        return [Winner(trial=number, hparams=each.hparams) for number, each in begun.items() if each]

    def refit_folders(self, winners: Sequence[Winner]) -> dict[int, Path]:
        """Where the models of refits lie, by trial, of those that have come to their end."""
        ended = {each.trial: self.refits.ended(each) for each in winners} if self.refits else {}
        return {
            trial: self.home.refit.trial(record.number) / MODEL_FOLDER
            for trial, record in ended.items()
            if record is not None
        }

    def begin_ensemble(
        self, pool: Sequence[int], shares: Mapping[int, float], refitted: Sequence[int]
    ) -> EnsembleStudy:
        """The study of ensembles with one that was chosen, and its home."""
        self.ensembles = begun = EnsembleStudy.begin(self.study, self.home, pool, shares, refitted)
        self.home.ensemble.make()
        return begun

    @property
    def champion(self) -> Champion | None:
        """What takes the winner's place, if that is made."""
        pool = self.pool if self.ensembles else []
        if self.ensembles and (record := self.ensembles.ended(pool)):
            shares = self.ensembles.shares(record.number)
            return Champion(
                role=self.ensembles.role,
                trial=pool[0],
                record=record,
                home=self.home.ensemble,
                shares=shares,
                has_seen_validation=self.ensembles.tells_expected(record.number),
            )
        winner = self.winner if self.refits else None
        if winner is None or self.refits is None or (refit := self.refits.ended(winner)) is None:
            return None
        return Champion(role=self.refits.role, trial=winner.trial, record=refit, home=self.home.refit)

    @property
    def lacks_ensemble(self) -> bool:
        """Whether an ensemble of the best trials is yet to be looked for."""
        pool = self.pool
        return len(pool) > 1 and self.study.ensemble.get("pool") != pool

    @property
    def to_refit(self) -> Winner | None:
        """The winner, where it is yet to be refitted."""
        winner = self.winner if self.study.is_refitted else None
        champion = self.champion
        if winner is None or (champion is not None and champion.role != RefitStudy.role):
            return None
        latest = self.refits.latest(winner) if self.refits else None
        return winner if latest is None or latest.state == "RUNNING" else None

    @property
    def studies(self) -> list[tuple[Home, SearchStudy]]:
        """The search's own study, and those of what was made of its best, each with its home."""
        own: list[tuple[Home, SearchStudy]] = [(self.home, self.study)]
        own += [(self.home.finalists, self.finalists)] if self.finalists else []
        own += [(self.home.ensemble, self.ensembles)] if self.ensembles else []
        return own + ([(self.home.refit, self.refits)] if self.refits else [])

    @cached_property
    def links(self) -> Links:
        """Where people and programs find the runs and models of the search's trials."""
        return Links(self.spec, self.study)
