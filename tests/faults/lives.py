"""A driver's life in a fork of this warm process: the real conductor, study, outbox and sender; toy trials.

Repeated epochs measure something else each time, as they may on another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from search.errors import TrackingError
from search.home import Home
from search.run.conductor import Conductor, NoTrial
from search.run.failures import Failure, FailureKind
from search.run.launch import _given_up
from search.spec.search_spec import SearchSpec
from search.study import storage
from search.study.search_study import SearchStudy
from search.tracking import sender as sending
from search.tracking import tracker as tracking
from search.tracking.events import Event, Flush, Open
from search.tracking.tracker import Tracker
from tests.faults.moments import Died, Fault, Moments
from tests.search.run.test_conductor import Everywhere
from trainables.files.sealed import Damaged, seal, unsealed, write
from trainables.files.trial_folder import Epochs, model_metric, read_epochs, write_epochs
from trainables.record import BEST, EPOCHS, METRICS, MODEL_FOLDER, STATE_FILE, TOLD

__all__ = ["Life", "drive", "end_for_good", "forked", "live"]

STEPS = 100_000  # of a driver that hangs
HERE: Any = object()  # in place of a process that sends


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a fork; None where that was killed.

    Raises:
        AssertionError: where it failed by itself, with its traceback.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            told: Any = (True, work())
        except BaseException:
            told = (False, traceback.format_exc())
        with open(writing, "wb") as pipe:
            pickle.dump(told, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        return None
    well, result = pickle.loads(answer)
    assert well, f"the driver failed by itself:\n{result}"
    return result


class Toy:
    """A trial that measures noise, and keeps what it measured as a real one does."""

    def __init__(self, config: Mapping[str, Any], last: int) -> None:
        self.folder, self.last, self.told = Path(config["folder"]), last, list[str]()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.epochs: Epochs = {}
        try:
            self.epochs = read_epochs(self.folder)
        except Damaged as damage:
            self.told.append(str(damage))
        self.epoch = 0
        try:
            self._load()
        except Damaged as damage:
            self.told.append(str(damage))
            self.epoch = 0

    def _load(self) -> None:
        if not (self.folder / STATE_FILE).exists():
            return
        try:
            state = json.load(unsealed(self.folder / STATE_FILE))
        except ValueError as error:
            raise Damaged(str(error)) from error
        self.epochs |= {int(epoch): metrics for epoch, metrics in state["epochs"].items()}
        best = self._best()
        if best <= state["epoch"]:
            metric = model_metric(self.folder)
            if metric is None or metric["epoch"] != best:
                raise Damaged("the model is of another epoch")
        self.epoch = state["epoch"]

    def _best(self) -> int:
        return max(self.epochs, key=lambda epoch: (self.epochs[epoch]["val_accuracy"], -epoch))

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        self.epochs.setdefault(self.epoch, dict.fromkeys(METRICS, random.random()))
        write_epochs(self.folder, self.epochs, {})
        if self._best() == self.epoch:
            delta = os.urandom(64)
            card = {"metric": self.best(), "delta_sha256": hashlib.sha256(delta).hexdigest()}
            write(self.folder / MODEL_FOLDER / "delta.safetensors", delta)
            write(self.folder / MODEL_FOLDER / "model.json", json.dumps(card).encode())
        if self.epoch < self.last and random.random() < 0.7:
            state = json.dumps({"epoch": self.epoch, "epochs": self.epochs}).encode()
            seal(self.folder / STATE_FILE, lambda file: file.write(state))
        told = [{"epoch": epoch, **self.epochs[epoch]} for epoch in sorted(self.epochs)]
        best = {f"{BEST}/{name}": value for name, value in self.best().items()}
        return {**self.epochs[self.epoch], "epoch": self.epoch, EPOCHS: told, TOLD: self.told, **best}

    def best(self) -> dict[str, float]:
        return {"epoch": self._best(), **self.epochs[self._best()]}


class _Here:
    """A sender in this process, which has sent what is due when the next event comes."""

    def __init__(self, wired: Wired, moments: Moments) -> None:
        self._wired, self._moments = wired, moments
        self._sender: sending.Sender | None = None
        self._waiting: list[Event] = []
        self.is_broken = False
        self.process = self

    def say(self, event: Event) -> None:
        if self.is_broken:
            return
        try:
            with self._moments.of("sender"):
                self._take(event)
        except Died:
            self.is_broken = True

    def _take(self, event: Event) -> None:
        wired = self._wired
        if isinstance(event, Open):
            answer = wired._answers.__setitem__
            runs = sending._opened(event, wired._home, answer, threading.Event())
            self._sender = None if runs is None else sending.Sender(runs, wired._home, answer)
            return
        assert self._sender is not None
        self._waiting = sending._ordered([*self._waiting, event])
        asks = isinstance(event, Flush)
        while (due := self._sender._due(self._waiting)) is not None or (asks and self._waiting):
            if due is not None:
                self._waiting = self._sender._sent(self._waiting.pop(due), self._waiting)

    def poll(self) -> int | None:
        return 1 if self.is_broken else None

    def hang_up(self) -> None: ...

    def wait(self, timeout: float | None = None) -> None: ...


class Wired(Tracker):
    """A tracker whose sender is in this process; a new one is, where that has died."""

    moments = Moments(Fault())

    def _use(self, sender: Any) -> None:
        self._line = _Here(self, self.moments)  # type: ignore[assignment]
        self._line.say(self._opening)


@dataclass(frozen=True)
class Life:
    """How a driver's life went: whether the budget was met, and what it wrote, in order."""

    finished: bool
    moments: list[str]


def live(spec: SearchSpec, home: Home, fault: Fault, seed: int, steps: int = STEPS) -> Life | None:
    """A driver's life until the search has ended, or for some epochs; None where it was killed."""

    def work() -> Life:
        random.seed(seed)
        moments = Moments(fault)
        moments.patch()
        sending._RETRY_SECONDS = (0.001,)  # type: ignore[assignment]
        sending._GATHERED_SECONDS = random.choice((0.0, 60.0))  # each epoch by itself, or all with the end
        tracking._started = lambda home: HERE
        storage.RDBStorage = partial(  # type: ignore[misc,assignment]  its tables are there: saves half a life
            storage.RDBStorage, skip_compatibility_check=True, skip_table_creation=True
        )
        return drive(spec, home, moments, steps)

    life: Life | None = forked(work)
    return life


def end_for_good(spec: SearchSpec, home: Home) -> None:
    """What `stop --final` does with what is left."""

    def work() -> None:
        Wired.moments = Moments(Fault())
        study = SearchStudy.open(spec, home)
        tracker = Wired(spec, home, study, sender=HERE)
        _given_up(study, home, tracker)
        assert tracker.close("ABANDONED")

    forked(work)


def drive(spec: SearchSpec, home: Home, moments: Moments, steps: int = STEPS) -> Life:
    """A driver with two trials at a time, until its budget is met, or for some epochs."""
    Wired.moments = moments
    study = SearchStudy.create(spec, home)
    tracker = Wired(spec, home, study, sender=HERE)
    while "opened" not in tracker._answers:  # its sender was killed at once
        tracker._use(HERE)
    try:
        tracker.replay()
    except TrackingError:  # MLflow was away before it knew the search: its launch is refused
        return Life(False, moments.seen)
    conductor = Conductor(
        study,
        home,
        {},
        capacity=Everywhere(),  # type: ignore[arg-type]
        observers=[tracker],
        run_of=tracker.run_of,
        should_stop=lambda: False,
    )
    running: dict[str, Toy | None] = {}
    configs: dict[str, dict[str, Any]] = {}
    names = iter(map(str, range(STEPS)))
    for _ in range(steps):
        while len(running) < 2:
            name = next(names)
            config = conductor.next(name)
            if isinstance(config, NoTrial):
                break
            configs[name], running[name] = config, None
        if not running:
            break
        name = random.choice(list(running))
        try:
            with moments.of("trial"):
                toy = running[name] = running[name] or Toy(configs[name], spec.search.max_epochs)
                result = toy.step()
        except Died as error:
            kind = random.choice([FailureKind.NODE_LOST, FailureKind.OTHER])
            said = str(error)
            goes_on = conductor.failed(name, Failure(kind=kind, message=said, traceback=said))
            running[name] = None
        else:
            goes_on = conductor.after_epoch(name, result)
        if not goes_on:
            del running[name]
    finished = not running and not study.progress().left
    conductor.stopped()
    tracker.close("FINISHED" if finished else "STOPPED")
    return Life(finished, moments.seen)
