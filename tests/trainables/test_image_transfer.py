from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.buckets import Bucket
from trainables import image_transfer
from trainables import trial as trial_module
from trainables.files.remote import Remote
from trainables.files.trial_folder import model_metric
from trainables.image.data import DataConfig
from trainables.image.hparams import ImageHParams as HParams
from trainables.image_transfer import ImageTransfer, TrialConfig
from trainables.record import (
    BEST,
    EPOCHS,
    EPOCHS_FILE,
    METRICS,
    MODEL_FOLDER,
    MORE_SCORES,
    STATE_FILE,
    TEST_METRICS,
    TOLD,
)
from trainables.training.delta import load_delta
from trainables.training.keeping import EXPECTED, expected_name, value_of
from trainables.training.loop import Training

Make = Callable[[TrialConfig], ImageTransfer]
TIMINGS = {"epoch_seconds", "images_per_second"}


@pytest.fixture
def trial(tmp_path: Path, data_cache: Path) -> Callable[..., TrialConfig]:
    """The configuration of a trial; knobs by name."""
    data = DataConfig(source="digits", train_limit=24, validation_limit=20, test_limit=20)

    def configured(number: int, *, cache_bytes: int = 2**30, **knobs: Any) -> TrialConfig:
        hparams = HParams(**{"image_size": 32, "batch_size": 8, "max_epochs": 3, **knobs})
        return TrialConfig(
            sampled=[],
            number=number,
            hparams=hparams.to_dict(),
            folder=str(tmp_path / "trials" / str(number)),
            data=data.to_dict(),
            settings={"threads": 1, "monitor": {"metric": "val_loss", "maximize": False}},
            cache_dir=str(data_cache),
            cache_bytes=cache_bytes,
        )

    return configured


def steps(trainable: ImageTransfer, count: int = 3) -> list[dict[str, Any]]:
    return [steady(trainable.train()) for _ in range(count)]


def steady(result: dict[str, Any]) -> dict[str, Any]:
    """Of a result as Tune passes it on, what does not depend on the clock."""
    own = {name: result[name] for name in (*METRICS, "epoch") if name not in TIMINGS}
    best = {name: value for name, value in result[BEST].items() if name.removeprefix(EXPECTED) not in TIMINGS}
    return {**own, BEST: best}


def delta(trial: TrialConfig) -> bytes:
    return (Path(trial["folder"]) / MODEL_FOLDER / "delta.safetensors").read_bytes()


def test_a_step_is_an_epoch_and_says_what_it_measured(make: Make, trial: Callable[..., TrialConfig]) -> None:
    config = trial(0)
    trainable = make(config)
    assert not Path(config["folder"]).exists()  # nothing slow before the first step
    results = [trainable.train() for _ in range(3)]
    assert [result["epoch"] for result in results] == [1, 2, 3]
    for result in results:
        told = {*METRICS, *(MORE_SCORES if result is results[-1] else ())}
        assert told <= set(result)
        assert set(result[BEST]) == {"epoch", *told, *map(expected_name, told)}
        assert result["pid"] == os.getpid()
        assert isinstance(result["node"], str)
        assert not result["done"]
    losses = [result["val_loss"] for result in results]
    assert results[-1][BEST]["val_loss"] == value_of(results[-1][BEST], "val_loss") == losses[-1]
    assert results[-1][BEST]["epoch"] == 3
    card = load_delta(Path(config["folder"]) / MODEL_FOLDER).card
    assert card.metric == results[-1][BEST]


def test_a_retried_trial_goes_on_from_its_state(
    make: Make, trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 0.0)
    knobs = {"strategy": "lp_ft", "dropout": 0.3, "ema": 0.9, "policy": "flip_crop"}
    whole, broken = trial(0, **knobs), trial(1, **knobs)
    expected = steps(make(whole))
    assert steps(make(broken), 2) == expected[:2]
    assert (Path(broken["folder"]) / STATE_FILE).is_file()
    assert steps(make(broken), 1) == expected[2:]
    assert delta(broken) == delta(whole)


class Dead(Exception):
    """What a test ends a process with."""


def test_what_was_run_and_not_saved_is_run_again_and_told_once(
    make: Make, trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = trial(0), Path(trial(0)["folder"])
    first = make(config)
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 0.0)
    results = [first.train()]
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 1e9)
    results.append(first.train())
    files = {path: path.read_bytes() for path in (folder / MODEL_FOLDER).iterdir()}
    result = make(config).train()
    assert result["epoch"] == 2  # the state is of epoch 1
    assert result[TOLD] == []
    assert result[EPOCHS] == [{name: each[name] for name in ("epoch", *METRICS)} for each in results]
    # Even what the clock says: it is the same epoch.
    assert {name: result[name] for name in METRICS} == {name: results[1][name] for name in METRICS}
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("moment", ["save_record", "save_model", "save_state"])
def test_a_trial_that_dies_at_any_write_goes_on_with_a_model_that_its_record_names(
    make: Make, trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 0.0)
    config, folder = trial(0), Path(trial(0)["folder"])
    expected = steps(make(trial(1)))
    steps(make(config), 1)
    with monkeypatch.context() as patch:
        patch.setattr(Training, moment, lambda *_: (_ for _ in ()).throw(Dead()))
        with pytest.raises(Dead):
            make(config).train()
    second = make(config).train()
    assert steady(second) == expected[1]
    assert [each["epoch"] for each in second[EPOCHS]] == [1, 2]
    metric = model_metric(folder)
    assert metric is not None
    assert metric == second[BEST]


@pytest.mark.parametrize("file", [STATE_FILE, f"{MODEL_FOLDER}/delta.safetensors", EPOCHS_FILE])
def test_damaged_files_are_told_and_the_trial_begins_again_from_what_is_known(
    make: Make, trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 0.0)
    config = trial(0)
    expected = steps(make(trial(1)))
    steps(make(config), 2)
    path = Path(config["folder"]) / file
    path.write_bytes(path.read_bytes()[:-200])
    again = make(config)
    result = again.train()
    assert file in " ".join(result[TOLD]) or MODEL_FOLDER in " ".join(result[TOLD])
    assert len(result[TOLD]) == 1
    # The state knows what the record lost; and the record what the state did.
    known = [each["epoch"] for each in result[EPOCHS]]
    assert known == ([1, 2] if file != EPOCHS_FILE else [1, 2, 3])
    while result["epoch"] < 3:
        result = again.train()
    assert steady(result) == expected[2]
    assert delta(config) == delta(trial(1))


def test_a_trial_moves_to_another_node_by_its_address(
    make: Make,
    trial: Callable[..., TrialConfig],
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 0.0)
    knobs = {"strategy": "lp_ft", "dropout": 0.3, "ema": 0.9, "policy": "flip_crop"}
    whole = trial(0, **knobs)
    expected = steps(make(whole))
    moved = {**trial(1, **knobs), "checkpoints": bucket.uri("trials/1"), "score_test": True}
    left = make(moved)  # type: ignore[arg-type]
    assert steps(left, 2) == expected[:2]
    assert {"trials/1/state.pt", "trials/1/model/model.json", "trials/1/record/policy.png"} <= bucket.keys()
    (result,) = steps(make(moved), 1)  # type: ignore[arg-type]
    scores = {name: result[BEST].pop(name) for name in TEST_METRICS}
    assert all(0 <= scores[name] <= 1 for name in ("test_accuracy", "test_macro_f1"))
    assert [result] == expected[2:]
    (tmp_path / "model").mkdir()
    for name in ("delta.safetensors", "model.json"):
        Remote(bucket.uri("trials/1")).fetch(f"model/{name}", tmp_path / "model" / name)
    assert (tmp_path / "model" / "delta.safetensors").read_bytes() == delta(whole)
    with pytest.raises(RuntimeError, match="another process goes on with this trial"):
        left.train()
    assert not Path(moved["folder"]).exists()


def test_a_state_is_not_written_more_often_than_needed(
    make: Make, trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 3600.0)
    steps(make(trial(0)))
    assert not (Path(trial(0)["folder"]) / STATE_FILE).exists()
    # Nobody goes on from the last epoch.
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 0.0)
    steps(make(trial(1, max_epochs=1)), 1)
    assert not (Path(trial(1)["folder"]) / STATE_FILE).exists()


@pytest.mark.parametrize("after", [2, 3])
def test_what_a_trial_leaves_is_on_its_disk_when_it_ends_and_not_after_each_epoch(
    make: Make, trial: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(image_transfer, "_SYNC_SECONDS", 3600.0)
    synced: set[int] = set()
    sync = os.fsync

    def recorded(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        sync(file)

    monkeypatch.setattr(os, "fsync", recorded)
    trainable = make(trial(0, policy="flip_crop"))
    folder = Path(trial(0)["folder"])
    left = lambda: {path.stat().st_ino for path in (*folder.glob("model/*"), *folder.glob("record/*"))}  # noqa: E731
    steps(trainable, 2)
    assert not synced & left()
    if after == 3:
        steps(trainable, 1)  # the last: a driver may end the trial, and remember that, before it is told
    else:
        trainable.reset_config(trial(1))
    assert len(left()) > 3
    assert left() <= synced


def test_a_trial_on_a_reused_actor_equals_one_on_a_new_one(
    make: Make, trial: Callable[..., TrialConfig]
) -> None:
    knobs = {"strategy": "lp_ft", "dropout": 0.3, "mixing": "mixup", "seed": 3}
    new = trial(0, **knobs)
    expected = steps(make(new))
    actor = make(trial(1, strategy="full", policy="auto_augment", max_epochs=4))
    steps(actor, 1)  # pruned
    reused = trial(2, **knobs)
    assert actor.reset(reused)
    assert steps(actor) == expected
    assert delta(reused) == delta(new)


def test_without_a_cache_the_metrics_are_the_same(make: Make, trial: Callable[..., TrialConfig]) -> None:
    knobs = {"policy": "flip_crop", "dropout": 0.2}
    assert steps(make(trial(0, cache_bytes=0, **knobs))) == steps(make(trial(1, **knobs)))


def test_what_fails_to_begin_may_be_tried_again(
    make: Make, trial: Callable[..., TrialConfig], data_cache: Path, tmp_path: Path
) -> None:
    config = trial(0)
    Path(config["folder"]).parent.mkdir()
    Path(config["folder"]).write_text("in the way")
    trainable = make(config)
    with pytest.raises(FileExistsError):
        trainable.train()
    Path(config["folder"]).unlink()
    assert [result["epoch"] for result in steps(trainable)] == [1, 2, 3]


def test_an_actor_keeps_a_bounded_number_of_everything(make: Make, trial: Callable[..., TrialConfig]) -> None:
    actor = make(trial(0))
    models = []
    for number in range(6):
        actor.reset(trial(number, image_size=32 + 2 * number, max_epochs=1))
        actor.train()
        assert actor._training is not None
        models.append(weakref.ref(actor._training.model))
    gc.collect()
    assert sum(model() is not None for model in models) == 1
    for cached in (trial_module._data, trial_module._backbone, trial_module._cache):
        info = cached.cache_info()
        assert info.maxsize is not None
        assert info.currsize <= info.maxsize <= 4
    actor.cleanup()
    gc.collect()
    assert all(model() is None for model in models)


def test_a_cache_that_vanishes_between_trials_is_made_again(
    make: Make, trial: Callable[..., TrialConfig], data_cache: Path
) -> None:
    actor = make(trial(0))
    expected = steps(actor)
    shutil.rmtree(data_cache / "objects", ignore_errors=True)
    trial_module._cache.cache_clear()
    actor.reset(trial(1))
    assert steps(actor) == expected
    assert torch.get_num_threads() == 1
