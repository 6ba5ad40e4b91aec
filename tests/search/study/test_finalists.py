"""Finalists: what their runs say, and that the test split is for them alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from rich.console import Console
from scipy import stats
from sklearn.datasets import load_digits

from search.errors import SpecError
from search.home import Home
from search.results.export import stored_export
from search.search import Search
from search.spec.search_spec import read_spec
from search.study.finalists import (
    Finalist,
    FinalistStudy,
    candidates,
    differ,
    summarized,
    table,
    verdict,
)
from search.study.intervals import Sample, of_new_images
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from search.tracking.artifacts import fetch_files
from tests.search.commands import rows, transfer_search
from tests.search.specs import SMALL, small
from trainables import trial as trial_module
from trainables.image.data import DataConfig, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.image_transfer import ImageTransfer, TrialConfig
from trainables.record import BEST, METRICS, MODEL_FOLDER, TEST_METRICS
from trainables.training.delta import load_delta
from trainables.training.keeping import BEST_EPOCH

# Statistics


def test_shares_have_an_interval_and_others_none() -> None:
    values = [0.91, 0.95, 0.93, 0.94]
    shares, others = summarized(values, 10**9), summarized(values)
    assert shares.mean == others.mean == pytest.approx(0.9325)
    assert others.interval is None, "the seeds alone say nothing of other images"
    expected = stats.t.interval(0.95, 3, loc=0.9325, scale=stats.sem(values))
    assert shares.interval == pytest.approx(expected, abs=1e-4), "of as good as all images the seeds' own"
    assert summarized([1.0, 2.0, 3.0]).std == pytest.approx(1.0)


def test_too_few_values_have_no_interval() -> None:
    assert summarized([]).mean is None
    alone = summarized([0.5])
    assert (alone.mean, alone.std, alone.interval) == (0.5, None, None)


@pytest.mark.parametrize(
    "other", [[0.90, 0.92, 0.89], [0.85, 0.89, 0.84], [0.93, 0.90, 0.94], [0.7, 0.95, 0.8]]
)
def test_finalists_differ_where_a_paired_t_test_says_so(other: list[float]) -> None:
    best = [0.91, 0.94, 0.90]
    p = stats.ttest_rel(best, other).pvalue
    assert differ(dict(enumerate(best)), dict(enumerate(other))) == (p < 0.05)
    assert differ(dict(enumerate(best)), dict(enumerate(other)), comparisons=4) == (p < 0.05 / 4)


def test_pairs_are_of_one_seed() -> None:
    one = {0: 0.1, 1: 0.5, 2: 0.9}
    assert differ(one, {0: 0.09, 1: 0.489, 2: 0.891})
    assert not differ(one, {2: 0.09, 1: 0.489, 0: 0.891})
    assert not differ(one, {0: 0.0, 7: 0.0}), "one pair says nothing"
    assert not differ(one, one)
    assert not differ({0: 0.90, 1: 0.90}, {0: 0.88, 1: 0.88}), "heads that no seed changes"


# The study of the finalists' runs


def ended(study: SearchStudy, value: float | None, ending: Ending = Ending.COMPLETED, **test: float) -> int:
    """Begins a trial of the study and ends it with a value."""
    given = study.ask()
    best = None
    if value is not None:
        best = {"epoch": 1.0, **dict.fromkeys(METRICS, 0.5), "val_accuracy": value, **test}
        study.report(given.number, 1, best)
    study.end(given.number, ending, best)
    return given.number


def searched(*values: float, overrides: tuple[str, ...] = ()) -> tuple[Home, SearchStudy]:
    """A search whose trials have ended with the values, with three finalists on two seeds."""
    home = Home.of("small")
    home.make()
    given = ("search.finalists={top: 3, seeds: 2}", f"search.trials={len(values)}", "search.sampler=random")
    study = SearchStudy.create(small(*given, *overrides), home)
    for value in values:
        ended(study, value)
    return home, study


def results(home: Home, study: SearchStudy) -> list[Finalist]:
    home.spec.write_text(study.spec.to_yaml())
    return Search.open(home).standings


def test_the_best_are_chosen_and_get_the_same_fresh_seeds(folder: Path) -> None:
    home, search = searched(0.5, 0.9, 0.7, 0.8, 0.6)
    assert list(candidates(search)) == [1, 3, 2]
    study = FinalistStudy.begin(search, home)
    given = [study.ask() for _ in range(study.budget)]
    assert len(given) == 6
    seeds = [each.hparams.seed for each in given]
    assert len(set(seeds)) == 2
    assert not set(seeds) & {record.params["seed"] for record in search.records()}
    for run, trial in zip(given, [1, 3, 2, 1, 3, 2], strict=True):
        begun = search.begun(trial)
        assert begun is not None
        expected = {**begun.hparams.to_dict(), "seed": run.hparams.seed}
        assert run.hparams.to_dict() == expected
        tags = {"role": "finalist", "of": str(trial), "seed": str(run.hparams.seed)}
        assert study.tags(run.number) == tags
    assert search.progress().counted == search.progress().budget == 5
    assert len(search.records()) == 5


def test_the_same_hyperparameters_are_a_finalist_once(folder: Path) -> None:
    overrides = ("space.lr=0.01", "space.policy=none", "space.batch_size=[32, 64]")
    _, search = searched(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, overrides=overrides)
    chosen = candidates(search)
    values: dict[int, dict[int, float]] = {}
    for record in search.records():
        values.setdefault(record.params["batch_size"], {})[record.number] = record.value or 0.0
    by_mean = sorted(values.values(), key=lambda mine: -sum(mine.values()) / len(mine))
    assert list(chosen) == [min(mine) for mine in by_mean], "the best mean first, by its first trial"
    assert {hparams.batch_size for hparams in chosen.values()} == {32, 64}
    assert len(chosen) == 2


def test_the_best_mean_wins_and_not_the_best_trial(folder: Path) -> None:
    home, search = searched(0.5, 0.9, 0.7, 0.8)
    study = FinalistStudy.begin(search, home)
    for value, test in ((0.70, 0.1), (0.80, 0.2), (0.75, 0.9), (0.71, 0.1), (0.82, 0.4), (0.76, 0.8)):
        assert results(home, search) == []
        ended(study, value, test_accuracy=test)
    first, second, third = results(home, search)
    assert [first.trial, second.trial, third.trial] == [3, 2, 1]
    assert first.run == 1, "its run on the first seed, though the other is better"
    assert first.validation.mean == pytest.approx(0.81)
    assert first.test["test_accuracy"].values == (0.2, 0.4)
    assert set(first.test) == {"test_accuracy"}
    assert second.ties_with_best
    told = [first, second, third]
    assert "trial 3 has the best mean, but trials 2" in verdict(told)
    json.dumps([each.row() for each in told], allow_nan=False)
    assert table(told, "val_accuracy").row_count == 3


def test_images_are_in_the_interval_and_a_guess_is_no_find(folder: Path) -> None:
    home, search = searched(0.12, 0.13, overrides=("search.finalists={top: 2, seeds: 2}",))
    search.samples = {split: Sample(count=500, majority=0.1) for split in ("validation", "test")}
    study = FinalistStudy.begin(search, home)
    for value, test in ((0.121, 0.101), (0.125, 0.098), (0.122, 0.1), (0.124, 0.097)):
        ended(study, value, test_accuracy=test)
    winner, _ = results(home, search)
    assert winner.validation.interval == of_new_images(winner.validation.values, 500)
    assert winner.test["test_accuracy"].interval == of_new_images(winner.test["test_accuracy"].values, 500)
    assert winner.chance == 0.1
    assert "nothing was found" in verdict([winner])
    search.samples = {split: Sample(count=500, majority=0.02) for split in ("validation", "test")}
    assert results(home, search)[0].chance is None


def test_less_is_better_where_the_objective_says_so(folder: Path) -> None:
    home, search = searched(0.5, 0.9, 0.7, overrides=("search.objective={val_accuracy: minimize}",))
    assert list(candidates(search)) == [0, 2, 1]
    study = FinalistStudy.begin(search, home)
    for value in (0.6, 0.5, 0.9, 0.7, 0.4, 0.9):
        ended(study, value)
    first = results(home, search)[0]
    assert (first.trial, first.run) == (2, 1)
    assert first.test == {}, "no test images, no test scores"


def test_a_finalist_that_fails_ranks_behind(folder: Path) -> None:
    home, search = searched(0.9, 0.8, overrides=("search.finalists={top: 2, seeds: 2}",))
    study = FinalistStudy.begin(search, home)
    ended(study, 0.95)
    ended(study, 0.8)
    ended(study, None, Ending.DIVERGED)
    ended(study, 0.81)
    first, second = results(home, search)
    assert (first.trial, second.trial, second.failed) == (1, 0, 1)
    assert second.validation.interval is None
    assert second.ties_with_best, "one pair tells nothing"
    study.retry_failed()
    ended(study, 0.96)
    first, second = results(home, search)
    assert (first.trial, first.run, first.failed) == (0, 0, 0), "the run on the first seed stands for it"


def test_none_completed_leaves_the_search_its_best(folder: Path) -> None:
    home, search = searched(0.9, overrides=("search.finalists={top: 2, seeds: 2}",))
    study = FinalistStudy.begin(search, home)
    for _ in range(2):
        ended(study, None, Ending.ERRORED)
    assert results(home, search) == []


def test_a_larger_search_adds_to_its_finalists(folder: Path) -> None:
    home, search = searched(0.5, 0.9, 0.7, overrides=("search.finalists={top: 2, seeds: 2}",))
    study = FinalistStudy.begin(search, home)
    for _ in range(study.budget):
        ended(study, 0.6)
    assert results(home, search)[0].trial == 1
    search.budget = 4
    assert results(home, search) == [], "the search is not over"
    ended(search, 0.8)
    assert results(home, search) == [], "there is a new finalist"
    study = FinalistStudy.begin(search, home)
    assert study.progress().left == 2, "the runs of trial 1 are there"
    for _ in range(2):
        ended(study, 0.7)
    assert [each.trial for each in results(home, search)] == [3, 1]
    assert FinalistStudy.begin(search, home).progress().left == 0


def test_a_run_goes_on_under_a_new_driver(folder: Path) -> None:
    home, search = searched(0.5, 0.9)
    drawn = FinalistStudy.begin(search, home).ask()
    again = FinalistStudy.begin(search, home)
    assert again.interrupted() == [drawn.number]
    assert again.continue_trial(drawn.number).hparams == drawn.hparams


# The spec


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{top: 0}", "greater than or equal to 1"),
        ("{seeds: 1}", "greater than or equal to 2"),
        ("{tops: 2}", "did you mean top?; allowed: top, seeds"),
        ("3", "search.finalists"),
    ],
)
def test_a_wrong_spec_is_refused(given: str, says: str) -> None:
    with pytest.raises(SpecError) as refused:
        small(f"search.finalists={given}")
    assert says in str(refused.value)


def test_a_front_has_no_winner() -> None:
    objective = "search.objective={val_accuracy: maximize, epoch_seconds: minimize}"
    with pytest.raises(SpecError, match="finalists need one objective"):
        small(objective, "search.pruner=none", "search.finalists={top: 2}")


def test_no_finalists_unless_asked_for() -> None:
    assert small().search.finalists is None
    spec = small("search.finalists={}")
    assert spec.search.finalists is not None
    assert (spec.search.finalists.top, spec.search.finalists.seeds) == (3, 3)
    assert read_spec(spec.to_yaml()) == spec


# The test split


MONITOR = {"metric": "train_loss", "maximize": True, "rule": BEST_EPOCH}
"""Keeps another model than that of the last epoch, as searches of old did."""


class Watched(dict[str, Any]):
    """Splits that remember which of them was looked at."""

    def __init__(self, splits: Any) -> None:
        super().__init__(splits)
        self.looked_at: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.looked_at.append(name)
        return super().__getitem__(name)


@pytest.fixture
def stepped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Any], list[int], Path]]:
    """Runs a trial here: its results, how often the test split had been looked at by each, its folder."""
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path / "tune"))

    def run(*, test: float = 0.2, **more: Any) -> tuple[list[Any], list[int], Path]:
        limits = {"train_limit": 40, "validation_limit": 30, "test_limit": 30 if test else None}
        config = DataConfig(source="digits", test=test, **limits)  # type: ignore[arg-type]
        data = load(config, cache_dir=tmp_path / "cache")
        watched = Watched(data.splits)
        data = replace(data, splits=watched)
        monkeypatch.setattr(trial_module, "_data", lambda *_, **__: data)
        hparams = HParams(image_size=32, batch_size=8, max_epochs=4, strategy="probe", lr=0.05, ema=0.9)
        trial = TrialConfig(
            sampled=[],
            number=0,
            hparams=hparams.to_dict(),
            folder=str(tmp_path / "trial"),
            data=config.to_dict(),
            settings={"threads": 1, "monitor": MONITOR},
            cache_dir=str(tmp_path / "cache"),
            cache_bytes=2**30,
            **more,
        )
        trainable, found, looks = ImageTransfer(trial), [], []
        for _ in range(4):
            found.append(trainable.step())
            looks.append(watched.looked_at.count("test"))
        trainable.stop()
        return found, looks, tmp_path / "trial"

    return run


def test_a_trial_never_looks_at_the_test_split(stepped: Callable[..., Any]) -> None:
    found, looks, _ = stepped()
    assert looks == [0, 0, 0, 0]
    assert not any(set(TEST_METRICS) & {*result, *result[BEST]} for result in found)


def test_a_finalist_is_scored_once_with_the_model_that_it_keeps(stepped: Callable[..., Any]) -> None:
    found, looks, folder = stepped(score_test=True)
    assert looks[:3] == [0, 0, 0]
    assert looks[3] > 0
    assert not any(set(TEST_METRICS) & set(result[BEST]) for result in found[:3])
    best = found[3][BEST]
    assert best["epoch"] < 4, "the worst loss of training is not the last"
    data = trial_module._data("")
    loaded = load_delta(folder / MODEL_FOLDER)
    preprocessing = loaded.card.preprocessing
    frames = data.frames(preprocessing.frame_size, preprocessing.interpolation)
    chosen = data.splits["test"]
    from trainables.image.transforms import center_crop

    predicted = loaded.model(center_crop(frames[chosen], preprocessing.image_size)).argmax(1)
    assert best["test_accuracy"] == pytest.approx(float((predicted == data.labels[chosen]).float().mean()))


def test_without_test_images_there_is_nothing_to_score(stepped: Callable[..., Any]) -> None:
    found, _, _ = stepped(test=0, score_test=True)
    assert not set(TEST_METRICS) & set(found[-1][BEST])


# The whole, as a user runs it

SPEC = SMALL.replace("  limit: {train: 200, validation: 100, test: 50}\n", "").replace("digits", "images")
LAUNCH = (
    "launch",
    "small.yaml",
    "--set=search.trials=4",
    "--set=search.finalists={top: 2, seeds: 3}",
    "--set=resources.concurrency=1",
)


def write_images(folder: Path, wrong: int = 0) -> None:
    """Digits in train, val and test; the test images lie in the folders of labels that are `wrong` off."""
    digits = load_digits()
    for split, (first, last) in zip(("train", "val", "test"), pairwise((0, 150, 230, 280)), strict=True):
        for index in range(first, last):
            label = (int(digits.target[index]) + (wrong if split == "test" else 0)) % 10
            place = folder / "images" / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((digits.images[index] * 15).astype("uint8"))
            image.save(place / f"{index:04}.png")
    (folder / "small.yaml").write_text(SPEC)


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Path:
    """A search whose driver was killed among the finalists, and which was then resumed to its end."""
    place = tmp_path_factory.mktemp("killed")
    write_images(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        driver = subprocess.Popen([sys.executable, "-m", "search", *LAUNCH], stdout=subprocess.DEVNULL)
        runs = place / "searches/small/finalists/checkpoints"
        while not runs.exists() or len(list(runs.iterdir())) < 3:
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
        driver.wait()
        state = rows("status", "small")
        assert (state["state"], state["counted"]) == ("STOPPED", 4)
        assert 0 < state["finalists"]["ended"] < state["finalists"]["runs"] == 6
        assert "finalists" not in rows("best", "small"), "no winner before all have run"
        before = {run.number: run for run in finalists_runs(place) if run.state != "RUNNING"}
        printed = transfer_search("resume", "small")
        for run in finalists_runs(place):
            if run.number in before:  # whose run in MLflow may have been known to nobody yet
                known = replace(before[run.number], mlflow_run_id=run.mlflow_run_id)
                assert run == known, "what had ended was not run again"
    assert "winner: trial" in printed
    return place


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Path:
    """The same search, not interrupted, whose test images have other labels."""
    place = tmp_path_factory.mktemp("mislabelled")
    write_images(place, wrong=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        transfer_search(*LAUNCH)
    return place


def finalists_runs(place: Path) -> Any:
    home = Home(place / "searches/small")
    study = Search.open(home).finalists
    assert study is not None
    return study.records()


def found_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], dict[str, Any]]:
    monkeypatch.chdir(place)
    trials = [(r["trial"], r["state"], r["params"], r["value"], r["epochs"]) for r in rows("trials", "small")]
    return trials, rows("best", "small")


@pytest.mark.long
def test_labels_of_test_images_change_no_trial_and_no_winner(
    killed_and_resumed: Path, mislabelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, best = found_in(killed_and_resumed, monkeypatch)
    other_trials, other = found_in(mislabelled, monkeypatch)
    assert len(trials) == 4
    assert other_trials == trials
    for name in ("trial", "value", "params", "epoch", "epochs", "finalist_run"):
        assert other[name] == best[name]
    for one, two in zip(best["finalists"], other["finalists"], strict=True):
        assert one["values"] == two["values"]
        assert one["test"]["test_accuracy"]["mean"] > two["test"]["test_accuracy"]["mean"] + 0.2


def test_the_winner_is_what_best_and_export_give(
    killed_and_resumed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, best = found_in(killed_and_resumed, monkeypatch)
    assert {"search", "trial", "value", "params", "mlflow_run_id", "model_uri", "epochs"} <= set(best)
    first, second = best["finalists"]
    assert first["trial"] == best["trial"]
    assert first["mean"] >= second["mean"]
    assert best["value"] == first["values"][0]
    assert [len(first["values"]), len(second["values"])] == [3, 3]
    top = sorted((row for row in trials if row[1] == "COMPLETE"), key=lambda row: -row[3])[:2]
    assert {first["trial"], second["trial"]} == {row[0] for row in top}
    printed = transfer_search("export", "small", "--to", "out", "--format", "safetensors")
    assert f"as recorded ({best['model_value']:.4f})" in printed
    assert (
        json.loads((killed_and_resumed / "out/model.json").read_text())["hparams"]["seed"]
        == best["params"]["seed"]
    )
    assert "finalists 6/6 runs" in transfer_search("status", "small")
    assert rows("status", "small")["state"] == "FINISHED"


def runs_in(place: Path, uri: str | None = None) -> tuple[MlflowClient, Run, dict[int, Run]]:
    """MLflow's parent run, and the finalists' runs by number."""
    search = Search.open(Home(place / "searches/small"))
    spec, study = search.spec, search.study
    client = MlflowClient(uri or spec.tracking_uri)
    (experiment,) = client.search_experiments(filter_string="name = 'transfer-search'")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    mine = [run for run in runs if run.data.tags["transfer_search.search_id"] == study.search_id]
    (parent,) = [run for run in mine if "mlflow.parentRunId" not in run.data.tags]
    kids = [run for run in mine if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(kids) == 10, "four trials and six finalists"
    finalists = [run for run in kids if run.data.tags.get("role") == "finalist"]
    numbered = {int(run.data.tags["transfer_search.finalist"]): run for run in finalists}
    assert sorted(numbered) == list(range(6))
    return client, parent, numbered


def test_an_export_through_mlflow_is_the_winners_too(
    killed_and_resumed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, best = found_in(killed_and_resumed, monkeypatch)
    console = Console(file=io.StringIO())
    stored = stored_export(
        Search.open(Home.existing("small")),
        trial=None,
        finalist=None,
        formats=["safetensors"],
        console=console,
    )
    fetch_files(stored, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["hparams"]["seed"] == best["params"]["seed"]
    assert stored["trial"] == best["trial"]


def test_mlflow_shows_the_finalists_once(killed_and_resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, best = found_in(killed_and_resumed, monkeypatch)
    client, parent, runs = runs_in(killed_and_resumed)
    for run in runs.values():
        assert run.info.status == "FINISHED"
        for metric, steps in (("val_accuracy", 4), *((name, 1) for name in TEST_METRICS)):
            points = client.get_metric_history(run.info.run_id, metric)
            assert len({point.step for point in points}) == len(points) == steps
    winner = best["finalists"][0]
    values = [
        run.data.metrics["test_accuracy"]
        for run in runs.values()
        if run.data.tags["of"] == str(winner["trial"])
    ]
    assert sorted(values) == sorted(winner["test"]["test_accuracy"]["values"])
    assert parent.data.metrics["test_accuracy"] == winner["test"]["test_accuracy"]["mean"]
    assert parent.data.metrics["winner_val_accuracy"] == winner["mean"]
    assert parent.data.tags["winner"] == str(winner["trial"])
    assert parent.info.status == "FINISHED"
    assert "finalists.txt" in [file.path for file in client.list_artifacts(parent.info.run_id)]
    assert "all agree" in transfer_search("doctor", "small")


def test_the_report_is_whole_and_in_mlflow(killed_and_resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(killed_and_resumed)
    assert "report written to small.html" in transfer_search("report", "small")
    text = Path("small.html").read_text()
    assert "<h2>Winner: trial" in text
    assert text.count("<svg") >= 3
    client, parent, _ = runs_in(killed_and_resumed)
    assert "report.html" in [file.path for file in client.list_artifacts(parent.info.run_id)]


@pytest.mark.long
def test_the_doctor_mends_the_finalists_too(
    killed_and_resumed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(killed_and_resumed)
    home = Home.of("small")
    whole = home.spec.read_text()
    empty = f"sqlite:///{killed_and_resumed / 'empty.db'}"
    home.spec.write_text(read_spec(home.spec, [f"tracking.uri={empty}"]).to_yaml())
    transfer_search("doctor", "small", code=1)
    transfer_search("doctor", "small", "--repair")
    assert "all agree" in transfer_search("doctor", "small")
    _, _, runs = runs_in(killed_and_resumed)
    assert all(TEST_METRICS[0] in run.data.metrics for run in runs.values())
    home.spec.write_text(whole)
