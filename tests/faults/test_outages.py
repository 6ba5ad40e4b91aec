"""Searches on real Ray from which something is taken away: MLflow, the study's database, or any hope.

With FAULTS=full in the environment the outages last for minutes.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray import cloudpickle

from search.errors import AllFailedAlike
from search.home import Home
from search.results.doctor import examine
from search.results.rows import trial_rows
from search.run.ray_compat import own_session
from search.run.running import Outcome
from search.search import Search
from tests.faults.outages import Gate, free_port, mlflow_server, postgresql
from tests.search import toys
from tests.search.run.test_tuning import children, run, start
from tests.search.specs import small

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray"), pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def _toys_travel_by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(toys)
    yield
    cloudpickle.unregister_pickle_by_value(toys)


def any_in(folder: Path) -> bool:
    return any(folder.iterdir())


def when(condition: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Waits in a thread of its own until something is so, and then does something."""

    def watch() -> None:
        while not condition():
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def all_there(home: Home, trials: int) -> None:
    """Every trial, point and model is everywhere."""
    assert examine(Search.open(home)) == []
    rows = trial_rows(Search.open(home))
    assert [row.state for row in rows] == ["COMPLETE"] * trials
    client = MlflowClient(Search.open(home).spec.tracking_uri)
    for each in children(home).values():
        points = client.get_metric_history(each.info.run_id, "val_accuracy")
        assert sorted(point.step for point in points) == [1, 2, 3, 4]
        assert each.info.status == "FINISHED"


SECRET = "hunter2butlonger"


def told_anywhere(secret: str, *places: Path) -> list[Path]:
    """The files below some folders that hold a secret."""
    files = (file for place in places for file in place.rglob("*") if file.is_file())
    return [file for file in files if secret.encode() in file.read_bytes()]


@pytest.mark.full
def test_a_search_waits_for_no_mlflow_and_the_doctor_brings_all_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = int(os.environ.get("FAULT_TRIALS", "60"))
    seconds: dict[str, float] = {}
    with mlflow_server(folder) as server, Gate(server) as gate:
        for mode in ("open", "closed", "hanging", "failing"):
            monkeypatch.setenv("TRACKING", f"http://me:{SECRET}@127.0.0.1:{gate.port}")
            uri = "tracking.uri=${TRACKING}"
            spec = small(f"search.trials={trials}", "search.pruner=none", uri, name=mode)
            home = start(spec, {"all": "sleep"})
            watch = when(partial(any_in, home.checkpoints), partial(setattr, gate, "mode", mode))
            began = time.monotonic()
            outcome, told = run(home)
            seconds[mode] = time.monotonic() - began
            watch.join()
            assert outcome is Outcome.FINISHED
            assert SECRET not in told
            gate.mode = "open"
            if mode != "open":
                assert "doctor" in told
                assert any(home.outbox.glob("*.jsonl"))
                assert examine(Search.open(home), repair=True) == []
            all_there(home, trials)
    print(seconds)
    assert told_anywhere(SECRET, folder, Path(own_session())) == []
    for mode, each in seconds.items():
        assert each <= seconds["open"] * 1.1, (mode, seconds)


@pytest.mark.full
def test_a_database_that_is_locked_for_90_s_is_waited_for(folder: Path) -> None:
    home = start(small("search.trials=8", "search.pruner=none"), {"all": "sleep"})
    took: list[float] = []

    def lock() -> None:
        began = time.monotonic()
        with closing(sqlite3.connect(home.root / "study.db", isolation_level=None, timeout=60)) as other:
            other.execute("begin exclusive")
            time.sleep(90)
            other.execute("rollback")
        took.append(time.monotonic() - began)

    watch = when(lambda: any(home.checkpoints.glob("*/state.pt")), lock)
    outcome, told = run(home)
    watch.join()
    assert outcome is Outcome.FINISHED
    assert "waiting for it" in told
    assert "is there again after" in told
    print(took, told)
    all_there(home, 8)


@pytest.mark.full
def test_a_postgresql_that_is_restarted_for_40_s_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgresql(folder, free_port()) as server:
        server.start()
        server.ask("create database studies")
        monkeypatch.setenv("STUDIES", server.url("studies"))
        home = start(small("search.trials=8", "search.pruner=none", "storage=${STUDIES}"), {"all": "sleep"})

        def restart() -> None:
            server.stop()
            time.sleep(40)
            server.start()

        watch = when(lambda: any(home.checkpoints.glob("*/state.pt")), restart)
        outcome, told = run(home)
        watch.join()
        assert outcome is Outcome.FINISHED
        assert "waiting for it" in told
        assert "is there again after" in told
        print(told)
        all_there(home, 8)


def test_a_search_of_which_every_trial_fails_at_once_ends_and_says_why_once(folder: Path) -> None:
    home = start(small("search.trials=20", "search.pruner=none"), {"all": "raise at once"})
    began = time.monotonic()
    with pytest.raises(AllFailedAlike) as ended:
        run(home)
    print(f"{time.monotonic() - began:.1f} s")
    assert str(ended.value).count("cannot be: a test asked for this") == 1
    rows = trial_rows(Search.open(home))
    assert [row.ending for row in rows if row.ending == "ERRORED"] == ["ERRORED"] * 3
    assert len(rows) <= 5  # and those that ran beside the third
    assert Search.open(home).study.progress().left > 14  # the budget is kept
    assert examine(Search.open(home)) == []


def test_trials_that_hang_end_by_their_deadlines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.run.deadlines._LEAST_SECONDS", 3.0)
    monkeypatch.setattr("search.run.deadlines._TIMES", 3)
    home = start(small("search.trials=6", "search.pruner=none", "search.retries=0"), {"4": "hang"})
    began = time.monotonic()
    outcome, _ = run(home)
    assert outcome is Outcome.FINISHED
    rows = {row.trial: row for row in trial_rows(Search.open(home))}
    print(f"{time.monotonic() - began:.1f} s", rows[4].reason)
    assert rows.pop(4).ending == "ERRORED"
    assert {row.ending for row in rows.values()} == {"COMPLETE"}
    assert "its process hangs" in trial_rows(Search.open(home))[4].reason
    assert examine(Search.open(home)) == []


@pytest.mark.long
def test_a_trial_whose_own_time_is_over_keeps_what_it_has(folder: Path) -> None:
    home = start(small("search.trials=4", "search.pruner=none", "search.trial_time=4s"), {"2": "hang"})
    outcome, _ = run(home)
    assert outcome is Outcome.FINISHED
    rows = {row.trial: row for row in trial_rows(Search.open(home))}
    assert rows[2].ending == "PRUNED"
    assert "search.trial_time" in rows[2].reason
    assert rows[2].epochs == 1
    assert {row.ending for row in rows.values()} == {"COMPLETE", "PRUNED"}
    assert examine(Search.open(home)) == []
