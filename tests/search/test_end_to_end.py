"""The main job as a user runs it: the command line, real weights, real images, nothing replaced."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from search.home import Home
from search.spec.search_spec import read_spec
from search.study.search_study import SearchStudy
from tests.search.commands import both_streams, rows, transfer_search
from tests.search.specs import SMALL
from tests.trainables.image.drawn import draw_classes

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Path:
    """A folder in which the small search was launched and has ended."""
    place = tmp_path_factory.mktemp("searched")
    (place / "small.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        printed = transfer_search("launch", "small.yaml")
    shutil.copy(place / "mlflow.db", place / "copy.db")
    assert "best trial" in printed
    assert "transfer-search export small" in printed
    return place


@pytest.fixture
def inside(searched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(searched)
    return searched


def test_trials_are_as_the_spec_and_the_storage_say(inside: Path) -> None:
    listed = rows("trials", "small")
    study = SearchStudy.open(read_spec(inside / "searches/small/spec.yaml"), Home.of("small"))
    assert {row["trial"]: row["state"] for row in listed} == {
        trial.number: trial.state.name for trial in study.trials()
    }
    assert len(listed) == 6
    assert all(row["mlflow_run_id"] and row["model_uri"] for row in listed)
    best = rows("best", "small")
    assert best["value"] == max(row["value"] for row in listed if row["state"] == "COMPLETE")
    assert {"search", "trial", "value", "params", "mlflow_run_id", "model_uri", "epochs"} <= set(best)
    assert "all agree" in transfer_search("doctor", "small")
    assert rows("status", "small")["state"] == "FINISHED"
    assert [row["search"] for row in rows("list")] == ["small"]
    header = transfer_search("trials", "small", "--csv").splitlines()[0]
    assert header.startswith("search,trial,state")


def test_a_copy_of_mlflows_file_holds_every_run(inside: Path) -> None:
    with closing(sqlite3.connect(inside / "copy.db")) as copy:
        ended = copy.execute("SELECT COUNT(*) FROM runs WHERE end_time IS NOT NULL").fetchone()
    assert ended == (1 + len(rows("trials", "small")),)


def test_every_model_reproduces_its_recorded_accuracy(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, truth = validation_images(inside / "searches/small/spec.yaml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{inside}/mlflow.db")
    for row in rows("trials", "small")[:3]:
        model = mlflow.pyfunc.load_model(row["model_uri"])
        told = model.predict(np.stack(images))["label"]
        assert float(np.mean(told == truth)) == row["model_value"], row["trial"]
        files = (inside / f"searches/small/checkpoints/{row['trial']:05d}/model").iterdir()
        assert sum(file.stat().st_size for file in files) < 200_000


def validation_images(spec_file: Path) -> tuple[list[np.ndarray[Any, Any]], list[str]]:
    """The validation images of a search of digits as their source has them, and their classes."""
    spec = read_spec(spec_file)
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "transfer-search"
    data = spec.modality.load(spec.data.config, cache_dir=cache)
    chosen = data.splits["validation"]
    names = [data.names[index] for index in chosen.tolist()]
    digits = load_digits().images
    images = [np.repeat(_grey(digits[int(_number(name))])[..., None], 3, 2) for name in names]
    return images, [data.classes[label] for label in data.labels[chosen].tolist()]


def _grey(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (image * 255 / 16).round().astype(np.uint8)


def _number(name: str) -> str:
    return "".join(letter for letter in name if letter.isdigit())


def test_an_export_predicts_by_itself(inside: Path, tmp_path: Path) -> None:
    printed = transfer_search("export", "small", "--to", tmp_path / "out")
    assert printed.count("as recorded") == 3
    assert printed.count("at their own sizes") == 2
    digits = load_digits()
    paths = []
    for index in range(6):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(_grey(digits.images[index])).save(paths[-1])
    both = []
    for kind in ("model.onnx", "model.pt2", "model.safetensors"):
        alone = tmp_path / kind.replace(".", "-")
        alone.mkdir()
        (alone / kind).write_bytes((tmp_path / "out" / kind).read_bytes())
        both.append(json.loads(transfer_search("predict", alone, *paths, "--json")))
    labels = [[row["label"] for row in one] for one in both]
    assert labels[0] == labels[1] == labels[2]
    truth = [str(label) for label in digits.target[:6]]
    right = sum(row["label"] == true for row, true in zip(both[0], truth, strict=True))
    assert right >= 4
    assert sum(both[0][0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_model_is_exported_where_the_data_has_changed_or_gone(inside: Path, tmp_path: Path) -> None:
    draw_classes(tmp_path / "other", {"a": 8, "b": 8})
    words = ("export", "small", "--to", tmp_path / "out", "--format", "safetensors")
    gone = transfer_search(*words, "--set=data.source=./nowhere", code=2)
    assert "nowhere does not exist" in gone
    assert "--set data.source=DIR; where it is gone, --unchecked writes" in gone
    other = transfer_search(*words, f"--set=data.source={tmp_path}/other", code=2)
    assert "the data has changed (classes gone: 0, 1" in other
    assert not (tmp_path / "out").exists()
    assert "not checked on images" in transfer_search(*words, "--set=data.source=./nowhere", "--unchecked")
    assert "200 for training, 100 for validation" in (tmp_path / "out" / "README.md").read_text()


def test_a_project_that_was_copied_writes_nothing_into_the_old_one(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(searched, tmp_path / "copy")
    monkeypatch.chdir(copy)
    said, _ = both_streams("doctor", "small", code=1)
    assert f"its files are in {copy}/mlruns, its tables name {searched}/mlruns" in said
    assert "all agree" in transfer_search("doctor", "small", "--repair")
    with closing(sqlite3.connect(copy / "mlflow.db")) as store:
        places = [
            place
            for table, column in (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
            for (place,) in store.execute(f"SELECT {column} FROM {table}")
        ]
    assert len(places) > 7
    assert all(place.startswith(f"{copy}/mlruns/") for place in places)
    (copy / "mlflow.db").rename(copy / "elsewhere.db")
    assert "mlflow.db is not there; if it has moved" in both_streams("doctor", "small", code=1)[0]
    assert rows("best", "small")["model_uri"] is None
    assert not (copy / "mlflow.db").exists()


def test_an_alias_does_not_move_to_a_worse_model(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", read_spec(inside / "searches/small/spec.yaml").tracking_uri)
    ended = [row for row in rows("trials", "small") if row["value"] is not None]
    better, worse = (choose(ended, key=lambda row: row["value"]) for choose in (max, min))
    words = ("--format", "safetensors", "--register", "guarded", "--alias", "champion")

    def export(row: dict[str, Any], *more: str, code: int = 0) -> str:
        to = tmp_path / str(row["trial"])
        return transfer_search(
            "export", "small", "--to", to, "--trial", str(row["trial"]), *words, *more, code=code
        )

    assert "registered guarded version 1 as champion" in export(better)
    refused = export(worse, code=2)
    assert f"{better['value']:.4f}" in refused
    assert f"{worse['value']:.4f}" in refused
    assert not (tmp_path / str(worse["trial"])).exists()
    assert mlflow.pyfunc.load_model("models:/guarded@champion").metadata.signature is not None
    assert "registered guarded version 2 as champion" in export(worse, "--force")


def test_the_report_judges_the_best_model_image_by_image(inside: Path, tmp_path: Path) -> None:
    transfer_search("report", "small", "--to", tmp_path / "small.html")
    text = (tmp_path / "small.html").read_text()
    table = text.partition('aria-label="Confusion matrix"')[2].partition("</table>")[0]
    counts = [
        [int(count) for count in re.findall(r">(\d+)</td>", line)]
        for line in re.findall(r'<tr><th scope="row">.*?</tr>', table)
    ]
    assert [sum(line[:-1]) for line in counts] == [line[-1] for line in counts]
    assert sum(line[-1] for line in counts) == 100  # the validation split
    right = sum(line[place] for place, line in enumerate(counts))
    assert right / 100 == pytest.approx(rows("best", "small")["model_value"])
    assert text.count('src="data:image/jpeg;base64,') == min(12, 100 - right)


def test_a_damaged_export_is_refused(inside: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert "holds no model" in transfer_search("predict", tmp_path / "empty", tmp_path / "image.png", code=2)
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"\0" * 100)
    assert "no usable export" in transfer_search(
        "predict", tmp_path / "empty", tmp_path / "image.png", code=2
    )


def test_a_dry_run_says_what_would_run_and_writes_nothing(folder: Path) -> None:
    (folder / "small.yaml").write_text(SMALL)
    printed = transfer_search("launch", "small.yaml", "--dry-run", "--set", "search.trials=9")
    for text in ("train 200", "9 trials", "12,810 of", str(folder / "searches" / "small"), "mlflow.db"):
        assert text in printed
    assert [path.name for path in folder.iterdir()] == ["small.yaml"]


BROKEN = {
    "unknown key": (["search.trails=3"], "did you mean trials"),
    "wrong type": (["search.trials=many"], "whole number"),
    "empty range": (["space.lr={low: 1, high: 0.1}"], "must be below high"),
    "a sampled knob that nothing reads": (["space.momentum={low: 0, high: 0.9}"], "nothing reads it"),
    "missing folder": (["data.source=./nowhere"], "nowhere"),
    "one class only": (["data.source=./lonely"], "class"),
    "unknown backbone": (["space.backbone=resnet19"], "resnet18"),
    "unreachable weights": (["space.backbone=resnet18"], "weights"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_spec_ends_before_a_trial_starts(folder: Path, case: str) -> None:
    overrides, says = BROKEN[case]
    (folder / "small.yaml").write_text(SMALL)
    (folder / "lonely" / "cat").mkdir(parents=True)
    for index in range(4):
        Image.new("L", (8, 8), index).save(folder / "lonely" / "cat" / f"{index}.png")
    printed = transfer_search(
        "launch", "small.yaml", *(f"--set={override}" for override in overrides), code=2
    )
    assert says in printed
    assert not (folder / "searches" / "small" / "spec.yaml").exists()
    assert not (folder / "mlflow.db").exists()


def test_a_home_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "small.yaml").write_text(SMALL)
    (folder / "file").touch()
    printed = transfer_search("launch", "small.yaml", "--home", folder / "file" / "below", code=2)
    assert "cannot write" in printed


@pytest.mark.long
def test_a_running_search_is_not_launched_twice_and_survives_a_kill(folder: Path) -> None:
    (folder / "small.yaml").write_text(SMALL)
    words = ("launch", "small.yaml", "--set=search.trials=24", "--set=search.pruner=none")
    driver = subprocess.Popen([sys.executable, "-m", "search", *words], stdout=subprocess.DEVNULL)
    checkpoints = folder / "searches/small/checkpoints"
    while not checkpoints.exists() or len(list(checkpoints.iterdir())) < 3:
        assert driver.poll() is None
        time.sleep(0.05)
    refused = transfer_search(*words, code=2)
    assert f"process {driver.pid}" in refused
    driver.kill()
    driver.wait()
    assert "launched before" in transfer_search(*words, code=2)
    assert rows("status", "small")["counted"] < 24
    transfer_search("resume", "small")
    assert [row["trial"] for row in rows("trials", "small")] == list(range(24))
    assert {row["state"] for row in rows("trials", "small")} == {"COMPLETE"}
    assert "all agree" in transfer_search("doctor", "small")


@pytest.mark.long
def test_one_worker_and_one_seed_give_the_same_search_twice(folder: Path) -> None:
    (folder / "small.yaml").write_text(SMALL)
    found = []
    for home in ("one", "two"):
        words = ("--set=resources.concurrency=1", "--set=search.trials=4", "--home", home)
        transfer_search("launch", "small.yaml", *words)
        listed = rows("trials", "small", "--home", home)
        found.append([(row["state"], row["params"], row["value"], row["epochs"]) for row in listed])
    assert found[0] == found[1]
