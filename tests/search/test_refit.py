"""The winner's refit: what it is trained on, what is told of it, and that `best` and `export` give it."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow import MlflowClient

from search.errors import SpecError
from search.home import Home
from search.search import Search
from search.spec.search_spec import read_spec
from search.study.search_study import SearchStudy
from tests.search.commands import rows, transfer_search
from tests.search.specs import SMALL, small
from tests.search.study.test_finalists import ended
from tests.search.test_end_to_end import validation_images
from trainables.record import TEST_METRICS


def test_a_search_of_old_is_refitted_only_if_that_is_set(folder: Path) -> None:
    home = Home.of("small")
    home.make()
    spec = read_spec(SMALL.replace("  refit: false\n", ""))
    study = SearchStudy.create(spec, home)
    assert study.is_refitted, "a new one is"
    study._study.set_user_attr("refit", None)
    assert not study.is_refitted
    assert SearchStudy(study._study, small("search.refit=true")).is_refitted
    assert not SearchStudy(study._study, small("search.refit=false")).is_refitted
    ended(study, 0.5)
    home.spec.write_text(spec.to_yaml())
    search = Search.open(home)
    assert search.winner is not None
    assert search.to_refit is None
    assert search.champion is None


def test_a_pareto_front_is_not_refitted() -> None:
    objective = "search.objective={val_accuracy: maximize, val_loss: minimize}"
    with pytest.raises(SpecError, match="refit needs one objective"):
        small(objective, "search.pruner=none", "search.refit=true")


# The whole, as a user runs it: heads on stage features, solved for and stepped

SPACE = ("--set=space.features=stages", "--set=space.solver=[ridge, gradient]", "--set=search.max_epochs=2")


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Path:
    place = tmp_path_factory.mktemp("refitted")
    (place / "small.yaml").write_text(SMALL.replace("refit: false", "refit: true"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        printed = transfer_search("launch", "small.yaml", *SPACE, "--set=search.trials=3")
    assert "refit" in printed
    assert "won: its refit on the training and validation splits, which `export` gives; test_" in printed
    return place


@pytest.fixture
def inside(refitted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(refitted)
    return refitted


def test_best_names_the_refit_and_keeps_the_trials_value(inside: Path) -> None:
    best, trials = rows("best", "small"), rows("trials", "small")
    assert best["model_of"] == "refit"
    assert best["value"] == max(row["value"] for row in trials if row["state"] == "COMPLETE")
    assert best["model_value"] is None, "it has seen the validation images"
    assert 0.5 < best["corrected"] <= best["value"] + 0.02
    assert "(selected; " in transfer_search("best", "small")
    assert set(best["test"]) == set(TEST_METRICS)
    assert best["mlflow_run_id"] not in {row["mlflow_run_id"] for row in trials}
    assert {row["model_of"] for row in trials} == {"trial"}
    assert not any(row["test"] for row in trials), "the test split chose nothing"
    assert best["model_uri"]
    assert rows("status", "small")["state"] == "FINISHED"
    assert "all agree" in transfer_search("doctor", "small")


def test_mlflow_calls_no_score_of_seen_images_a_validation_score(inside: Path) -> None:
    best = rows("best", "small")
    client = MlflowClient(f"sqlite:///{inside}/mlflow.db")
    run = client.get_run(best["mlflow_run_id"])
    assert (run.data.tags["role"], run.data.tags["of"]) == ("refit", str(best["trial"]))
    assert run.data.params["solver"] == best["params"]["solver"]
    assert "seen_val_accuracy" in run.data.metrics
    assert not [name for name in run.data.metrics if name.startswith(("val_", "best_"))]
    for name in TEST_METRICS:
        assert [point.value for point in client.get_metric_history(run.info.run_id, name)] == [
            best["test"][name]
        ]
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["won"] == f"refit of trial {best['trial']}"
    assert parent.data.metrics["refit_test_accuracy"] == best["test"]["test_accuracy"]


def test_export_gives_the_refit_and_says_so(inside: Path, tmp_path: Path) -> None:
    best = rows("best", "small")
    printed = transfer_search("export", "small", "--to", tmp_path / "out", "--format", "safetensors")
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["trained_on"] == ["train", "validation"]
    seen = f"{card['metric']['val_accuracy']:.4f}"
    told = f"validation accuracy {seen} on images that it was trained on, as recorded ({seen})"
    assert f"safetensors: {told}" in printed
    assert f"the refit of trial {best['trial']} is exported" in printed
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"The refit of trial {best['trial']} of the search `small`" in text
    assert "before the refit (selected)" in text
    assert f"| test_accuracy | {best['test']['test_accuracy']:.4f} |" in text
    assert "| val_accuracy |" in text
    assert "| val_macro_f1 |" not in text, "it has seen the validation images"
    transfer_search("report", "small")
    assert "won: its refit" in Path("small.html").read_text()


def test_heads_on_stages_reproduce_their_accuracy(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, truth = validation_images(inside / "searches/small/spec.yaml")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{inside}/mlflow.db")
    trials = [row for row in rows("trials", "small") if row["model_uri"]]
    for row in trials[:3]:
        model = mlflow.pyfunc.load_model(row["model_uri"])
        told = model.predict(np.stack(images))["label"]
        assert float(np.mean(told == truth)) == row["model_value"], row["trial"]
        files = (inside / f"searches/small/checkpoints/{row['trial']:05d}/model").iterdir()
        assert sum(file.stat().st_size for file in files) < 400_000
    solved = next(row for row in trials if row["params"]["solver"] == "ridge")
    words = ("--trial", str(solved["trial"]), "--format", "safetensors")
    printed = transfer_search("export", "small", "--to", tmp_path / "out", *words)
    recorded = f"{solved['model_value']:.4f}"
    assert f"safetensors: validation accuracy {recorded}, as recorded ({recorded})" in printed
    assert json.loads((tmp_path / "out" / "model.json").read_text()).get("trained_on") is None


@pytest.mark.long
def test_a_search_that_goes_on_is_refitted_where_the_winner_changed(inside: Path) -> None:
    before = rows("best", "small")
    transfer_search("resume", "small", "--trials", "6")
    after = rows("best", "small")
    assert after["model_of"] == "refit"
    folders = sorted(path.name for path in (inside / "searches/small/refit/checkpoints").iterdir())
    assert len(folders) == (1 if after["trial"] == before["trial"] else 2)
    assert "all agree" in transfer_search("doctor", "small")
