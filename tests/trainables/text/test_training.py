"""Trials on texts: heads, fine-tuning, features that are shared, and states that resume bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.files.cache import Cache
from trainables.modality import Backbone
from trainables.text.data import TextData
from trainables.text.hparams import TextHParams
from trainables.text.modality import TEXT
from trainables.training import features as kept
from trainables.training.delta import load_delta
from trainables.training.loop import Training, fit
from trainables.training.settings import Settings


def training(
    data: TextData, backbone: Backbone, knobs: Mapping[str, Any], cache: Cache | None = None, **changed: Any
) -> Training:
    hparams = TextHParams(
        **knobs, **{"max_epochs": 3, "batch_size": 16, "lr": 0.02, "label_smoothing": 0.0, **changed}
    )
    return Training(hparams, data, backbone, settings=Settings(threads=1, views=2), cache=cache)


def run(each: Training) -> float:
    best = fit(each, lambda epoch, metrics: None)
    assert best is not None
    return best["val_accuracy"]


@pytest.mark.parametrize("features", ["last", "stages"])
@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_solved_heads_tell_topics_apart(
    data: TextData, backbone: Backbone, knobs: Mapping[str, Any], solver: str, features: str
) -> None:
    assert run(training(data, backbone, knobs, solver=solver, features=features)) > 0.75


@pytest.mark.parametrize("strategy", ["probe", "partial", "full", "lp_ft", "bias", "lora"])
def test_a_model_of_every_strategy_reloads_to_its_metric(
    data: TextData, backbone: Backbone, knobs: Mapping[str, Any], tmp_path: Path, strategy: str
) -> None:
    trial = training(data, backbone, knobs, strategy=strategy, policy="masking", max_epochs=4, trunk_lr=0.003)
    run(trial)
    trial.save_model(tmp_path)
    predictor = TEXT.predictor(load_delta(tmp_path / "model"))
    places = data.splits["validation"].tolist()
    told = predictor.predict([data.texts[place] for place in places])["label"]
    right = [label == data.classes[data.labels[place]] for label, place in zip(told, places, strict=True)]
    assert trial.best is not None
    assert sum(right) / len(right) == pytest.approx(trial.best["val_accuracy"])


def test_texts_of_one_length_pass_together_and_stand_where_they_stood(
    data: TextData,
    backbone: Backbone,
    knobs: Mapping[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each = training(data, backbone, knobs, Cache(tmp_path, 10**8), solver="gradient")
    passed: list[int] = []
    monkeypatch.setattr(kept, "_BATCH", {"cpu": 4})
    monkeypatch.setattr(kept, "_DRAWN", {"cpu": 4})
    features_of = each._trunk.features("validation", each.model)
    model = features_of.model  # type: ignore[attr-defined]
    model.trunk.register_forward_pre_hook(lambda _, given: passed.append(int(given[0][:, 1].sum(1).max())))
    found = features_of.view(0)
    assert passed == sorted(passed)
    assert len(set(passed)) > 1
    places = data.splits["validation"]
    with torch.no_grad():
        plain = each._plain(each._examples[places], torch.zeros(len(places), dtype=torch.int64))
        torch.testing.assert_close(found, model.features(plain))


def test_views_of_a_policy_are_computed_once_for_all_trials(
    data: TextData, backbone: Backbone, knobs: Mapping[str, Any], tmp_path: Path
) -> None:
    def trial(**changed: Any) -> dict[str, float]:
        cache = Cache(tmp_path, 10**8)
        each = training(data, backbone, knobs, cache, solver="gradient", **changed)
        run(each)
        return dict(each.applied()["cache"])

    first = trial(policy="deletion", edited=0.2, lr=0.01)
    again = trial(policy="deletion", edited=0.2, lr=0.03)
    other = trial(policy="deletion", edited=0.3, lr=0.03)
    assert again["computed"] == 0 < other["computed"] < first["computed"]


def test_a_trial_resumes_bit_for_bit(
    data: TextData, backbone: Backbone, knobs: Mapping[str, Any], tmp_path: Path
) -> None:
    def trial() -> Training:
        return training(data, backbone, knobs, strategy="full", policy="swap", trunk_lr=0.001, dropout=0.2)

    whole, half, rest = trial(), trial(), trial()
    run(whole)
    half.run_epoch()
    half.save_state(tmp_path)
    assert rest.load_state(tmp_path)
    run(rest)
    ours, theirs = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_frozen_part_stays_as_it_was(data: TextData, backbone: Backbone, knobs: Mapping[str, Any]) -> None:
    trial = training(data, backbone, knobs, strategy="partial", freeze=0.5, trunk_lr=0.01)
    run(trial)
    before, after = backbone.module.state_dict(), trial.model.trunk.state_dict()
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"1", "2"}
