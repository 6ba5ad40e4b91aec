"""What MLflow is told, behind the search's back and never lost.

Every event is first appended to the trial's file in the home's outbox, then handed to a sender, a process
of its own (`search.sender`), since MLflow's client would otherwise take turns with the search. A trial's
file is removed when MLflow has acknowledged its end. A search whose driver or sender was killed, or whose
server was away, is made whole by sending what is left: sending twice does no harm.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from search.errors import Refused, TrackingError
from search.home import Home
from search.processes import environment, python
from search.spec.search_spec import SearchSpec
from search.study.search_study import Assignment, Ending, SearchStudy

__all__ = ["Sender", "Tracker", "ready_sender"]

log = logging.getLogger(__name__)

_OPEN_SECONDS = 120.0
_START_SECONDS = 30.0


Sender: TypeAlias = subprocess.Popen[str]


def _started(home: Home) -> Sender:
    with home.log.open("ab") as errors:
        return subprocess.Popen(
            python("search.tracking.sender"),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the driver, who ends the sender in order
        )


@contextmanager
def ready_sender(home: Home) -> Iterator[Sender]:
    """A sender that imports MLflow while the caller does other work; of no use after the block."""
    with _started(home) as process:
        try:
            yield process
        finally:
            process.kill()  # it has ended already where a tracker used it


class Tracker:
    """Tells MLflow of one search; an `Observer` of its trials.

    The sender starts at once and opens the parent run while the caller does other work; `replay` waits
    for it.

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
        self._study = study
        self._is_part = within is not None
        self._search = {
            "spec": spec.to_yaml(),
            "home": str(home.root),
            "search_id": study.search_id,
            "role": study.role,
            "parent": None if within is None else within._study.parent_run,
        }
        self._answers: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._asked = 0
        self._use(sender or _started(home))

    # The sender

    def _use(self, sender: Sender) -> None:
        self._process = sender
        threading.Thread(target=self._listen, args=(self._process,), name="mlflow", daemon=True).start()
        self._send({"event": "open", **self._search})

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                self._answers.update(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _send(self, event: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()

    def _tell(self, event: Mapping[str, Any]) -> None:
        """Hands an event to the sender; to a new one, with all that is left, where that has died."""
        try:
            self._send(event)
        except OSError:
            log.warning("the process that sends to MLflow has ended; starting another")
            self._use(_started(self._home))
            self._send_outbox()
            if "trial" not in event:
                self._send(event)

    def _answer(self, name: str, timeout: float) -> Any:
        """What the sender says of `name`; None where it says nothing in time, or has died."""
        process = self._process
        with self._changed:
            self._changed.wait_for(
                lambda: name in self._answers or process.poll() is not None, timeout=timeout
            )
            return self._answers.get(name)

    def _send_outbox(self) -> bool:
        files = sorted(self._home.outbox.glob("*.jsonl"))
        for file in files:
            for event in _events(file):
                self._send({**event, "replayed": True})
        return bool(files)

    # The search

    @property
    def outbox(self) -> Path:
        """Where what MLflow has not taken is kept."""
        return self._home.outbox

    def open(self) -> None:
        """Waits for the parent run.

        Raises:
            Refused: if MLflow does not know the user.
            TrackingError: if MLflow cannot be written.
        """
        opened = self._answer("opened", _OPEN_SECONDS) or {"error": self._silence()}
        if "refused" in opened:
            raise Refused(opened["refused"])
        if "error" in opened:
            raise TrackingError(opened["error"])
        if (self._study.parent_run, self._study.experiment) != (opened["parent"], opened["experiment"]):
            self._study.parent_run, self._study.experiment = opened["parent"], opened["experiment"]

    def _silence(self) -> str:
        """Why the sender does not answer, as far as it is known."""
        code = self._process.poll()
        if code is None:
            return f"MLflow at {self._study.spec.tracking.uri} has not answered for {_OPEN_SECONDS:g} s"
        said = self._home.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"the process that writes to MLflow ended at once (exit code {code}): {' '.join(said[-1:])}"

    def replay(self, timeout: float = 60.0) -> None:
        """Opens the run, and waits up to `timeout` seconds for what an earlier driver left to be sent.

        Raises:
            Refused, TrackingError: as `open`.
        """
        self.open()
        if self._send_outbox():
            self.flush(timeout)

    def flush(self, timeout: float) -> bool:
        """Waits until all that was told is sent; False where MLflow does not take it in time."""
        self._asked += 1
        name = f"flushed {self._asked}"
        self._tell({"event": "flush", "answer": name})
        return bool(self._answer(name, timeout))

    def summarize(
        self,
        tags: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Puts what is known of the whole search on the parent run: tags, metrics, and files of text.

        Metrics are of the trials counted so far, as their step; telling them twice changes nothing.
        """
        self._tell(
            {
                "event": "summary",
                "tags": dict(tags),
                "metrics": dict(metrics or {}),
                "texts": dict(texts or {}),
                "step": self._study.progress().counted,
            }
        )

    def close(self, state: str, timeout: float = 60.0) -> bool:
        """Sends the rest, ends the parent run and the sender; False if something is left."""
        sent = self.flush(timeout)
        if sent and not self._is_part:
            self._tell({"event": "close", "state": state})
            sent = self.flush(timeout)
        self.abort()
        return sent

    def abort(self) -> None:
        """Ends the sender after what it is sending now; what is left stays in the outbox."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass  # it has died, with a line unsent
        try:
            self._process.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # What the conductor tells

    def run_of(self, number: int, *, wait: bool = False) -> str | None:
        """The MLflow run of a trial that has started; None as long as MLflow has not answered, or is away."""
        name = f"run {number}"
        run = self._answer(name, _START_SECONDS) if wait else self._answers.get(name)
        return None if run is None else str(run)

    def trial_started(self, assignment: Assignment, again: bool = False) -> None:
        """Opens the trial's run, whose id `run_of` then knows.

        Where MLflow is away the run is opened later, from the outbox, and found by its tags. So is a
        run that may be there already: of a trial that was begun before, or that is told `again`.
        """
        number = assignment.number
        self._put(
            {
                "event": "start",
                "trial": number,
                "at": int(time.time() * 1000),
                "begun": assignment.begun,
                "replayed": again,
                "params": assignment.hparams.active,
                "tags": self._study.tags(number),
            }
        )

    def epoch_ended(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        self._put({"event": "epoch", "trial": number, "epoch": epoch, "metrics": dict(metrics)})

    def attempt_failed(self, number: int, reason: str) -> None:
        self._put({"event": "failed", "trial": number, "reason": reason})

    def trial_moved(self, number: int, moves: int) -> None:
        self._put({"event": "move", "trial": number, "moves": moves})

    def damage_found(self, number: int, what: str) -> None:
        self._put({"event": "damage", "trial": number, "what": what})

    def trial_ended(self, number: int, ending: Ending, best: Mapping[str, float] | None, reason: str) -> None:
        self._put(
            {
                "event": "end",
                "trial": number,
                "at": int(time.time() * 1000),
                "ending": ending.value,
                "best": None if best is None else dict(best),
                "reason": reason,
            }
        )

    def _put(self, event: Mapping[str, Any]) -> None:
        with outbox_file(self._home, event["trial"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
        self._tell(event)


def outbox_file(home: Home, number: int) -> Path:
    """Where a trial's events are kept until MLflow has acknowledged its end."""
    return home.outbox / f"{number:05d}.jsonl"


def _events(file: Path) -> list[dict[str, Any]]:
    """What a file of the outbox holds; a last line torn by a crash was never seen by anybody."""
    events = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            log.warning("the outbox file %s has a torn line; it is left out", file)
    return events
