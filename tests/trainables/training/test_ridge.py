from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from torch import Tensor

from trainables.training.ridge import Moments, RidgePath, targets_of

STRENGTHS = torch.tensor([0.1, 3.0, 100.0], dtype=torch.float64)


def blobs(rows: int, features: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(rows)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, features, generator=numbers, dtype=torch.float64)
    noise = torch.randn(rows, features, generator=numbers, dtype=torch.float64)
    return 5.0 + centres[labels] + 2 * noise, labels


@pytest.mark.parametrize("features", [7, 60])
def test_the_scores_are_those_of_scikit_learn(features: int) -> None:
    rows, labels = blobs(40, features)
    path = RidgePath(Moments.of(rows, targets_of(labels, 4), torch.ones(40)), STRENGTHS)
    found = path.scores(rows)
    for index, strength in enumerate(STRENGTHS.tolist()):
        theirs = RidgeClassifier(alpha=strength).fit(rows.numpy(), labels.numpy())
        np.testing.assert_allclose(found[index], theirs.decision_function(rows.numpy()), atol=1e-5)
        weight, bias = path.linear(index)
        np.testing.assert_allclose(rows @ weight.T + bias, found[index], atol=1e-8)


def test_the_left_out_scores_are_those_of_scikit_learn() -> None:
    rows, labels = blobs(40, 7)
    targets = targets_of(labels, 4)
    path = RidgePath(Moments.of(rows, targets, torch.ones(40)), STRENGTHS)
    theirs = RidgeClassifierCV(alphas=STRENGTHS.numpy(), store_cv_results=True)
    theirs.fit(rows.numpy(), labels.numpy())
    errors = (path.left_out(rows, targets, torch.ones(40)) - targets).square()
    np.testing.assert_allclose(errors.permute(1, 2, 0), theirs.cv_results_, atol=1e-5)


def test_the_left_out_scores_are_of_fits_to_the_other_rows() -> None:
    rows, labels = blobs(12, 5)
    targets, weights = targets_of(labels, 4), 0.5 + torch.arange(12) / 6
    path = RidgePath(Moments.of(rows, targets, weights), STRENGTHS)
    found = path.left_out(rows, targets, weights)
    for row in range(12):
        others = torch.arange(12) != row
        fitted = RidgePath(Moments.of(rows[others], targets[others], weights[others]), STRENGTHS)
        torch.testing.assert_close(found[:, row], fitted.scores(rows[[row]])[:, 0])


def test_several_rows_are_left_out_together() -> None:
    rows, labels = blobs(12, 5)
    targets, weights = targets_of(labels, 4), 0.5 + torch.arange(12) / 6
    path = RidgePath(Moments.of(rows, targets, weights), STRENGTHS)
    left = torch.arange(12) % 3 == 0
    found = path.left_out_together(rows[left], targets[left], weights[left])
    fitted = RidgePath(Moments.of(rows[~left], targets[~left], weights[~left]), STRENGTHS)
    torch.testing.assert_close(found, fitted.scores(rows[left]))


def test_weights_are_those_of_scikit_learn() -> None:
    rows, labels = blobs(40, 7)
    weights = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 0.1
    path = RidgePath(Moments.of(rows, targets_of(labels, 4), weights), STRENGTHS)
    theirs = RidgeClassifier(alpha=3.0).fit(rows.numpy(), labels.numpy(), weights.numpy())
    np.testing.assert_allclose(path.scores(rows)[1], theirs.decision_function(rows.numpy()), atol=1e-5)


def test_moments_add_up_over_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = blobs(40, 7)
    targets, weights = targets_of(labels, 4), torch.ones(40)
    whole = Moments.of(rows, targets, weights)
    monkeypatch.setattr("trainables.training.ridge._BATCH", 9)
    first, second = (
        Moments.of(*(each[part] for each in (rows, targets, weights)))
        for part in (slice(0, 15), slice(15, 40))
    )
    for name, value in vars(whole).items():
        torch.testing.assert_close(vars(first + second)[name], value)
        torch.testing.assert_close(vars(whole - second)[name], vars(first)[name])


def test_one_solution_is_that_of_the_path() -> None:
    numbers = torch.Generator().manual_seed(3)
    rows, labels = torch.randn(60, 7, generator=numbers), torch.randint(4, (60,), generator=numbers)
    moments = Moments.of(rows, targets_of(labels, 4), torch.rand(60, generator=numbers))
    path = RidgePath(moments, STRENGTHS)
    for place, strength in enumerate(STRENGTHS):
        for one, other in zip(moments.solution(strength), path.linear(place), strict=True):
            torch.testing.assert_close(one, other)
