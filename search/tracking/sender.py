"""The process that sends a search's events to MLflow: events in, answers out.

Each line of standard input is an event of `search.tracking.events`. A trial's start goes before all that
waits, since the search waits for its run's id. The process ends with its input; whoever reads the outbox
then goes on where it stopped. One sender at a time works for a search.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock
from sqlalchemy import Engine
from sqlalchemy.event import listen

from search.errors import Refused, TransferSearchError
from search.home import Home
from search.masking import MaskingFilter, masked
from search.spec.search_spec import read_spec
from search.study.storage import write_ahead
from search.tracking.client import is_refusal, load_mlflow
from search.tracking.events import End, Epoch, Epochs, Event, Flush, Open, Start, of_line
from search.tracking.outbox import Outbox
from search.tracking.runs import Runs

__all__ = ["Sender", "main"]

log = logging.getLogger("search.tracking.sender")

_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
_REFUSED_TIMES = 2
"""How often what MLflow refuses is sent again: it may have been said of a moment."""
_GATHERED_SECONDS = 1.0
"""How long a trial's epochs wait for more of them: MLflow takes many in the time of one."""
_LAST_SECONDS = 10.0
"""How long a sender that nobody listens to stays at what it is sending."""


@dataclass
class _Delay:
    """Why a trial's events, or those of the search, wait."""

    until: float = 0.0
    attempts: int = 0
    refused: int = 0
    is_fresh: bool = False  # a run was made again for it


class Sender:
    """Sends events in the order of each trial, starts first.

    What MLflow is away for is sent again and again, and meanwhile the events of other trials. Of a trial that
    it refuses the run is made again from the outbox; what it refuses then too is set aside, and named.

    Args:
        runs: writes them.
        home: its outbox holds a trial's events until its end is written.
        answer: tells the search something under a name.
    """

    def __init__(self, runs: Runs, home: Home, answer: Callable[[str, Any], None]) -> None:
        self._runs = runs
        self._outbox = Outbox(home.outbox)
        self._answer = answer
        self._arrived: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._is_away = False
        self._delays: dict[int | None, _Delay] = {}
        self._gathered: dict[int, float] = {}  # until when the epochs of a trial wait for more
        self._aside: set[int | None] = set()

    def receive(self, lines: Iterable[str]) -> None:
        """Takes events until `lines` end; then `send` ends after the event that it is at."""
        try:
            for line in lines:
                try:
                    event = of_line(line)
                except ValueError:
                    log.warning("a line that is no event: %.80s", line)  # torn: the search has just died
                    continue
                if isinstance(event, Start) and self._is_away:
                    self._answer(f"run {event.trial}", None)  # nobody need wait for it
                self._arrived.put(event)
        finally:
            self._ended.set()
            self._arrived.put(None)

    def send(self) -> None:
        """Sends until the input has ended."""
        waiting: list[Event] = []
        while not self._ended.is_set():
            due = self._due(waiting)
            waiting = _ordered(waiting + self._taken(waiting, due))
            due = self._due(waiting)
            if due is not None and not self._ended.is_set():
                waiting = self._sent(waiting.pop(due), waiting)

    def _taken(self, waiting: list[Event], due: int | None) -> list[Event]:
        """What has arrived; waits for it where nothing else is to be done."""
        events: list[Event | None] = []
        if due is None:
            until = min((self._ready(place, waiting) for place in range(len(waiting))), default=None)
            pause = None if until is None else max(0.01, until - time.monotonic())
            with suppress(queue.Empty):
                events.append(self._arrived.get(timeout=pause))
        while not self._arrived.empty():
            events.append(self._arrived.get())
        return [event for event in events if event is not None]

    def _due(self, waiting: list[Event]) -> int | None:
        """The place of the first event that need not wait; a flush waits for all before it."""
        for place, event in enumerate(waiting):
            if isinstance(event, Flush):
                return place if place == 0 else None
            if self._ready(place, waiting) <= time.monotonic():
                return place
        return None

    def _ready(self, place: int, waiting: list[Event]) -> float:
        """When an event of those that wait may be sent."""
        event = waiting[place]
        delay = self._delays.get(event.about)
        ready = 0.0 if delay is None else delay.until
        if isinstance(event, Epochs):
            until = self._gathered.setdefault(event.trial, time.monotonic() + _GATHERED_SECONDS)
            if not any(isinstance(each, Flush) or each.about == event.trial for each in waiting[place + 1 :]):
                ready = max(ready, until)
        return ready

    def _sent(self, event: Event, rest: list[Event]) -> list[Event]:
        """Sends an event; returns what waits then."""
        if isinstance(event, Flush):
            self._answer(event.answer, True)
            return rest
        if event.about in self._aside and not isinstance(event, Start):
            return rest
        try:
            self._runs.write(event.again() if event.about in self._delays else event)
        except Exception as error:
            return self._failed(event, error, rest)
        self._written(event)
        return rest

    def _written(self, event: Event) -> None:
        if isinstance(event, Epochs | End):
            self._gathered.pop(event.trial, None)
        delay = self._delays.get(event.about)
        if delay is not None and not delay.is_fresh:
            del self._delays[event.about]
        elif delay is not None:
            delay.attempts = delay.refused = 0
        if self._is_away:
            self._is_away = False
            self._answer("away", None)
        match event:
            case Start(trial=trial):
                self._aside.discard(trial)
                self._answer(f"run {trial}", self._runs.of(trial))
            case End(trial=trial):
                self._outbox.acknowledge(trial)
                self._delays.pop(trial, None)
                self._aside.add(trial)  # what is told of it once more, until it starts again, is known
                self._answer("heard", True)
            case _:
                self._answer("heard", True)

    def _failed(self, event: Event, error: Exception, rest: list[Event]) -> list[Event]:
        trial = event.about
        delay = self._delays.setdefault(trial, _Delay())
        said = masked(f"{type(error).__name__}: {error}")
        if isinstance(event, Start):
            self._answer(f"run {trial}", None)
        if is_refusal(error):
            delay.refused += 1
            if delay.refused > _REFUSED_TIMES:
                return self._refused(event, said, rest)
        elif not self._is_away:
            self._is_away = True
            self._answer("away", said)
        pause = _RETRY_SECONDS[min(delay.attempts, len(_RETRY_SECONDS) - 1)]
        log.warning("MLflow did not take %s of %s: %s; again in %gs", *_whole(event, said), pause)
        delay.attempts += 1
        delay.until = time.monotonic() + pause
        place = next((at for at, each in enumerate(rest) if each.about == trial), len(rest))
        flush = next((at for at, each in enumerate(rest) if isinstance(each, Flush)), len(rest))
        rest.insert(min(place, flush), event)
        return rest

    def _refused(self, event: Event, said: str, rest: list[Event]) -> list[Event]:
        """Makes the run of a refused event again, from all that is known of it; else sets it aside."""
        trial = event.about
        if trial is None:
            log.error("MLflow refuses %s of the search: %s; it is left out", event.kind, said)
            del self._delays[trial]
            return rest
        others = [each for each in rest if each.about != trial]
        delay = self._delays[trial]
        if not delay.is_fresh:
            log.warning("MLflow refuses %s of %s: %s; its run is made again", *_whole(event, said))
            self._runs.forget(trial)
            self._delays[trial] = _Delay(is_fresh=True)
            again = [each.again() for each in self._outbox.events(trial)[0]]
            if any(isinstance(each, Start) for each in again):
                return _ordered([*again, *others])
        log.error("MLflow refuses %s of %s: %s; what it was to be told is set aside", *_whole(event, said))
        self._outbox.refuse(trial, said)
        self._answer(f"refused {trial}", said)
        self._aside.add(trial)
        del self._delays[trial]
        return others


def _whole(event: Event, said: str) -> tuple[str, str, str]:
    return event.kind, "the search" if event.about is None else f"trial {event.about}", said


def _answer(answers: TextIO, name: str, value: Any) -> None:
    """Writes one answer; nobody reads it where the search has just died."""
    try:
        answers.write(json.dumps({name: value}) + "\n")
        answers.flush()
    except OSError:
        log.warning("the search has ended")


def _ordered(events: Iterable[Event]) -> list[Event]:
    """Starts first, then the rest in order, with the epochs of a trial together, in its end if that came."""
    starts: list[Event] = []
    rest: list[Event | None] = []
    gathered: dict[int, tuple[int, Epochs]] = {}  # of a trial: where in the rest its last epochs are
    for event in events:
        match event:
            case Start():
                starts.append(event)
            case Epoch() | Epochs():
                place, known = gathered.get(event.trial, (len(rest), None))
                together = _together(known, event)
                gathered[event.trial] = place, together
                rest[place : place + 1] = [together]
            case End(trial=trial, epochs=()) if trial in gathered:
                place, together = gathered.pop(trial)
                rest[place] = None
                rest.append(replace(event, epochs=together.epochs))
            case Flush():
                gathered.clear()
                rest.append(event)
            case _:
                if event.about is not None:
                    gathered.pop(event.about, None)
                rest.append(event)
    return starts + [event for event in rest if event is not None]


def _together(known: Epochs | None, event: Epoch | Epochs) -> Epochs:
    more = event.epochs if isinstance(event, Epochs) else ((event.epoch, event.metrics),)
    return Epochs(trial=event.trial, epochs=(*(known.epochs if known else ()), *more))


def _connected(connection: Any, record: Any) -> None:
    """MLflow's SQLite is written as the study's is, unless somebody else has it open in another way."""
    if isinstance(connection, sqlite3.Connection):
        with suppress(sqlite3.OperationalError):
            write_ahead(connection)


def main() -> None:
    """Opens the search that the first line names, and sends what the others say."""
    answer = functools.partial(_answer, os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # whatever a library prints is no answer
    listen(Engine, "connect", _connected)
    load_mlflow(whole=True)  # while the search does other things
    try:
        opening = of_line(sys.stdin.readline())
    except ValueError:
        return  # torn, or nothing: the search has just died
    assert isinstance(opening, Open)
    home = Home(Path(opening.home))
    logging.basicConfig(format=f"%(asctime)s %(levelname)s {home.name} %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(MaskingFilter())
    lines = _Lines(sys.stdin)
    with FileLock(home.outbox / ".sender.lock"):
        runs = _opened(opening, home, answer, lines.ended)
        if runs is None:
            return
        gc.freeze()  # MLflow's imports stay; what is collected from here on are events
        sender = Sender(runs, home, answer)
        threading.Thread(target=sender.receive, args=(lines,), daemon=True).start()
        sender.send()
        runs.settle()
        os._exit(0)  # the search waits for this process, and Python would take a second to undo its imports


class _Lines:
    """The lines of a stream, read as they come; this process ends soon after they do.

    Whatever it is doing then, the outbox has it: so a search that died leaves nobody who could be in the way
    of the next driver.
    """

    def __init__(self, stream: TextIO) -> None:
        self.ended = threading.Event()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: TextIO) -> None:
        for line in stream:
            self._queue.put(line)
        self._queue.put(None)
        self.ended.set()
        time.sleep(_LAST_SECONDS)
        os._exit(1)

    def __iter__(self) -> Iterator[str]:
        while (line := self._queue.get()) is not None:
            yield line


def _opened(
    opening: Open, home: Home, answer: Callable[[str, Any], None], ended: threading.Event
) -> Runs | None:
    """The search's runs; of one whose run is known, as soon as MLflow is there. None where nobody waits."""
    known = opening.parent and opening.experiment
    attempt = 0
    while not ended.is_set():
        try:
            runs = Runs(
                read_spec(opening.spec),
                home,
                opening.search_id,
                role=opening.role,
                parent=opening.parent,
            )
        except TransferSearchError as error:
            said = masked(str(error))
            if not known:
                answer("opened", {"refused" if isinstance(error, Refused) else "error": said})
                return None
            answer("away", said)
            log.warning("%s", said)
            ended.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1
            continue
        answer("opened", {"parent": runs.parent, "experiment": runs.experiment})
        answer("away", None)
        return runs
    return None


if __name__ == "__main__":
    main()
