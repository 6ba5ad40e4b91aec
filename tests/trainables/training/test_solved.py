from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainables.training.test_ridge import blobs
from trainables.files.cache import Cache
from trainables.image.data import ImageData
from trainables.record import MODEL_FOLDER
from trainables.training import solved
from trainables.training.delta import load_delta
from trainables.training.loop import Training
from trainables.training.metrics import scores
from trainables.training.solved import SolvedHead, solve, standardisation

Begin = Callable[..., Training]
KINDS = ("ridge", "logistic")


def logits(head: SolvedHead, rows: Tensor) -> Tensor:
    return (rows.float() - head.mean) / head.scale @ head.weight.T + head.bias


def of(rows: Tensor) -> Callable[[], Tensor]:
    return lambda: rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [6, 90])
def test_a_solved_head_tells_classes_apart_and_knows_how_sure_it_is(kind: str, features: int) -> None:
    rows, labels = blobs(400, features)
    rows = rows + features / 25 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(5))
    head = solve(kind, [of(rows[:60])], labels[:60], 4)
    found = scores(logits(head, rows[60:]), labels[60:])
    assert 0.3 < found.accuracy < 0.9
    for factor in (0.3, 3.0):
        assert scores(factor * logits(head, rows[60:]), labels[60:]).loss > found.loss
    assert head.points[head.chosen].loss == min(point.loss for point in head.points)
    closed = kind == "ridge" and features == 6
    assert head.left_out == (
        "one image at a time" if closed else f"{5 if kind == 'ridge' else 3} folds of images"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_rows_than_features_are_solved_in_their_span(kind: str) -> None:
    rows, labels = blobs(30, 90)
    few = solve(kind, [of(rows)], labels, 4)
    # Features of zeros change nothing but which way is taken: more rows than those that vary.
    many = solve(kind, [of(rows)] * 4, labels, 4)
    torch.testing.assert_close(logits(few, rows).argmax(1), logits(many, rows).argmax(1))
    assert few.weight.shape == many.weight.shape == (4, 90)


def test_of_many_rows_and_features_some_rows_stand_for_the_span(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = blobs(300, 200)
    exact = solve("ridge", [of(rows)] * 2, labels, 4)
    monkeypatch.setattr(solved, "_MOST", 100)
    monkeypatch.setattr(solved, "_LANDMARKS", 150)
    near = solve("ridge", [of(rows)] * 2, labels, 4)
    told = logits(exact, rows).argmax(1)
    assert (logits(near, rows).argmax(1) == told).double().mean() > 0.95
    monkeypatch.setattr(solved, "_LANDMARKS", 300)  # then it is all of it
    torch.testing.assert_close(logits(solve("ridge", [of(rows)] * 2, labels, 4), rows), logits(exact, rows))


def test_images_are_left_out_with_all_their_views() -> None:
    labels = torch.arange(40) % 4
    noise = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    one = solve("ridge", [of(noise)], labels, 4)
    several = solve("ridge", [of(noise)] * 4, labels, 4)
    # What a copy of the image itself would tell is not taken for skill.
    assert several.points[several.chosen].accuracy < 0.5
    assert one.points[one.chosen].accuracy < 0.5


def test_rare_classes_can_weigh_more() -> None:
    labels = (torch.arange(200) % 10 == 0).long()
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(2)) + labels[:, None]
    weights = torch.where(labels == 1, 5.0, 0.5556)
    plain, weighed = (solve("ridge", [of(rows)], labels, 2, weights=each) for each in (None, weights))
    told = [(logits(head, rows).argmax(1) == 1).sum() for head in (plain, weighed)]
    assert told[1] > 2 * told[0]


def test_what_does_not_vary_keeps_its_scale() -> None:
    rows = torch.tensor([[1.0, 7.1, 0.0], [3.0, 7.1, 0.0]]).half()
    mean, scale = standardisation(rows)
    torch.testing.assert_close(mean, rows.double().mean(0))
    torch.testing.assert_close(scale, torch.tensor([1.0, 1.0, 1.0]).double())


# As a trial


@pytest.mark.parametrize("features", ["last", "stages", "grid"])
@pytest.mark.parametrize("policy", ["none", "classic"])
def test_a_solved_probe_is_one_epoch_and_its_model_gives_the_same(
    begin: Begin, digits: ImageData, tmp_path: Path, features: str, policy: str
) -> None:
    cache = Cache(tmp_path / "cache")
    solver = "ridge" if policy == "none" else "logistic"
    knobs: dict[str, Any] = {"solver": solver, "features": features, "policy": policy}
    training = begin(data=digits, cache=cache, **knobs)
    began = time.perf_counter()
    metrics = training.run_epoch()
    took = time.perf_counter() - began
    assert 0 < metrics["epoch_seconds"] <= took - cache.usage.compute_seconds
    assert training.finished
    assert metrics["val_accuracy"] > (0.6 if features == "last" else 0.8)
    assert metrics["learning_rate"] == 0
    training.save_model(tmp_path)
    files = sum(path.stat().st_size for path in (tmp_path / MODEL_FOLDER).iterdir())
    assert files < 400_000
    model = load_delta(tmp_path / MODEL_FOLDER).model
    training.model.load_state_dict(model.state_dict())
    found = training.evaluate("validation")
    assert found.accuracy == metrics["val_accuracy"]
    assert found.loss == pytest.approx(metrics["val_loss"], abs=1e-5)
    (phase,) = training.applied()["phases"]
    assert len(phase["solved"]["path"]) > 2
    assert phase["optimizer"] == "none: solved for"
    # The features are there now: solved again, nothing is computed and the same comes out.
    again = begin(data=digits, cache=cache, **knobs)
    computed = cache.usage.computed
    assert again.run_epoch()["val_loss"] == metrics["val_loss"]
    assert cache.usage.computed == computed


def test_fine_tuning_begins_with_the_solved_head(begin: Begin, digits: ImageData, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    probe = begin(data=digits, cache=cache, solver="ridge", features="stages")
    expected = probe.run_epoch()["val_accuracy"]
    tuned = begin(
        data=digits, cache=cache, solver="ridge", features="stages", strategy="lp_ft", max_epochs=2,
        lr=1e-7, backbone_lr_mult=1e-3, freeze=0.0,
    )  # fmt: skip
    assert [phase.kind for phase in tuned.phases] == ["trunk"]
    assert tuned.run_epoch()["val_accuracy"] == pytest.approx(expected, abs=0.02)
    for name, value in probe.model.head.state_dict().items():
        torch.testing.assert_close(tuned.model.head.state_dict()[name], value, atol=1e-4, rtol=0)


def test_a_resumed_fine_tuning_keeps_its_head(begin: Begin, tmp_path: Path) -> None:
    knobs: dict[str, Any] = {"solver": "ridge", "features": "stages", "strategy": "lp_ft", "max_epochs": 3,
                             "ema": 0.9}  # fmt: skip
    whole, halved = begin(**knobs), begin(**knobs)
    metrics = [whole.run_epoch()["val_loss"] for _ in range(3)]
    halved.run_epoch()
    halved.save_state(tmp_path)
    again = begin(**knobs)
    assert again.load_state(tmp_path)
    assert [again.run_epoch()["val_loss"] for _ in range(2)] == metrics[1:]


def test_steps_on_stages_are_taken_on_standardised_features(begin: Begin, digits: ImageData) -> None:
    training = begin(data=digits, features="stages", max_epochs=2, lr=1e-3)
    training.run_epoch()
    features = training._trunk.features("train", training.model, clean=True).view(0).float()
    standard = training.model.head.get_submodule("standard")(features)
    torch.testing.assert_close(standard.mean(0), torch.zeros(784), atol=1e-3, rtol=0)
    assert float(standard.std(0).median()) == pytest.approx(1.0, abs=0.02)


def test_what_hardly_varies_is_not_blown_up() -> None:
    features = torch.randn(200, 9, dtype=torch.float64) * torch.linspace(0.5, 1.5, 9)
    features[:, 3] *= 1e-8
    features[:, 5] = 2.0
    mean, scale = standardisation(features)
    usual = features.std(0, correction=0)
    assert float(scale[3]) == pytest.approx(0.1 * float(usual[[n for n in range(9) if n != 5]].median()))
    assert float(scale[5]) == 1.0
    others = [n for n in range(9) if n not in (3, 5)]
    torch.testing.assert_close(scale[others], usual[others])
    torch.testing.assert_close(mean, features.mean(0))
