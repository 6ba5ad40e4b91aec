"""Searches whose driver is killed at seeded moments, and whose files are spoiled in between; no Ray.

A driver is a fork of this warm process: the real conductor, study and outbox, and a toy trial that writes the
real files in the real order. What MLflow would be sent is read from the outbox, which nobody empties here.
Repeated epochs measure something else each time, as they may on another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from search.home import Home
from search.run.conductor import Conductor, NoTrial
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from search.tracking.outbox import Outbox
from search.tracking.tracker import Tracker
from tests.search.run.test_conductor import Everywhere
from tests.search.specs import small
from trainables.files.sealed import Damaged, seal, unsealed, write
from trainables.files.trial_folder import Epochs, model_metric, read_epochs, write_epochs
from trainables.record import BEST, EPOCHS, METRICS, MODEL_FOLDER, STATE_FILE, TOLD

TRIALS, LAST = 6, 4
SEEDS = range(int(os.environ.get("FAULT_SEEDS", "2")))
"""As many as FAULT_SEEDS says; in CI few."""
SPEC = small(f"search.trials={TRIALS}", f"search.max_epochs={LAST}", "search.pruner=none")


class Toy:
    """A trial that measures noise, and keeps what it measured as a real one does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, []
        folder.mkdir(parents=True, exist_ok=True)
        self.epochs: Epochs = {}
        try:
            self.epochs = read_epochs(folder)
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
        if self.epoch < LAST and random.random() < 0.7:
            state = json.dumps({"epoch": self.epoch, "epochs": self.epochs}).encode()
            seal(self.folder / STATE_FILE, lambda file: file.write(state))
        told = [{"epoch": epoch, **self.epochs[epoch]} for epoch in sorted(self.epochs)]
        best = {f"{BEST}/{name}": value for name, value in self.best().items()}
        return {**self.epochs[self.epoch], "epoch": self.epoch, EPOCHS: told, TOLD: self.told, **best}

    def best(self) -> dict[str, float]:
        return {"epoch": self._best(), **self.epochs[self._best()]}


class Mute(Tracker):
    """A tracker whose events stay in the outbox."""

    def __init__(self, home: Home, study: SearchStudy) -> None:
        self._home, self._study, self._outbox = home, study, Outbox(home.outbox)

    def _tell(self, event: Mapping[str, Any]) -> None:
        pass


def drive(home: Home) -> None:
    """A driver with two trials at a time, until its budget is met."""
    study = SearchStudy.create(SPEC, home)
    conductor = Conductor(
        study,
        home,
        {},
        capacity=Everywhere(),  # type: ignore[arg-type]
        observers=[Mute(home, study)],
        run_of=lambda number, wait=False: None,
        should_stop=lambda: False,
    )
    running: dict[str, Toy] = {}
    names = iter(map(str, range(1000)))
    while True:
        while len(running) < 2:
            name = next(names)
            config = conductor.next(name)
            if isinstance(config, NoTrial):
                break
            running[name] = Toy(Path(config["folder"]))
        if not running:
            return
        name = random.choice(list(running))
        if not conductor.after_epoch(name, running[name].step()):
            del running[name]


def driven(home: Home, seconds: float, seed: int) -> bool:
    """Runs a driver that is killed after some time; whether it had ended before."""
    child = os.fork()
    if child == 0:
        random.seed(seed)
        code = 1
        try:
            drive(home)
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the driver failed by itself"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def spoil(home: Home, chance: random.Random) -> list[str]:
    """Does to one file what a crash or a disk may; what it did."""
    kinds = {"state": STATE_FILE, "model": f"{MODEL_FOLDER}/delta.safetensors"}
    kind = chance.choice([*kinds, "outbox", "nothing"])
    if kind in kinds:
        # Of trials under way alone: what has ended is the doctor's.
        found = [each.parent / kinds[kind] for each in home.checkpoints.glob(f"*/{STATE_FILE}")]
    else:
        found = list(home.outbox.glob("*.jsonl")) if kind == "outbox" else []
    found = [path for path in sorted(found) if path.exists()]
    if not found:
        return []
    path = chance.choice(found)
    data = path.read_bytes()
    if kind == "outbox":
        path.write_bytes(data + chance.choice([b'{"event": "ep', b"\xff\xfe", b"\0" * 40]))
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes(byte ^ 1 for byte in data[middle : middle + 1]) + data[middle + 1 :]
        path.write_bytes(chance.choice([data[:middle], bytes(len(data)), flipped, b""]))
    return [kind]


def breaches(home: Home) -> list[str]:
    """The invariants that a search which has ended does not keep, point by point."""
    study, outbox, found = SearchStudy.open(SPEC, home), Outbox(home.outbox), []
    records = study.records()
    if [record.number for record in records] != list(range(TRIALS)):
        found.append(f"trials {[record.number for record in records]}")
    for record in records:
        name, folder = f"trial {record.number}", home.trial(record.number)
        if record.ending is not Ending.COMPLETED:
            found.append(f"{name} is {record.state}")
            continue
        reported, recorded, card = study.reported(record.number), read_epochs(folder), model_metric(folder)
        if sorted(reported) != list(range(1, LAST + 1)):
            found.append(f"{name} has epochs {sorted(reported)}")
        if reported != {epoch: metrics["val_accuracy"] for epoch, metrics in recorded.items()}:
            found.append(f"{name}: Optuna and its record differ")
        if card is None or any(card[key] != (record.best or {}).get(key) for key in card):
            found.append(f"{name}: its model and its ending differ")
        elif recorded[int(card["epoch"])]["val_accuracy"] != card["val_accuracy"]:
            found.append(f"{name}: its model and its record differ")
        sent: dict[int, set[float]] = {}
        events = outbox.events(record.number)[0]
        for event in events:
            if event["event"] == "epoch":
                sent.setdefault(event["epoch"], set()).add(event["metrics"]["val_accuracy"])
        if sent != {epoch: {value} for epoch, value in reported.items()}:
            found.append(f"{name}: MLflow would have {sent}")
        if [event["event"] for event in events][-1] != "end":
            found.append(f"{name}: MLflow would not hear of its end")
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_no_kill_and_no_damage_loses_doubles_or_mixes_anything(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    home = Home(folder / "searches" / "small")
    home.make()
    faults: list[str] = []
    for life in range(60):
        if driven(home, chance.uniform(0.02, 1.0) if life < 25 else 200.0, chance.randrange(2**31)):
            break
        faults += ["kill", *spoil(home, chance)]
    assert breaches(home) == [], faults
    assert faults.count("kill") > 1
    print(f"{TRIALS} trials, {faults.count('kill')} kills, {len(faults)} faults")
