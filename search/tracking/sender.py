"""The process that sends a search's events to MLflow: `python -m search.sender`, events in, answers out.

Each line of standard input is an event of `search.tracking`, in JSON. A trial's start goes before all that
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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock
from sqlalchemy import Engine
from sqlalchemy.event import listen

from search.errors import Refused, TransferSearchError
from search.home import Home
from search.spec.search_spec import read_spec
from search.study.storage import write_ahead
from search.tracking.client import load_mlflow
from search.tracking.runs import Runs
from search.tracking.tracker import outbox_file

__all__ = ["Sender", "main"]

log = logging.getLogger("search.tracking.sender")

_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)


class Sender:
    """Sends events one by one, starts first, each again and again where MLflow is away.

    Args:
        runs: writes them.
        home: its outbox holds a trial's events until its end is written.
        answer: tells the search something under a name.
    """

    def __init__(self, runs: Runs, home: Home, answer: Callable[[str, Any], None]) -> None:
        self._runs = runs
        self._home = home
        self._answer = answer
        self._arrived: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._away = threading.Event()

    def receive(self, lines: Iterable[str]) -> None:
        """Takes events until `lines` end; then `send` ends after the event that it is at."""
        for line in lines:
            event = json.loads(line)
            if event["event"] == "start" and self._away.is_set():
                self._answer(f"run {event['trial']}", None)  # nobody need wait for it
            self._arrived.put(event)
        self._ended.set()
        self._arrived.put(None)

    def send(self) -> None:
        """Sends until the input has ended."""
        waiting: list[dict[str, Any]] = []
        while not self._ended.is_set():
            waiting = _ordered(waiting + self._taken(block=not waiting))
            if waiting and not self._ended.is_set():
                self._write(waiting.pop(0))

    def _taken(self, *, block: bool) -> list[dict[str, Any]]:
        events = [self._arrived.get()] if block else []
        while not self._arrived.empty():
            events.append(self._arrived.get())
        return [event for event in events if event is not None]

    def _write(self, event: Mapping[str, Any]) -> None:
        attempt = 0
        while event["event"] != "flush":
            try:
                self._runs.write(event if attempt == 0 else {**event, "replayed": True})
                break
            except Exception as error:
                pause = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
                log.warning("MLflow did not take %s: %s; again in %gs", event["event"], error, pause)
                attempt += 1
                if event["event"] == "start":
                    self._answer(f"run {event['trial']}", None)
                self._away.set()
                if self._ended.wait(pause):
                    return
        self._away.clear()
        match event["event"]:
            case "start":
                self._answer(f"run {event['trial']}", self._runs.of(event["trial"]))
            case "end":
                outbox_file(self._home, event["trial"]).unlink(missing_ok=True)
            case "flush":
                self._answer(event["answer"], True)


def _answer(answers: TextIO, name: str, value: Any) -> None:
    """Writes one answer; nobody reads it where the search has just died."""
    try:
        answers.write(json.dumps({name: value}) + "\n")
        answers.flush()
    except OSError:
        log.warning("the search has ended")


def _ordered(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Starts first, then the rest in order, with the epochs of a trial together, in its end if that came."""
    starts: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    open_epochs: dict[int, dict[str, Any]] = {}
    for event in events:
        match event["event"]:
            case "start":
                starts.append(event)
            case "epoch":
                together = open_epochs.get(event["trial"])
                if together is None:
                    together = {"event": "epochs", "trial": event["trial"], "epochs": []}
                    open_epochs[event["trial"]] = together
                    rest.append(together)
                together["epochs"].append((event["epoch"], event["metrics"]))
            case "epochs":
                open_epochs[event["trial"]] = event
                rest.append(event)
            case "end" if "epochs" not in event and event["trial"] in open_epochs:
                together = open_epochs.pop(event["trial"])
                rest.remove(together)
                rest.append({**event, "epochs": together["epochs"]})
            case "flush":
                open_epochs.clear()
                rest.append(event)
            case _:
                open_epochs.pop(event.get("trial", -1), None)
                rest.append(event)
    return starts + rest


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
    opening = json.loads(sys.stdin.readline() or "null")
    if opening is None:
        return
    home = Home(Path(opening["home"]))
    logging.basicConfig(format=f"%(asctime)s %(levelname)s {home.name} %(name)s: %(message)s")
    with FileLock(home.outbox / ".sender.lock"):
        try:
            runs = Runs(
                read_spec(opening["spec"]),
                home,
                opening["search_id"],
                role=opening["role"],
                parent=opening["parent"],
            )
        except Refused as error:
            answer("opened", {"refused": str(error)})
            return
        except TransferSearchError as error:
            answer("opened", {"error": str(error)})
            return
        gc.freeze()  # MLflow's imports stay; what is collected from here on are events
        answer("opened", {"parent": runs.parent, "experiment": runs.experiment})
        sender = Sender(runs, home, answer)
        threading.Thread(target=sender.receive, args=(sys.stdin,), daemon=True).start()
        sender.send()
        runs.settle()
        os._exit(0)  # the search waits for this process, and Python would take a second to undo its imports


if __name__ == "__main__":
    main()
