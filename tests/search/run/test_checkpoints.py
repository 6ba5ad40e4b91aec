"""Searches whose trials keep states and models at an address: real trials, a server that speaks S3."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from rich.console import Console

from search.home import Home
from search.results.doctor import examine
from search.results.rows import trial_rows
from search.run import launch as launching
from search.run.running import Outcome, run_search
from search.search import Search
from search.spec.search_spec import SearchSpec, read_spec
from search.study.search_study import SearchStudy
from tests.buckets import Bucket
from tests.search import held
from tests.search.commands import rows, transfer_search
from tests.search.specs import SMALL, small
from tests.search.test_data_as_people_have_it import picture
from trainables.files.trial_folder import write_epochs
from trainables.record import EPOCHS_FILE, METRICS, MODEL_FOLDER, STATE_FILE
from trainables.training.delta import load_delta

pytestmark = pytest.mark.usefixtures("shared_ray")

EPOCHS = 4


@pytest.fixture(scope="module", autouse=True)
def _held_travels_by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(held)
    yield
    cloudpickle.unregister_pickle_by_value(held)


def start(spec: SearchSpec) -> Home:
    home = Home.of(spec.name)
    home.make()
    home.spec.write_text(spec.to_yaml())
    return home


def run(home: Home) -> Outcome:
    """The search in `home` to its end."""
    spec = read_spec(home.spec)
    with home.lock():
        console = Console(file=io.StringIO())
        return run_search(Search.create(spec, home), console, trainable=held.Held)


KILLED = """
import sys
from pathlib import Path
from ray import cloudpickle
from tests.search import held
from tests.search.run import test_checkpoints
from search.home import Home
cloudpickle.register_pickle_by_value(held)
test_checkpoints.run(Home(Path(sys.argv[1])))
"""


def test_a_killed_search_goes_on_from_a_bucket(
    folder: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    words = ("search.trials=4", "search.pruner=none", f"checkpoints={bucket.uri('states')}")
    home = start(small(*words))
    held.hold(home)
    driver = subprocess.Popen([sys.executable, "-c", KILLED, str(home.root)])
    while not {(0, 2), (1, 2)} <= set(held.epochs(home)):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    held.let_go(home)
    assert len([key for key in bucket.keys() if key.endswith(STATE_FILE)]) == 2
    assert run(home) is Outcome.FINISHED
    ran = held.epochs(home)
    for number in range(4):  # no epoch twice
        assert [epoch for one, epoch in ran if one == number] == [1, 2, 3, 4]

    found = trial_rows(Search.open(home))
    assert [(row.state, row.epochs) for row in found] == [("COMPLETE", EPOCHS)] * 4
    study = Search.open(home).study
    for record in study.records():
        kept = home.trial(record.number)
        assert load_delta(kept / MODEL_FOLDER).card.metric == record.best
        assert sorted(path.name for path in kept.iterdir()) == ["model", "record"]
    assert all(row.model_uri for row in found)
    assert examine(Search.open(home)) == []
    assert bucket.keys() == set()


def prefix_of(home: Home) -> str:
    """Where in a bucket the trials of a search are, whose study is made now."""
    study = SearchStudy.create(read_spec(home.spec), home)
    return f"states/{home.name}-{study.search_id[:12]}"


@pytest.mark.long
def test_a_trial_whose_model_does_not_come_has_not_ended(folder: Path, bucket: Bucket) -> None:
    words = ("search.trials=1", "search.retries=0", f"checkpoints={bucket.uri('states')}")
    home = start(small(*words))
    key = f"{prefix_of(home)}/trial-00000/../../escape"
    bucket.put(key, b"what somebody else put there")
    # The trial cannot begin with that, so it fails, and then nothing can come home.
    assert run(home) is Outcome.STOPPED
    assert [row.state for row in trial_rows(Search.open(home))] == ["RUNNING"]
    assert "could lead out of a folder" in home.log.read_text()
    bucket.delete(key)
    assert run(home) is Outcome.FINISHED
    assert [row.state for row in trial_rows(Search.open(home))] == ["COMPLETE"]
    assert bucket.keys() == set()


def test_a_search_given_up_takes_its_models_home(folder: Path, bucket: Bucket) -> None:
    home = start(small("search.trials=1", f"checkpoints={bucket.uri('states')}"))
    spec = read_spec(home.spec)
    study = SearchStudy.create(spec, home)
    study.ask()
    metrics = dict.fromkeys(METRICS, 0.5)
    card = {"metric": {"epoch": 1, **metrics}, "delta_sha256": hashlib.sha256(b"{}").hexdigest()}
    write_epochs(folder, {1: metrics}, {})
    files = {
        "model/model.json": json.dumps(card).encode(),
        "model/delta.safetensors": b"{}",
        EPOCHS_FILE: (folder / EPOCHS_FILE).read_bytes(),
    }
    for name in (*files, "record/applied.json", "state.pt", "owner"):
        bucket.put(f"{prefix_of(home)}/trial-00000/{name}", files.get(name, b"{}"))
    assert launching.abandon(home) == 1
    assert [row.ending for row in trial_rows(Search.open(home))] == ["ABANDONED"]
    assert sorted(path.name for path in home.trial(0).rglob("*.*")) == [
        "applied.json",
        "delta.safetensors",
        "epochs.json",
        "model.json",
    ]
    assert bucket.keys() == set()
    assert examine(Search.open(home)) == []


def test_an_address_that_cannot_be_written_ends_a_launch_at_once(folder: Path, bucket: Bucket) -> None:
    (folder / "small.yaml").write_text(SMALL)
    missing = bucket.uri("states").replace("bucket-", "nobodys-bucket-")
    printed = transfer_search("launch", "small.yaml", f"--set=checkpoints={missing}", code=2)
    assert "checkpoints: s3://nobodys-bucket-" in printed
    assert "does not exist" in printed
    assert not (folder / "searches" / "small" / "spec.yaml").exists()
    assert not (folder / "mlflow.db").exists()


@pytest.mark.long
def test_a_whole_search_by_its_commands(folder: Path, bucket: Bucket) -> None:
    """Its images in a bucket, its checkpoints on a disk."""
    for kind in ("red", "blue"):
        for seed in range(15):
            picture(kind, seed).save(folder / "picture.png")
            bucket.put(f"pictures/{kind}/{seed}.png", (folder / "picture.png").read_bytes())
    (folder / "small.yaml").write_text(SMALL + "checkpoints: " + (folder / "shared").as_uri() + "\n")
    source = bucket.uri("pictures")
    words: list[Any] = [
        f"--set=data={{source: {source!r}, image_size: 32}}",
        "--set=search.trials=2",
        "--set=search.finalists={top: 1, seeds: 2}",
    ]
    printed = transfer_search("launch", "small.yaml", "--dry-run", *words)
    assert f"checkpoints: {(folder / 'shared').as_uri()}" in printed
    assert f"{source}: 30 images in 2 classes" in printed
    transfer_search("launch", "small.yaml", *words)
    best = rows("best", "small")
    assert best["finalists"][0]["test"]["test_accuracy"]["mean"] > 0.5
    assert "all agree" in transfer_search("doctor", "small")
    assert "as recorded" in transfer_search("export", "small", "--to", "out", "--format", "safetensors")
    assert not [path for path in (folder / "shared").rglob("*") if path.is_file()]
