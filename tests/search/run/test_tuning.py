"""Real Ray, real Optuna on SQLite, real MLflow on SQLite: how trials end, told everywhere alike."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from ray import cloudpickle
from rich.console import Console

from search.errors import SearchBusy
from search.home import Home
from search.results.doctor import examine
from search.results.rows import trial_rows
from search.run import launch as launching
from search.run.running import Outcome, run_search
from search.search import Search
from search.spec.search_spec import SearchSpec, read_spec
from tests.search import toys
from tests.search.specs import small

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture(scope="module", autouse=True)
def _toys_travel_by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(toys)
    yield
    cloudpickle.unregister_pickle_by_value(toys)


def start(spec: SearchSpec, script: dict[str, str]) -> Home:
    home = Home.of(spec.name)
    home.make()
    home.spec.write_text(spec.to_yaml())
    (home.root / "script.json").write_text(json.dumps(script))
    return home


def run(home: Home, seconds: float | None = None) -> tuple[Outcome, str]:
    """The search in `home` to its end: how it ended, and what was shown."""
    spec, output = read_spec(home.spec), io.StringIO()
    with home.lock():
        search = Search.create(spec, home)
        outcome = run_search(search, Console(file=output), seconds=seconds, trainable=toys.Toy)
    return outcome, output.getvalue()


def children(home: Home) -> dict[int, Run]:
    """MLflow's child runs by trial; fails where a trial has two."""
    search = Search.open(home)
    spec, study = search.spec, search.study
    client = MlflowClient(spec.tracking_uri)
    (experiment,) = client.search_experiments(filter_string="name = 'transfer-search'")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    mine = [r for r in runs if r.data.tags["transfer_search.search_id"] == study.search_id]
    kids = [r for r in mine if "mlflow.parentRunId" in r.data.tags]
    assert len(mine) == len(kids) + 1, "one parent"
    numbered = {int(r.data.tags["transfer_search.trial"]): r for r in kids}
    assert len(numbered) == len(kids), "one run a trial"
    return numbered


def test_every_ending_is_told_alike_everywhere(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = small("search.trials=7", "search.pruner=none", "search.retries=1")
    script = {"1": "nan", "2": "raise", "3": "raise once", "4": "memory", "5": "kill once"}
    home = start(spec, script)
    outcome, shown = run(home)
    assert outcome is Outcome.FINISHED
    printed = "".join(capfd.readouterr())
    assert not [each for each in ("Traceback", "Trial task failed", "Last result") if each in printed]
    assert shown.count("trial 2: an attempt failed: ValueError: a test asked for this\n") == 2
    assert "in step" in home.log.read_text()  # where the whole traceback is
    rows = {row.trial: row for row in trial_rows(Search.open(home))}
    expected = {
        0: ("COMPLETE", "COMPLETE", "FINISHED"),
        1: ("FAIL", "DIVERGED", "FAILED"),
        2: ("FAIL", "ERRORED", "FAILED"),
        3: ("COMPLETE", "COMPLETE", "FINISHED"),
        4: ("FAIL", "OUT_OF_MEMORY", "FAILED"),
        5: ("COMPLETE", "COMPLETE", "FINISHED"),
        6: ("COMPLETE", "COMPLETE", "FINISHED"),
    }
    runs = children(home)
    found = {n: (row.state, row.ending, runs[n].info.status) for n, row in rows.items()}
    assert found == expected
    assert "a test asked for this" in rows[2].reason
    assert "\x1b" not in rows[2].reason
    assert "not finite at epoch 2" in rows[1].reason
    client = MlflowClient(spec.tracking_uri)
    assert [f.path for f in client.list_artifacts(runs[2].info.run_id)] == ["epochs.json", "traceback.txt"]
    for number in (0, 3, 5):
        points = client.get_metric_history(runs[number].info.run_id, "val_accuracy")
        assert sorted(point.step for point in points) == [1, 2, 3, 4]
    assert examine(Search.open(home)) == []


def test_out_of_gpu_memory_gets_one_larger_share(folder: Path) -> None:
    spec = small("search.trials=4", "search.pruner=none", "search.retries=0", "resources.gpu=0.3")
    home = start(spec, {"1": "memory below 0.5", "2": "memory below 0.7", "3": "mention memory"})
    outcome, _ = run(home)
    assert outcome is Outcome.FINISHED
    rows = {row.trial: row for row in trial_rows(Search.open(home))}
    endings = {number: row.ending for number, row in rows.items()}
    assert endings == {0: "COMPLETE", 1: "COMPLETE", 2: "OUT_OF_MEMORY", 3: "ERRORED"}
    assert rows[2].reason.startswith("with gpu 0.3 and then 0.6")
    assert "Tried to allocate 20.00 MiB" in rows[2].reason
    runs = children(home)
    assert runs[2].info.status == "FAILED"
    assert runs[2].data.tags["reason"] == rows[2].reason
    points = MlflowClient(spec.tracking_uri).get_metric_history(runs[1].info.run_id, "val_accuracy")
    assert sorted(point.step for point in points) == [1, 2, 3, 4]
    assert examine(Search.open(home)) == []


def test_pruned_trials_keep_what_they_reported_and_are_never_best(folder: Path) -> None:
    home = start(small("search.trials=12", "resources.concurrency=1"), {})
    run(home)
    rows = trial_rows(Search.open(home))
    pruned = [row for row in rows if row.state == "PRUNED"]
    assert pruned
    assert all(row.epochs < 4 and "asha pruned it" in row.reason for row in pruned)
    runs = children(home)
    for row in pruned:
        run_ = runs[row.trial]
        assert (run_.info.status, run_.data.tags["state"]) == ("FINISHED", "PRUNED")
    study = Search.open(home).study
    assert study.best()[0].state.name == "COMPLETE"


def test_time_over_interrupts_and_a_second_driver_goes_on(folder: Path) -> None:
    home = start(small("search.trials=12", "search.pruner=none"), {"all": "sleep"})
    outcome, _ = run(home, seconds=8.0)
    assert outcome is Outcome.TIME_OVER
    study = Search.open(home).study
    before = {record.number: record.mlflow_run_id for record in study.records()}
    interrupted = study.interrupted()
    assert interrupted
    assert {children(home)[n].info.status for n in interrupted} == {"KILLED"}
    assert {children(home)[n].data.tags["state"] for n in interrupted} == {"INTERRUPTED"}
    outcome, _ = run(home)
    assert outcome is Outcome.FINISHED
    assert {row.state for row in trial_rows(Search.open(home))} == {"COMPLETE"}
    runs = children(home)
    assert len(runs) == 12
    assert all(runs[number].info.run_id == run_id for number, run_id in before.items())
    assert examine(Search.open(home)) == []


def test_finalists_run_when_the_time_is_over(folder: Path) -> None:
    spec = small("search.trials=50", "search.pruner=none", "search.finalists={top: 1, seeds: 2}")
    home = start(spec, {"all": "sleep"})
    outcome, _ = run(home, seconds=12.0)
    assert outcome is Outcome.TIME_OVER
    search = Search.open(home)
    assert search.study.progress().left > 40
    (winner,) = search.standings
    assert len(winner.validation.values) == 2
    search.study.budget = 60
    assert search.standings, "more to do changes nothing before a trial has counted"
    assert examine(Search.open(home)) == []


def test_a_signal_stops_in_order(folder: Path) -> None:
    home = start(small("search.trials=50", "search.pruner=none"), {"all": "sleep"})

    def interrupt() -> None:
        while not list(home.checkpoints.glob("*/state.pt")):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    outcome, output = run(home)
    assert outcome is Outcome.STOPPED
    assert "can be resumed" in output
    assert "RUNNING" not in {run_.info.status for run_ in children(home).values()}


def test_abandoning_ends_what_was_left(folder: Path) -> None:
    home = start(small("search.trials=12", "search.pruner=none"), {"all": "sleep"})
    run(home, seconds=8.0)
    study = Search.open(home).study
    left = study.interrupted()
    assert launching.abandon(home) == len(left) > 0
    rows = {row.trial: row for row in trial_rows(Search.open(home))}
    assert all(rows[n].ending == "ABANDONED" for n in left)
    assert all(children(home)[n].info.status == "KILLED" for n in left)
    assert examine(Search.open(home)) == []


KILLED = """
import sys
from pathlib import Path
from ray import cloudpickle
from tests.search import toys
from tests.search.run import test_tuning
from search.home import Home
cloudpickle.register_pickle_by_value(toys)
test_tuning.run(Home(Path(sys.argv[1])))
"""


def test_a_killed_driver_loses_nothing(folder: Path) -> None:
    home = start(small("search.trials=10", "search.pruner=none"), {"all": "sleep"})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    driver = subprocess.Popen([sys.executable, "-c", KILLED, str(home.root)], env=environment)
    while len(list(home.checkpoints.iterdir())) < 4:
        assert driver.poll() is None
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    before = {row.trial: row for row in trial_rows(Search.open(home))}
    finished = {n for n, row in before.items() if row.state == "COMPLETE"}
    assert finished
    assert len(finished) < 10
    outcome, _ = run(home)
    assert outcome is Outcome.FINISHED
    after = {row.trial: row for row in trial_rows(Search.open(home))}
    assert sorted(after) == list(range(10))
    assert {row.state for row in after.values()} == {"COMPLETE"}
    assert all(after[n].value == before[n].value for n in finished)
    # A trial whose driver was killed while it drew has drawn only some; all others keep theirs.
    drawn = {n: row.params for n, row in before.items() if "seed" in row.params}
    assert {n: after[n].params for n in drawn} == drawn
    assert sorted(children(home)) == list(range(10))
    assert examine(Search.open(home)) == []


def test_a_killed_sender_loses_nothing(folder: Path) -> None:
    home = start(small("search.trials=10", "search.pruner=none"), {"all": "sleep"})
    killed = []

    def kill() -> None:
        while len(list(home.checkpoints.iterdir())) < 4:
            time.sleep(0.05)
        for process in psutil.Process().children():
            if "search.tracking.sender" in process.cmdline():
                process.kill()
                killed.append(process.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    outcome, _ = run(home)
    thread.join()
    assert len(killed) == 1
    assert outcome is Outcome.FINISHED
    assert not list(home.ray.glob("tune-*"))
    assert sorted(children(home)) == list(range(10))
    assert {run_.info.status for run_ in children(home).values()} == {"FINISHED"}
    assert not list(home.outbox.glob("*.jsonl"))
    assert examine(Search.open(home)) == []


def test_a_second_driver_is_told_who_holds_the_search(folder: Path) -> None:
    home = start(small(), {})
    with home.lock(), pytest.raises(SearchBusy, match=f"process {os.getpid()}"):
        with home.lock():
            pass
    assert home.driver() is None


def test_the_doctor_mends_what_mlflow_lost(folder: Path) -> None:
    home = start(small("search.trials=3", "search.pruner=none"), {})
    run(home)
    empty = f"sqlite:///{folder / 'empty.db'}"
    home.spec.write_text(small("search.trials=3", "search.pruner=none", f"tracking.uri={empty}").to_yaml())
    (told,) = examine(Search.open(home))
    assert "empty.db is not there" in told
    assert not (folder / "empty.db").exists(), "to look at it makes nothing"
    assert examine(Search.open(home), repair=True) == []
    client = MlflowClient(empty)
    for run_ in children(home).values():
        points = client.get_metric_history(run_.info.run_id, "val_accuracy")
        assert sorted(point.step for point in points) == [1, 2, 3, 4]
        assert run_.info.status == "FINISHED"
