"""The study: the one durable truth about every trial."""

from __future__ import annotations

import itertools
import sqlite3
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from typing import Any, Self, cast

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from search.errors import TransferSearchError
from search.home import Home
from search.spec.search_spec import SearchSpec
from search.study import space
from search.study.agenda import PHASE, SCREEN, Agenda, Step
from search.study.constraints import misses
from search.study.facts import ID, LOOKS_FOR_ENSEMBLE, REFIT, RULE
from search.study.pruners import build_pruner
from search.study.results import ENDING, EPOCHS, RUN, StudyResults
from search.study.samplers import build_sampler
from search.study.storage import DriverStorage, database, existing, is_used, settle
from search.study.trials import ENDINGS, STARTED, Assignment, Ending
from trainables.seeds import derived_seed
from trainables.training.hparams import HParams
from trainables.training.keeping import LAST_EPOCHS, value_of

__all__ = ["SearchStudy"]

optuna.logging.set_verbosity(optuna.logging.WARNING)


_TELLING = (Ending.DIVERGED, Ending.ERRORED, Ending.OUT_OF_MEMORY)
"""The failures that say something of a trial's hyperparameters."""
_OWN_DRAWS, _DRAWS = 5, 40
"""How often a sampler, and with it a random one, draws at most until it is no head that is there."""
_MOVES = "moves"
_AGENDA = "agenda"


class SearchStudy(StudyResults):
    """One search's Optuna study, with the few operations that a driver needs."""

    role = "trial"
    """What a trial of this study is to the search."""

    def __init__(self, study: optuna.Study, spec: SearchSpec) -> None:
        super().__init__(study, spec)
        self._trials: dict[int, optuna.Trial] = {}
        self._solved: set[int] = (
            set()
        )  # of these the trials whose head is solved for, and nothing else trained
        self._agenda = Agenda(spec, self.budget) if study.user_attrs.get(_AGENDA) else None

    @classmethod
    def study_name(cls, spec: SearchSpec) -> str:
        """Optuna's name of the study."""
        return spec.name

    @classmethod
    def create(
        cls,
        spec: SearchSpec,
        home: Home,
        *,
        part_of: SearchStudy | None = None,
        start: Sequence[Mapping[str, Any]] = (),
    ) -> Self:
        """A new study with the default trial and then those of `start` enqueued, or the one that is there.

        One that is a part of another shares its search id, and begins with nothing to run.
        """
        study = optuna.create_study(
            study_name=cls.study_name(spec),
            storage=DriverStorage(database(spec, home)),
            directions=list(spec.search.objective.values()),
            load_if_exists=True,
        )
        if ID not in study.user_attrs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(list(spec.search.objective))  # as other programs show them
            study.set_user_attr("home", str(home.root))
            study.set_user_attr("budget", 0 if part_of else spec.search.trials)
            study.set_user_attr(RULE, part_of.rule if part_of else LAST_EPOCHS)
            study.set_user_attr(REFIT, part_of is None and spec.search.refit)
            study.set_user_attr(LOOKS_FOR_ENSEMBLE, part_of is None)
            for step in [] if part_of else first_steps(spec, start):
                study.enqueue_trial(dict(step.params), _attributes(step), skip_if_exists=True)
            study.set_user_attr(_AGENDA, part_of is None and Agenda.has(spec))
            # The last of it: without an id it was never finished.
            study.set_user_attr(ID, part_of.search_id if part_of else uuid.uuid4().hex)
        return cls._ready(study, spec)

    @classmethod
    def find(cls, spec: SearchSpec, home: Home) -> Self | None:
        """The study, if its storage holds it; makes nothing."""
        if not (is_used(spec) if spec.storage_url else (home.root / "study.db").exists()):
            return None
        try:
            study = optuna.load_study(
                study_name=cls.study_name(spec), storage=DriverStorage(database(spec, home))
            )
        except KeyError:
            return None
        return cls._ready(study, spec) if ID in study.user_attrs else None

    @classmethod
    def open(cls, spec: SearchSpec, home: Home) -> Self:
        """The study of a search that was launched.

        Raises:
            TransferSearchError: if its storage holds no such study.
        """
        found, folders = cls.find(spec, home), sum(1 for _ in home.checkpoints.glob("[0-9]*"))
        if found is None or (folders and not found.trials()):
            where = f"the storage {spec.storage}" if spec.storage else str(home.root / "study.db")
            has = "holds no study of that name" if found is None else "knows none of its trials"
            raise TransferSearchError(
                f"Optuna's study of the search {spec.name!r} is gone: {where} {has}, though {home.root} has "
                f"the folders of {folders} trials. Put the database back from a copy of it and try again; or "
                f"launch {home.spec} under a new name, which begins anew and leaves these as they are"
            )
        return found

    @classmethod
    def is_taken(cls, spec: SearchSpec, home: Home) -> bool:
        """Whether the spec's storage holds a study of that name that no launch in `home` has left.

        Raises:
            BadInput: if the storage cannot be opened.
        """
        there = existing(spec)
        if there is None:
            return False
        try:
            study = optuna.load_study(study_name=cls.study_name(spec), storage=there)
        except KeyError:
            return False
        begun = any(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))
        return begun or study.user_attrs.get("home") != str(home.root)

    def wait_for_storage(self, tell: Callable[[str], None]) -> None:
        """Waits from now on where the storage is away, and tells so; else that is an error."""
        storage = self._study._storage
        assert isinstance(storage, DriverStorage)
        storage.wait_for_database(tell)

    def discard(self) -> None:
        """Removes the study of a launch that came to nothing; a storage that is gone needs no more."""
        with suppress(KeyError, SQLAlchemyError):
            storage = self._study._storage
            assert isinstance(storage, DriverStorage)
            storage.discard(self._study._study_id)

    def settle(self, home: Home) -> None:
        """Leaves all that was written in the file of the study itself, where that is one in the home."""
        file = home.root / "study.db"
        if self.spec.storage_url is None and file.exists():
            with suppress(sqlite3.Error):  # somebody reads it: it is whole with what lies beside it
                settle(file)

    @classmethod
    def _ready(cls, study: optuna.Study, spec: SearchSpec) -> Self:
        study.sampler = build_sampler(spec, len(study.get_trials(deepcopy=False)), _says_bad)
        study.pruner = build_pruner(spec, partial(_hparams_of, spec))
        return cls(study, spec)

    # What happens

    def retry_failed(self) -> None:
        """Enqueues the parameters of every failed trial, and raises the budget by as many."""
        failed = [trial for trial in self.trials() if trial.state == TrialState.FAIL]
        for trial in failed:
            self._study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        self.budget += len(failed)

    def interrupted(self) -> list[int]:
        """Numbers of the trials that are RUNNING though no driver runs them, to be handed out first."""
        return [
            trial.number
            for trial in self.trials()
            if trial.state == TrialState.RUNNING and trial.number not in self._trials
        ]

    def continue_trial(self, number: int, tune_trial_id: str = "") -> Assignment:
        """Takes an interrupted trial up again, with the hyperparameters that it was begun with."""
        trial = self._trials[number] = self._trial(number)
        # One that was enqueued is RUNNING as it is drawn, and its driver may have died before it wrote more.
        assignment = self.begun(number) or Assignment(number, self._suggest(trial), 1)
        self._start(assignment, tune_trial_id)
        return assignment

    def ask(self, tune_trial_id: str = "") -> Assignment:
        """A new trial's number and hyperparameters, written down: nobody else knows of it yet."""
        assignment, self._ahead = self._ahead or self._drawn(), None
        self._start(assignment, tune_trial_id)
        trial = self._trials[assignment.number]
        assert isinstance(trial.storage, DriverStorage)
        trial.storage.write(trial._trial_id)
        return assignment

    def _start(self, assignment: Assignment, tune_trial_id: str) -> None:
        """Notes who runs a trial: at once, since every write to the database costs."""
        started = {
            "hparams": assignment.hparams.to_dict(),
            "times": assignment.begun + 1,
            "tune_trial_id": tune_trial_id,
            "at": datetime.now().isoformat(),  # as Optuna tells times
        }
        self._trials[assignment.number].set_user_attr(STARTED, started)
        if _only_solves(assignment.hparams):
            self._heads[assignment.number] = assignment.hparams

    def draw_ahead(self) -> None:
        """Draws what `ask` will give next while there is time; until then it is nowhere but in memory.

        It then knows nothing of results that come in between: of one trial fewer than it might. What the
        agenda gives is written down as it is asked for, so that is not drawn before it is wanted.
        """
        if self._ahead is None and not self._has_waiting and (self._agenda is None or self._agenda.is_done):
            self._ahead = self._drawn()

    @property
    def _has_waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _drawn(self) -> Assignment:
        if self._agenda is not None and not self._agenda.is_done and not self._has_waiting:
            step = self._agenda.next(self.trials(), self.ranked(), self.seconds_spent, self.refit_times)
            if step is not None:
                self._study.enqueue_trial(dict(step.params), _attributes(step))
        trial, hparams = self._another()
        self._trials[trial.number] = trial
        return Assignment(trial.number, hparams, 0)

    def _another(self) -> tuple[optuna.Trial, HParams]:
        """What is enqueued, or else a draw; as far as possible none of a head that is there.

        A sampler that draws nothing else, as one may that looks for the best, gives way to a random one.
        """
        is_given, sampler = self._has_waiting, self._study.sampler
        try:
            for draw in itertools.count(1):
                trial = self._study.ask()
                hparams = self._suggest(trial)
                if is_given or draw == _DRAWS or not self._is_there(hparams):
                    return trial, hparams
                cast(DriverStorage, trial.storage).forget(trial._trial_id)
                if draw == _OWN_DRAWS:
                    seed = derived_seed(self.spec.search.seed, "another", trial.number) % 2**32
                    self._study.sampler = optuna.samplers.RandomSampler(seed=seed)
        finally:
            self._study.sampler = sampler
        raise AssertionError("the draws never end")

    @cached_property
    def _heads(self) -> dict[int, HParams]:
        """The trials that only solve for a head."""
        known = {trial.number: _hparams_of(self.spec, trial) for trial in self.trials()}
        return {number: each for number, each in known.items() if each is not None and _only_solves(each)}

    def _is_there(self, hparams: HParams) -> bool:
        """Whether this is a head that was solved for: to do it again would give the same."""
        same = (replace(head, seed=hparams.seed) == hparams for head in self._heads.values())
        return _only_solves(hparams) and any(same)

    def _suggest(self, trial: optuna.Trial) -> HParams:
        seed = derived_seed(self.spec.search.seed, "trial", trial.number)
        return space.suggest(trial, self.spec, seed)

    def ran_as(self, number: int, run: str) -> None:
        """Writes down MLflow's run of a trial."""
        # One that has ended Optuna changes no more; what was told of it as such is looked at first.
        if number not in self._trials or f"{RUN} {number}" in self._study.user_attrs:
            self._study.set_user_attr(f"{RUN} {number}", run)
        elif self._frozen(number).user_attrs.get(RUN) != run:
            self._trials[number].set_user_attr(RUN, run)

    def moved(self, number: int) -> int:
        """Counts that the trial lost its node and goes on elsewhere; how often it did."""
        moves = int(self._frozen(number).user_attrs.get(_MOVES, 0)) + 1
        self._trials[number].set_user_attr(_MOVES, moves)
        return moves

    def report(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Tells Optuna an epoch's value, and returns whether its pruner would stop the trial."""
        trial = self._trials[number]
        # Optuna takes no reports with several objectives. And the value of a head that was solved for is its
        # last: among those that others have after their first epoch it would prune them.
        told = self.told(number)
        if self.spec.multi_objective or number in self._heads:
            trial.set_user_attr(EPOCHS, sorted(told | {epoch}))
            return False
        (metric,) = self.spec.search.objective
        if epoch not in told:
            trial.report(metrics[metric], epoch)
        return trial.should_prune()

    def end(
        self,
        number: int,
        ending: Ending,
        best: Mapping[str, float] | None,
        reason: str = "",
        run: str | None = None,
    ) -> None:
        """Tells a trial's ending once; an interrupted trial stays as it is, for `resume`.

        Args:
            number: Optuna's number of the trial.
            ending: a row of the table.
            best: metrics of the kept epoch, as in `TrialRecord`; None if no epoch ended.
            reason: for people: why it was pruned or failed.
            run: MLflow's run of the trial, where `ran_as` was not told of it.
        """
        row = ENDINGS[ending]
        if row.optuna is None:
            if run is not None:
                self.ran_as(number, run)
            return
        if run is not None and f"{RUN} {number}" in self._study.user_attrs:
            self.ran_as(number, run)
        trial = self._trials.pop(number, None) or self._trial(number)
        trial.set_user_attr(ENDING, {"ending": ending.value, "reason": reason, "best": best, "run": run})
        values = None
        if row.optuna == TrialState.COMPLETE:
            assert best is not None, f"trial {number} completed without an epoch"
            values = [value_of(best, metric) for metric in self.spec.search.objective]
        if values is not None or row.optuna == TrialState.PRUNED:
            for name, missed in misses(best or {}, self.spec.search.constraints).items():
                trial.set_constraint(name, missed)
        self._study.tell(trial, values, state=row.optuna)

    def _trial(self, number: int) -> optuna.Trial:
        return optuna.trial.Trial(self._study, self._frozen(number)._trial_id)


def first_steps(spec: SearchSpec, start: Sequence[Mapping[str, Any]] = ()) -> list[Step]:
    """What is run before all else; of an agenda its first step, since the others follow from results."""
    first = space.first_params(spec)
    if Agenda.has(spec):
        steps = [Step(phase=SCREEN, params=next(first))]
    else:
        steps = [Step(phase="", params=params) for params in first]
    return [*steps, *(Step(phase="", params=params) for params in start)]


def _attributes(step: Step) -> dict[str, Any]:
    return {PHASE: step.phase} if step.phase else {}


def _only_solves(hparams: HParams) -> bool:
    return hparams.strategy == "probe" and hparams.head_is_solved


def _says_bad(trial: FrozenTrial) -> bool:
    """Whether a failed trial failed by its hyperparameters, as far as anybody can tell."""
    told = trial.user_attrs.get(ENDING)
    return told is not None and Ending(told["ending"]) in _TELLING


def _hparams_of(spec: SearchSpec, trial: FrozenTrial) -> HParams | None:
    started = trial.user_attrs.get(STARTED)
    return None if started is None else spec.hparams.from_dict(started["hparams"])
