"""An ensemble as a user gets it: looked for, recorded, told, exported, served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from search.errors import SpecError
from tests.search.commands import rows, transfer_search
from tests.search.specs import SMALL, small
from tests.search.test_end_to_end import validation_images
from trainables.record import TEST_METRICS
from trainables.training import selection

SETTINGS = (
    "--set=data.limit={train: 60, validation: 300, test: 100}",
    "--set=space.features=[last, stages]",
    "--set=space.solver=[ridge, gradient]",
    "--set=search.trials=8",
    "--set=search.sampler=random",
    "--set=search.max_epochs=1",
    "--set=search.ensemble=6",
    "--set=search.refit=true",
)


def test_how_many_trials_is_checked() -> None:
    assert small().search.ensemble == "auto"
    assert small("search.ensemble=false").search.ensemble == 0
    for wrong in ("1", "true", "100", "many"):
        with pytest.raises(SpecError, match=r"search\.ensemble"):
            small(f"search.ensemble={wrong}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Path:
    place = tmp_path_factory.mktemp("ensemble")
    (place / "small.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        # Who is chosen, and whether that is better by more than chance, is tested elsewhere.
        patch.setattr(selection, "_LEVEL", -1000.0)
        patch.setattr(selection, "_greedy", lambda right: [0, 1, 0])
        printed = transfer_search("launch", "small.yaml", *SETTINGS)
    assert "won: the ensemble of trials" in printed
    return place


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_it_takes_the_winners_place_and_is_a_run(inside: Path) -> None:
    best = rows("best", "small")
    assert best["model_of"] == "ensemble"
    assert len(best["shares"]) > 1
    assert sum(best["shares"].values()) == pytest.approx(1)
    assert set(best["test"]) == set(TEST_METRICS)
    client = MlflowClient(f"sqlite:///{inside}/mlflow.db")
    run = client.get_run(best["mlflow_run_id"])
    assert (run.data.tags["role"], run.data.tags["of"]) == ("ensemble", ", ".join(best["shares"]))
    assert run.data.metrics["test_accuracy"] == best["test"]["test_accuracy"]
    metrics = run.data.metrics
    assert metrics["best_val_accuracy"] == metrics["val_accuracy"], "left out of choosing, before the refits"
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["won"].startswith("ensemble of trials")
    refits = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.role = 'refit'",
    )
    assert {run.data.tags["of"] for run in refits} == set(best["shares"]), "each member once"
    assert "seen_val_accuracy" in refits[0].data.metrics
    assert best["model_value"] is None, "it has seen the validation images"
    assert rows("status", "small")["state"] == "FINISHED"
    assert "all agree" in transfer_search("doctor", "small")
    transfer_search("resume", "small")
    assert rows("best", "small") == best, "what is made is not made again"


def test_it_is_one_model_everywhere(inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = rows("best", "small")
    images, truth = validation_images(inside / "searches/small/spec.yaml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{inside}/mlflow.db")
    told = mlflow.pyfunc.load_model(best["model_uri"]).predict(np.stack(images))
    printed = transfer_search("export", "small", "--to", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    seen = card["metric"]["val_accuracy"]
    assert float(np.mean(told["label"] == truth)) == seen
    assert printed.count(f"validation accuracy {seen:.4f} on images that it was trained on") == 3
    assert printed.count("as recorded") == 3
    assert "the ensemble of trials" in printed
    assert {tuple(member["card"]["trained_on"]) for member in card["members"]} == {("train", "validation")}
    assert [member["name"] for member in card["members"]] == [f"trial {number}" for number in best["shares"]]
    assert {member["trunk"] for member in card["members"]} == {0}, "one frozen trunk"
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| trial " in text
    assert "the members were trained again with their configurations on training and validation" in text
    assert "before the refit (selected)" in text
    for number, image in enumerate(images[:3]):
        Image.fromarray(image).save(tmp_path / "out" / f"{number}.png")
    names = [f"{number}.png" for number in range(3)]
    script = (
        "from PIL import Image; from load_safetensors import load; model = load('model.safetensors')\n"
        "from classify import Classifier; import json, pathlib\n"
        f"both = [[], []]\nfor name in {names}:\n"
        "    inputs = model.prepare(Image.open(name).convert('RGB')).unsqueeze(0)\n"
        "    both[0].append(model(inputs).softmax(1)[0].tolist())\n"
        "    (row,) = Classifier('model.onnx').classify([pathlib.Path(name)])\n"
        "    both[1].append(list(row['probabilities'].values()))\n"
        "print(json.dumps(both))"
    )
    command = [sys.executable, "-c", script]
    alone = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    # The export has a temperature, which the model in MLflow has not.
    powers = np.stack(told["probabilities"][:3]) ** card.get("factor", 1.0)
    expected = powers / powers.sum(1, keepdims=True)
    for found in json.loads(alone.stdout):
        np.testing.assert_allclose(found, expected, atol=2e-3)
