"""What MLflow is told, behind the search's back and never lost.

Every event is first appended to the trial's file in the home's outbox, then handed to a sender, a process
of its own (`search.tracking.sender`), since MLflow's client would otherwise take turns with the search. A
trial's file is removed when MLflow has acknowledged its end. A search whose driver or sender was killed, or
whose server was away, is made whole by sending what is left: sending twice does no harm. No search waits for
MLflow, but a new one for its parent run.
"""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.errors import Refused, TrackingError
from search.home import Home
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.study.trials import Assignment, Ending
from search.tracking.events import (
    Close,
    DamageFound,
    Data,
    End,
    Epoch,
    Event,
    Failed,
    Flush,
    Moved,
    Open,
    Start,
    Summary,
    TrialEvent,
)
from search.tracking.line import Line, Sender, started
from search.tracking.outbox import Outbox
from search.tracking.overview import Overview
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import Epochs, read_epochs

__all__ = ["Tracker"]

log = logging.getLogger(__name__)

_OPEN_SECONDS = 120.0
_END_SECONDS = 10.0
_RUN_SECONDS = 2.0
_QUIET_SECONDS = 20.0
"""How long the end of a search waits for a sender from which nothing is heard."""
_FULL_SECONDS = 2.0
_SENDERS = 3
"""How many senders may die, one after another, while the search waits for what they send."""
_CLASSES = 100  # that the profile of a data set names
_NAME_LENGTH = 200
_DIGEST_LENGTH = 36  # MLflow takes no more


class Tracker:
    """Tells MLflow of one search; an `Observer` of its trials.

    The sender starts at once and opens the parent run while the caller does other work; `open` waits for
    that, unless the study knows the run already.

    Args:
        spec: the search's spec, already launched.
        home: its outbox holds what MLflow has not acknowledged.
        study: is told the parent run's id.
        within: the tracker of the search that this study is a part of; its parent run is used, and
            left for it to end.
        sender: one that is `ready_sender`; None: starts one.
    """

    def __init__(
        self,
        spec: SearchSpec,
        home: Home,
        study: SearchStudy,
        *,
        within: Tracker | None = None,
        sender: Sender | None = None,
    ) -> None:
        self._home = home
        self._outbox = Outbox(home.outbox)
        self._study = study
        self._is_part = within is not None
        known = study if within is None else within._study
        self._opening = Open(
            spec=spec.to_yaml(),
            home=str(home.root),
            search_id=study.search_id,
            role=study.role,
            parent=known.parent_run,
            experiment=known.experiment,
        )
        self._answers: dict[str, Any] = {}
        self._heard = 0
        self._silent_since: float | None = None  # when it was told what it has not answered
        self._changed = threading.Condition()
        self._asked = 0
        self._unsent: dict[str, Event] = {}  # of the search itself, which no outbox keeps: the last of a kind
        self._waited_in_vain = -1
        self._use(sender or started(home))

    # The sender

    def _use(self, sender: Sender) -> None:
        self._line = Line(sender)
        threading.Thread(target=self._listen, args=(sender,), name="mlflow", daemon=True).start()
        self._line.say(self._opening)

    def _listen(self, process: Sender) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # torn: it has just died
            with self._changed:
                self._answers.update(answer)
                if any(told for name, told in answer.items() if name != "away"):
                    self._heard += 1
                    self._silent_since = None
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _tell(self, event: Event) -> None:
        """Hands an event to the sender; to a new one, with all that is left, where that has died."""
        self._silent_since = self._silent_since or time.monotonic()
        if event.about is None:
            self._unsent.pop(event.kind, None)
            self._unsent[event.kind] = event
        if self._hears:
            self._line.say(event)
            return
        log.warning("the process that sends to MLflow has ended; starting another")
        self._use(started(self._home))
        self._send_outbox()
        for each in self._unsent.values():
            self._line.say(each)

    @property
    def _hears(self) -> bool:
        """Whether the sender lives, as far as one can know."""
        return not self._line.is_broken and self._line.process.poll() is None

    def _answer(self, name: str, timeout: float, quiet: float | None = None) -> Any:
        """What the sender says of `name`; None where it says nothing in time, or has died.

        Args:
            name: of the answer.
            timeout: seconds in all.
            quiet: seconds without a word of it; None: `timeout`.
        """
        process, until = self._line.process, time.monotonic() + timeout
        with self._changed:
            while name not in self._answers and process.poll() is None:
                heard = self._heard
                left = min(until - time.monotonic(), quiet or timeout)
                if left <= 0 or not self._changed.wait_for(
                    lambda heard=heard: self._heard != heard or process.poll() is not None,  # type: ignore[misc]
                    timeout=left,
                ):
                    break
            return self._answers.get(name)

    def _send_outbox(self) -> None:
        """Sends what is left, and what a crash or a disk may have taken from it."""
        for number in self._outbox.numbers():
            events, damaged = self._outbox.events(number)
            begun = self._study.begun(number)
            if begun is not None and not any(isinstance(event, Start) for event in events):
                events.insert(0, self._start(begun, again=True))
            if damaged:
                ends = [event for event in events if isinstance(event, End)] or self._ended(number)
                others = [event for event in events if not isinstance(event, End)]
                events = [*others, *self._retold(number), *ends]
            for event in events:
                self._line.say(event.again())

    def _retold(self, number: int) -> list[TrialEvent]:
        """A trial's epochs as its folder and the study know them; MLflow takes those that it lacks."""
        told = self._study.told(number)
        return [
            _epoch(number, epoch, known) for epoch, known in self._recorded(number).items() if epoch in told
        ]

    def _ended(self, number: int) -> list[TrialEvent]:
        """A trial's end as the study knows it."""
        return [
            _end(number, record.ending, record.best, record.reason)
            for record in self._study.records()
            if record.number == number and record.ending is not None
        ]

    def _recorded(self, number: int) -> Epochs:
        try:
            return read_epochs(self._home.trial(number))
        except Damaged as damage:
            log.warning("%s %d: %s", self._study.role, number, damage)
            return {}

    # The search

    @property
    def outbox(self) -> Path:
        """Where what MLflow has not taken is kept."""
        return self._home.outbox

    @property
    def refusals(self) -> Mapping[int, str]:
        """What MLflow refused for good, by trial, and why."""
        return self._outbox.refusals()

    def open(self) -> None:
        """Waits for the parent run where the study does not know it yet.

        Raises:
            Refused: if MLflow does not know the user.
            TrackingError: if MLflow cannot be written.
        """
        if self._opening.parent and self._opening.experiment:
            return
        opened = self._answer("opened", _OPEN_SECONDS) or {"error": f"no answer; see {self._home.log}"}
        if "refused" in opened:
            raise Refused(opened["refused"])
        if "error" in opened:
            raise TrackingError(opened["error"])
        if (self._study.parent_run, self._study.experiment) != (opened["parent"], opened["experiment"]):
            self._study.parent_run, self._study.experiment = opened["parent"], opened["experiment"]

    def replay(self) -> None:
        """Opens the run, and sends what an earlier driver left.

        Raises:
            Refused, TrackingError: as `open`.
        """
        self.open()
        self._send_outbox()

    def flush(self, timeout: float) -> bool:
        """Waits until all that was told is sent; False where MLflow does not take it in time.

        Nobody waits for a sender from which nothing is heard, or that says that MLflow is away. One that dies
        of what it is to send is followed by another, a few times.
        """
        for _ in range(_SENDERS):
            self._asked += 1
            name, line = f"flushed {self._asked}", self._line
            self._tell(Flush(answer=name))
            silent = time.monotonic() - (self._silent_since or time.monotonic())
            left = 0.0 if self._answers.get("away") else _QUIET_SECONDS - silent
            if line is not self._line:  # it has just been started
                left = _OPEN_SECONDS
            if self._answer(name, timeout, max(_RUN_SECONDS, left)):
                self._unsent.clear()
                return True
            if self._hears:
                return False
        return False

    def summarize(self, known: Overview) -> None:
        """Puts what is known of the whole search on its run; telling it twice changes nothing."""
        self._tell(Summary(tags=known.tags, points=list(known.points), texts=known.texts))

    def describe_data(self) -> None:
        """Tells the search's run what it is trained on, as far as the study knows."""
        known, spec = self._study.premises, self._study.spec
        if known is None:
            return
        profile = {"images": known["images"], "classes": known["classes"][:_CLASSES]}
        self._tell(
            Data(
                name=Path(str(spec.data.source)).name[:_NAME_LENGTH] or "data",
                digest=str(known["data"])[:_DIGEST_LENGTH],
                source={"source": str(spec.data.source), "modality": spec.data.modality},
                profile={**profile, "number of classes": len(known["classes"])},
            )
        )

    def close(self, state: str, timeout: float = 600.0) -> bool:
        """Sends the rest, ends the parent run and the sender; False if something is left."""
        sent = self.flush(timeout)
        self._note_runs()
        if sent and not self._is_part:
            self._tell(Close(state=state))
            sent = self.flush(timeout)
        opened = self._answers.get("opened", {})
        if not self._is_part and "parent" in opened and opened["parent"] != self._study.parent_run:
            # Somebody deleted the one before.
            self._study.parent_run, self._study.experiment = opened["parent"], opened["experiment"]
        self.abort(_END_SECONDS if sent else 0.0)
        return sent and not self.refusals

    def abort(self, seconds: float = _END_SECONDS) -> None:
        """Ends the sender after what it is sending now, within a time; what is left stays in the outbox."""
        self._line.hang_up()
        try:
            self._line.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._line.process.kill()
            self._line.process.wait()

    def learn_runs(self) -> None:
        """Writes down the runs of trials that had ended before MLflow told them; waits for these."""
        if any(record.mlflow_run_id is None for record in self._study.records()):
            self.flush(_OPEN_SECONDS)
        self._note_runs()

    def _note_runs(self) -> None:
        """Writes down runs that MLflow told of after their trials had ended, or made again."""
        for record in self._study.records():
            run = self.run_of(record.number)
            if run not in (None, record.mlflow_run_id):
                self._study.ran_as(record.number, run)

    # What the conductor tells

    def run_of(self, number: int, *, wait: bool = False) -> str | None:
        """The MLflow run of a trial that has started; None as long as MLflow has not answered, or is away.

        Where waiting was in vain, nobody waits again until the sender has been heard.
        """
        name = f"run {number}"
        if wait and name not in self._answers and self._heard != self._waited_in_vain:
            if self._answer(name, _RUN_SECONDS) is None:
                self._waited_in_vain = self._heard
        run = self._answers.get(name)
        return None if run is None else str(run)

    def trial_started(self, assignment: Assignment, again: bool = False) -> None:
        """Opens the trial's run, whose id `run_of` then knows.

        Where MLflow is away the run is opened later, from the outbox, and found by its tags. So is a
        run that may be there already: of a trial that was begun before, or that is told `again`. Of such a
        trial the epochs are told once more, since a crash may have taken what was said of them.
        """
        self._put(self._start(assignment, again=again))
        if assignment.begun or again:
            for event in self._retold(assignment.number):
                self._put(event)

    def _start(self, assignment: Assignment, *, again: bool) -> Start:
        return Start(
            trial=assignment.number,
            at=int(time.time() * 1000),
            begun=assignment.begun,
            replayed=again,
            params=assignment.hparams.active,
            tags=self._study.tags(assignment.number),
        )

    def epoch_ended(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        self._put(_epoch(number, epoch, metrics))

    def attempt_failed(self, number: int, reason: str) -> None:
        self._put(Failed(trial=number, reason=reason))

    def trial_moved(self, number: int, moves: int) -> None:
        self._put(Moved(trial=number, moves=moves))

    def damage_found(self, number: int, what: str) -> None:
        self._put(DamageFound(trial=number, what=what))

    def trial_ended(self, number: int, ending: Ending, best: Mapping[str, float] | None, reason: str) -> None:
        self._put(_end(number, ending, best, reason))

    def _put(self, event: TrialEvent) -> None:
        while True:
            try:
                self._outbox.add(event)
                break
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                log.warning("the disk of %s is full; waiting until there is room", self.outbox)
                time.sleep(_FULL_SECONDS)
        self._tell(event)


def _end(number: int, ending: Ending, best: Mapping[str, float] | None, reason: str) -> End:
    told = None if best is None else dict(best)
    return End(trial=number, at=int(time.time() * 1000), ending=ending, best=told, reason=reason)


def _epoch(number: int, epoch: int, metrics: Mapping[str, float]) -> Epoch:
    return Epoch(trial=number, epoch=epoch, metrics=dict(metrics))
