"""The conductor: hands out a study's trials and decides after each epoch, all from the study.

It knows nothing of Tune, whose adapters (`search.run.tuning`) only pass on what happens and what it decides.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Protocol

from search.errors import CheckpointsError
from search.home import Home
from search.run.capacity import Capacity
from search.run.checkpoints import Checkpoints
from search.run.deadlines import Deadlines, Overdue
from search.run.failures import Alike, Failure, FailureKind
from search.run.settlement import settled
from search.study.search_study import SearchStudy
from search.study.trials import Assignment, Ending
from trainables.record import BEST, EPOCHS, REPORTED, TEST_METRICS, TOLD
from trainables.training.keeping import expected_name

__all__ = ["Conductor", "NoTrial", "Observer", "RunOf"]

log = logging.getLogger(__name__)

_STARTS_WITHIN = 0.05
"""Seconds in which a process that is there takes a trial that was handed out, unless a draw is in the way."""


MOVES = 5
"""How often a trial may lose its node without one more epoch."""


class NoTrial(Enum):
    """Why the conductor hands out no trial."""

    YET = auto()
    EVER_AGAIN = auto()


class Observer(Protocol):
    """Whoever is told what happens to trials; never asked for a decision."""

    def trial_started(self, assignment: Assignment) -> None: ...

    def epoch_ended(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def attempt_failed(self, number: int, reason: str) -> None: ...

    def trial_moved(self, number: int, moves: int) -> None: ...

    def damage_found(self, number: int, what: str) -> None: ...

    def trial_ended(
        self, number: int, ending: Ending, best: Mapping[str, float] | None, reason: str
    ) -> None: ...


class RunOf(Protocol):
    """What knows MLflow's runs."""

    def __call__(self, number: int, *, wait: bool = False) -> str | None: ...


class Conductor:
    """Hands out trials and decides after each epoch, all from the study.

    Args:
        study: the truth.
        home: where trials keep their state.
        config: what is the same for every trial.
        capacity: how many trials may run.
        observers: told of everything, in this order, before the study is.
        run_of: MLflow's run id of a trial that `observers` were told has started; with `wait=True` waits
            for it; None where it is not known.
        should_stop: whether to hand out no more.
        was_waited_for: waits for room on the disks; whether there was none.
    """

    def __init__(
        self,
        study: SearchStudy,
        home: Home,
        config: Mapping[str, Any],
        *,
        capacity: Capacity,
        observers: Sequence[Observer],
        run_of: RunOf,
        should_stop: Callable[[], bool],
        was_waited_for: Callable[[], bool] = lambda: False,
    ) -> None:
        self.study = study
        self.home = home
        self.should_stop = should_stop
        self._checkpoints = Checkpoints(study, home)
        self._config = dict(config)
        self._capacity = capacity
        self._observers = observers
        self._run_of = run_of
        self._was_waited_for = was_waited_for
        self._checkpoints.tidy(trial.number for trial in study.trials() if trial.state.is_finished())
        self._waiting = study.interrupted()
        self._begun = len(study.trials())
        self._numbers: dict[str, int] = {}
        self._handed_out = 0.0
        self._max_epochs: dict[int, int] = {}
        self._failures: dict[int, int] = {}
        self._moves: dict[int, int] = {}  # since the trial's last new epoch
        self._deadlines = Deadlines(study.spec.search.trial_time)
        self._overdue: dict[int, Overdue] = {}
        self._alike = Alike() if not any(map(study.told, range(self._begun))) else None
        self._shares: dict[int, float] = {}
        self._runless: set[int] = set()  # trials whose MLflow run is not written down: none waits for it
        self._told: dict[int, set[int]] = {}
        self._last: dict[int, Mapping[str, float]] = {}
        self._verdicts: dict[int, bool] = {}  # whether the pruner would stop a trial at its last epoch

    def next(self, tune_id: str) -> dict[str, Any] | NoTrial:
        """A trial's configuration, or why there is none."""
        if self.should_end():
            return NoTrial.EVER_AGAIN
        if not self._capacity.for_more_than(len(self._numbers)):
            is_idle = time.monotonic() - self._handed_out > _STARTS_WITHIN
            if is_idle and not self._waiting and self._begun < self.study.budget:
                self.study.draw_ahead()
            return NoTrial.YET
        if self._waiting:
            assignment = self.study.continue_trial(self._waiting.pop(0), tune_id)
        elif self._begun < self.study.budget:
            assignment = self.study.ask(tune_id)
            self._begun += 1
        else:
            return NoTrial.EVER_AGAIN
        number = assignment.number
        self._numbers[tune_id] = number
        self._handed_out = time.monotonic()
        self._max_epochs[number] = assignment.hparams.epochs
        self._told[number] = set(self.study.told(number))
        self._deadlines.handed_out(assignment)
        for observer in self._observers:
            observer.trial_started(assignment)
        self._runless.add(number)
        return {
            **self._config,
            "number": number,
            "hparams": assignment.hparams.to_dict(),
            "folder": str(self.home.trial(number)),
            "checkpoints": self._checkpoints.uri(number),
        }

    def after_epoch(self, tune_id: str, result: Mapping[str, Any]) -> bool:
        """Takes an epoch's result; whether the trial goes on."""
        number = self._numbers[tune_id]
        epoch = int(result["epoch"])
        metrics = _metrics(result)
        best = {
            name: float(result[f"{BEST}/{name}"])
            for name in ("epoch", *REPORTED, *map(expected_name, REPORTED), *TEST_METRICS)
            if f"{BEST}/{name}" in result
        }
        self._last[number] = best
        self._alike = None
        self._deadlines.epoch_ended(number, epoch)
        for text in result.get(TOLD, ()):
            for observer in self._observers:
                observer.damage_found(number, text)
        before = {int(each["epoch"]): each for each in result.get(EPOCHS, ())}
        new = sorted({*before, epoch} - self._told[number])
        for each in new:
            if not self._tell(tune_id, each, metrics if each == epoch else before[each]):
                return False
        if epoch < max(self._told[number]):
            return True  # a trial that was moved, retried or resumed repeats what it had not yet saved
        # A pruner that climbs rungs answers once for an epoch: asked again, it has no objection any more.
        pruned = self._verdicts.pop(number) if epoch in new else self.study.report(number, epoch, metrics)
        if epoch >= self._max_epochs[number]:
            self._end(tune_id, Ending.COMPLETED)
            return False
        if pruned:
            pruner = self.study.spec.search.pruner
            self._end(tune_id, Ending.PRUNED, f"{pruner} pruned it at epoch {epoch}")
            return False
        if number in self._runless and (run := self._run_of(number)):
            self.study.ran_as(number, run)
            self._runless.discard(number)
        return True

    def _tell(self, tune_id: str, epoch: int, told: Mapping[str, float]) -> bool:
        """Tells everybody of an epoch that the study does not have; whether the trial may go on."""
        number, metrics = self._numbers[tune_id], _metrics(told)
        self._told[number].add(epoch)
        self._moves.pop(number, None)
        for observer in self._observers:
            observer.epoch_ended(number, epoch, metrics)
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            self._end(tune_id, Ending.DIVERGED, f"{', '.join(broken)} not finite at epoch {epoch}")
            return False
        self._verdicts[number] = self.study.report(number, epoch, metrics)
        return True

    def failed(self, tune_id: str, failure: Failure) -> bool:
        """Takes note that a trial's attempt failed; whether it is to be tried again."""
        number = self._numbers[tune_id]
        self._deadlines.failed(number)
        if overdue := self._overdue.pop(number, None):
            failure = Failure(kind=FailureKind.OTHER, message=overdue.reason, traceback=overdue.reason)
            if not overdue.hangs:
                ending = Ending.PRUNED if self._last.get(number) else Ending.ERRORED
                self._end(tune_id, ending, overdue.reason)
                return False
        if failure.kind is FailureKind.NODE_LOST:
            return self._moved(tune_id)
        log.warning("an attempt at %s %d failed: %s", self.study.role, number, failure.traceback)
        for observer in self._observers:
            observer.attempt_failed(number, failure.traceback)
        if failure.kind is FailureKind.NO_ROOM and self._was_waited_for():
            return True
        if failure.kind is FailureKind.OUT_OF_GPU_MEMORY:
            return self._out_of_memory(tune_id, failure.message)
        self._failures[number] = self._failures.get(number, 0) + 1
        if self._failures[number] <= self.study.spec.search.retries:
            return True
        self._end(tune_id, Ending.ERRORED, failure.traceback)
        if self._alike is not None:
            self._alike.failed(failure.message)
        return False

    def _moved(self, tune_id: str) -> bool:
        """Lets a trial that lost its node go on elsewhere, unless it loses one after another."""
        number = self._numbers[tune_id]
        self._moves[number] = self._moves.get(number, 0) + 1
        moves = self.study.moved(number)
        for observer in self._observers:
            observer.trial_moved(number, moves)
        if self._moves[number] <= MOVES:
            return True
        told = f"it lost its node {self._moves[number]} times without one more epoch"
        self._end(tune_id, Ending.ERRORED, f"{told}; it may be what ends them")
        return False

    def overdue(self, running: Collection[str]) -> list[str]:
        """Of the trials that have a process, those whose process is to be killed: they have no more time."""
        numbers = {self._numbers[tune_id]: tune_id for tune_id in running if tune_id in self._numbers}
        found = {each.number: each for each in self._deadlines.overdue(numbers)}
        new = [number for number in found if number not in self._overdue]
        self._overdue |= found
        return [numbers[number] for number in new]

    @property
    def running(self) -> int:
        """How many trials are handed out and have not ended."""
        return len(self._numbers)

    @property
    def common_cause(self) -> str | None:
        """Why no trial can run, where the first ones have all failed alike."""
        return None if self._alike is None else self._alike.cause

    def should_end(self) -> bool:
        """Whether nothing more is to run: the search was told to stop, or no trial can run."""
        return self.common_cause is not None or self.should_stop()

    def _out_of_memory(self, tune_id: str, said: str) -> bool:
        """Gives a trial a larger share of a GPU, once; whether it is to be tried again."""
        number, asked = self._numbers[tune_id], self.study.spec.resources.gpu
        if number not in self._shares and 0 < asked < 1:
            self._shares[number] = min(1.0, 2 * asked)
            return True
        shares = f"{asked:g}" + (f" and then {self._shares[number]:g}" if number in self._shares else "")
        self._end(tune_id, Ending.OUT_OF_MEMORY, f"with gpu {shares} (resources.gpu): {said}")
        return False

    def gpu_share(self, tune_id: str) -> float:
        """What a trial that is handed out takes of a GPU, or how many GPUs."""
        return self._shares.get(self._numbers[tune_id], self.study.spec.resources.gpu)

    def given_up(self, tune_id: str) -> None:
        """Takes back a trial that Tune will not try again, to hand it out once more."""
        number = self._numbers.pop(tune_id)
        self._deadlines.ended(number)
        self._waiting.append(number)

    def stopped(self) -> None:
        """Ends what still runs when the search stops before its time: `resume` goes on with it."""
        reason = "no trial could run" if self.common_cause else "the search was stopped"
        for tune_id in list(self._numbers):
            self._end(tune_id, Ending.INTERRUPTED, reason)

    def takes_too_much(self) -> bool:
        """Whether one more trial would take what is another search's."""
        return self._capacity.exceeds_share(len(self._numbers))

    def known(self, tune_id: str) -> bool:
        """Whether the trial is handed out and has not ended."""
        return tune_id in self._numbers

    def _learn_runs(self) -> None:
        """Writes down the runs of trials that had ended before MLflow told them."""
        for number in self._runless - set(self._numbers.values()):
            if run := self._run_of(number):
                self.study.ran_as(number, run)
                self._runless.discard(number)

    def _end(self, tune_id: str, ending: Ending, reason: str = "") -> None:
        number = self._numbers.pop(tune_id)
        self._deadlines.ended(number)
        best = self._last.pop(number, None) or None
        try:
            self._checkpoints.bring_home(number)
        except CheckpointsError as error:
            log.error("%s %d has not ended, since its model did not come: %s", self.study.role, number, error)
            ending, reason = Ending.INTERRUPTED, str(error)
        if ending in (Ending.ERRORED, Ending.OUT_OF_MEMORY):  # in an epoch that it may have written down
            best = settled(self.study, self.home, number, self._observers, best)
        for observer in self._observers:
            observer.trial_ended(number, ending, best, reason)
        run = self._run_of(number, wait=True) if number in self._runless else None
        self.study.end(number, ending, best, reason, run)
        if run is not None:
            self._runless.discard(number)
        self._learn_runs()
        if ending is not Ending.INTERRUPTED:
            try:
                self._checkpoints.clear(number)
            except CheckpointsError as error:
                log.warning("what %s %d no longer needs stays: %s", self.study.role, number, error)


def _metrics(told: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among what a trial says of an epoch."""
    return {name: float(told[name]) for name in REPORTED if name in told}
