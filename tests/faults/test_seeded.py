"""Searches that are killed, stopped and spoiled at seeded moments, by one kind of fault and by all.

One search, of all kinds; with FAULTS=full in the environment 200 searches of 10 trials, over five seeds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from mlflow import MlflowClient

from search.home import Home
from search.study.search_study import SearchStudy
from tests.faults.invariants import Losses, seen
from tests.faults.lives import STEPS, end_for_good, forked, live
from tests.faults.moments import Fault
from tests.faults.places import Place
from trainables.record import MODEL_FOLDER, STATE_FILE

FULL = os.environ.get("FAULTS") == "full"
SEEDS, SEARCHES, TRIALS = (range(5), 4, 10) if FULL else (range(1), 1, 10)
LIVES = 30
KINDS = (
    "driver killed", "trial's process killed", "sender killed", "stopped in order", "MLflow away",
    "state damaged", "model damaged", "outbox damaged", "run deleted in MLflow", "all of these",
)  # fmt: skip
DAMAGED = {"state damaged": STATE_FILE, "model damaged": f"{MODEL_FOLDER}/delta.safetensors"}


@dataclass
class Row:
    """Of one kind of fault: how often it was, in how many searches and trials, and what was lost."""

    faults: int = 0
    searches: int = 0
    trials: int = 0
    losses: Losses = field(default_factory=Losses)

    def __str__(self) -> str:
        counts = {each.name: len(getattr(self.losses, each.name)) for each in fields(self.losses)}
        told = f"{self.faults:5} times, {self.searches:3} searches, {self.trials:4} trials"
        return f"{told}; " + ", ".join(f"{name} {count}" for name, count in counts.items())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    before = Path.cwd()
    yield Place(tmp_path_factory.mktemp("seeded"), f"search.trials={TRIALS}")
    os.chdir(before)


@pytest.mark.parametrize("kind", KINDS if FULL else KINDS[-1:])
@pytest.mark.timeout(3600)
def test_a_fault_loses_doubles_and_mixes_nothing(place: Place, kind: str) -> None:
    row = Row()
    for seed in SEEDS:
        for search in range(SEARCHES):
            chance = random.Random(f"{kind} {seed} {search}")
            place.empty()
            found = _searched(place, kind, chance, row)
            for each in fields(found):
                getattr(row.losses, each.name).extend(getattr(found, each.name))
            row.searches, row.trials = row.searches + 1, row.trials + TRIALS
            if found.all():
                print(f"{kind}, seed {seed}, search {search}: {found.all()}")
    print(f"{kind:24}{row}")
    assert row.losses.all() == []
    assert row.faults > 1


def _searched(place: Place, kind: str, chance: random.Random, row: Row) -> Losses:
    """What was lost in a search of many lives, each with a fault."""
    ever: dict[tuple[int, int], float] = {}
    for number in range(LIVES):
        own = chance.choice(KINDS[:-1]) if kind == KINDS[-1] else kind
        life = live(place.spec, place.home, *_fault(own, chance, last=number == LIVES - 1))
        known = seen(place.home)
        assert all(known.get(key) == value for key, value in ever.items()), "what was seen has changed"
        ever = known
        if life is not None and life.finished:
            break
        row.faults += 1 + _spoiled(place, own, chance)
        if kind == KINDS[-1] and chance.random() < 0.02:
            end_for_good(place.spec, place.home)
            break
    return place.losses(ever)


def _fault(kind: str, chance: random.Random, *, last: bool) -> tuple[Fault, int, int]:
    """What happens in a life, the seed of what its trials measure, and how many epochs it has."""
    seed = chance.randrange(2**31)
    if last:
        return Fault(), seed, STEPS
    match kind:
        case "trial's process killed":
            return Fault(who="trial", at=chance.randint(1, 20)), seed, chance.randint(3, 12)
        case "sender killed":
            return Fault(who="sender", at=chance.randint(1, 40)), seed, chance.randint(3, 12)
        case "MLflow away":
            away = Fault(who="sender", at=chance.randint(1, 30), away=chance.randint(1, 12))
            return away, seed, chance.randint(3, 12)
        case "stopped in order":
            return Fault(), seed, chance.randint(0, 9)
        case _:
            return Fault(at=chance.randint(1, 40 * TRIALS)), seed, STEPS


def _spoiled(place: Place, kind: str, chance: random.Random) -> int:
    """Does to one thing what a crash, a disk or a person may; whether it did."""
    home: Home = place.home
    if kind == "run deleted in MLflow":
        return int(forked(lambda: _delete_run(place, chance)))
    if kind == "outbox damaged":
        files = sorted(home.outbox.glob("*.jsonl"))
    elif kind in DAMAGED:
        # Of trials under way alone: what has ended is the doctor's.
        under_way = forked(lambda: SearchStudy.open(place.spec, home).interrupted())
        files = sorted(home.trial(number) / DAMAGED[kind] for number in under_way)
    else:
        files = []
    if not (files := [file for file in files if file.exists()]):
        return 0
    path = chance.choice(files)
    data, middle = path.read_bytes(), path.stat().st_size // 2
    if kind == "outbox damaged":
        torn = data[: data.rfind(b"\n", 0, -1) + 10]  # its last line, half there
        added = chance.choice([b'{"event": "ep', b"\xff\xfe", b"\0" * 40])
        path.write_bytes(chance.choice([torn, data + added]))
    else:
        flipped = data[:middle] + bytes(byte ^ 1 for byte in data[middle : middle + 1]) + data[middle + 1 :]
        path.write_bytes(chance.choice([data[:middle], bytes(len(data)), flipped, b""]))
    return 1


def _delete_run(place: Place, chance: random.Random) -> bool:
    """Deletes, as a person may in MLflow's pages, the run of a trial that is under way."""
    study, client = SearchStudy.open(place.spec, place.home), MlflowClient(place.spec.tracking_uri)
    if study.experiment is None:
        return False
    numbers = {str(number) for number in study.interrupted()}
    runs = client.search_runs([study.experiment], f"tags.`transfer_search.search_id` = '{study.search_id}'")
    under_way = [run for run in runs if run.data.tags.get("transfer_search.trial") in numbers]
    if not under_way:
        return False
    client.delete_run(chance.choice(sorted(under_way, key=lambda run: str(run.info.run_name))).info.run_id)
    return True
