"""What an installed package adds runs in real searches, with no line of ours changed for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sklearn.datasets import load_digits

from trainables.record import MODEL_FOLDER

pytestmark = pytest.mark.timeout(600)  # it is among the first, which compile what was installed

ROOT = Path(__file__).parents[2]

VECTORS = """\
name: vectors
data: {modality: vectors, source: digits.csv, options: {skip_rows: 1}}
search: {trials: 2, max_epochs: 4, sampler: halton, pruner: none}
space: {strategy: full, backbone_lr_mult: 1.0, lr: 0.05, policy: noise, noise: {low: 0.1, high: 1.0}}
"""
IMAGES = """\
name: images
data: {source: digits, image_size: 16, limit: {train: 40, validation: 20, test: 20}}
search: {trials: 1, max_epochs: 1, sampler: random, refit: false}
space: {backbone: averages, weights: none, strategy: full, policy: negative, lr: [0.001, 0.01]}
"""
COMMANDS = [
    ["launch", "vectors.yaml"],
    ["resume", "vectors", "--trials", "3"],
    ["trials", "vectors", "--json"],
    ["export", "vectors", "--to", "exported"],
    ["predict", "exported", "zero.csv", "--json"],
    ["launch", "images.yaml"],
    ["trials", "images", "--json"],
    ["export", "images", "--to", "graphs", "--format", "safetensors"],
    ["policies", "--json"],
    ["backbones", "averages", "--json"],
    ["backbones", "--modality", "vectors", "--json"],
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed into."""
    folder = tmp_path_factory.mktemp("packages")
    source = shutil.copytree(Path(__file__).parent / "package", folder / "source")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def said(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of the searches, and what each of `COMMANDS` printed."""
    folder = tmp_path_factory.mktemp("searches")
    digits = load_digits()
    rows = [
        ",".join(map(str, [*values, f"digit {label}"]))
        for values, label in zip(digits.data[:300], digits.target[:300], strict=True)
    ]
    (folder / "digits.csv").write_text("\n".join(["pixels and a digit", *rows]) + "\n")
    np.savetxt(folder / "zero.csv", digits.data[:1], delimiter=",")
    (folder / "vectors.yaml").write_text(VECTORS)
    (folder / "images.yaml").write_text(IMAGES)
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugins.drive"],
        input=json.dumps(COMMANDS),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def of(said: tuple[Path, list[str]], *command: str) -> str:
    return said[1][COMMANDS.index(list(command))]


@pytest.mark.slow
def test_a_modality_of_its_own_is_searched_and_resumed(said: tuple[Path, list[str]]) -> None:
    trials = json.loads(of(said, "trials", "vectors", "--json"))
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 3
    assert {trial["params"]["policy"] for trial in trials} == {"noise"}
    assert len({trial["params"]["noise"] for trial in trials}) == 3
    assert max(trial["value"] for trial in trials) > 0.3
    runs = mlflow.MlflowClient(f"sqlite:///{said[0] / 'mlflow.db'}")
    for trial in trials:
        run = runs.get_run(trial["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.metrics["val_accuracy"] > 0


@pytest.mark.slow
def test_its_model_is_exported_and_predicts(said: tuple[Path, list[str]]) -> None:
    assert "as recorded" in of(said, "export", "vectors", "--to", "exported")
    (row,) = json.loads(of(said, "predict", "exported", "zero.csv", "--json"))
    assert row["label"] in row["probabilities"]
    assert len(row["probabilities"]) == 10
    card = json.loads((said[0] / "exported" / "model.json").read_text())
    assert card["modality"] == "vectors"
    assert card["preprocessing"] == {"width": 64, "scale": 16.0}


@pytest.mark.slow
def test_a_policy_and_a_backbone_are_values_of_a_spec(said: tuple[Path, list[str]]) -> None:
    (trial,) = json.loads(of(said, "trials", "images", "--json"))
    assert (trial["state"], trial["params"]["policy"]) == ("COMPLETE", "negative")
    assert trial["params"]["backbone"] == "averages"
    assert "as recorded" in of(said, "export", "images", "--to", "graphs", "--format", "safetensors")
    assert json.loads(of(said, "policies", "--json"))["negative"][-1] == "the negative of every other image"
    (listed,) = json.loads(of(said, "backbones", "averages", "--json"))
    assert listed == {"name": "averages", "parameters": None, "image_size": 16, "weights_at_hand": False}
    (listed,) = json.loads(of(said, "backbones", "--modality", "vectors", "--json"))
    assert listed["name"] == "projection"


@pytest.mark.slow
def test_a_trial_records_what_was_added(said: tuple[Path, list[str]]) -> None:
    (applied,) = (said[0] / "searches" / "images").glob("checkpoints/*/record/applied.json")
    assert json.loads(applied.read_text())["policy"] == [
        "centre crop to 16 px",
        "the negative of every other image",
    ]
    assert (applied.parents[1] / MODEL_FOLDER).is_dir()
