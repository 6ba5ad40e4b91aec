from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.trainables.training.test_ridge import blobs
from trainables.training.logistic import logistic_path


@pytest.mark.parametrize("weighed", [False, True])
def test_the_scores_are_those_of_scikit_learn(weighed: bool) -> None:
    rows, labels = blobs(60, 7)
    weights = torch.rand(60, generator=torch.Generator().manual_seed(0)) + 0.5 if weighed else torch.ones(60)
    strengths = (1.0, 0.1, 0.01)
    found = logistic_path(rows, labels, weights, 4, strengths, tolerance=1e-9, steps=5000)
    for strength, (weight, bias) in zip(strengths, found, strict=True):
        theirs = LogisticRegression(C=1 / (strength * float(weights.sum())), tol=1e-10, solver="newton-cg")
        theirs.fit(rows.numpy(), labels.numpy(), weights.numpy())
        ours = rows @ weight.T + bias
        # A softmax does not know what is added to all scores of a row.
        expected = theirs.decision_function(rows.numpy())
        np.testing.assert_allclose(
            ours - ours.mean(1, keepdim=True),
            expected - expected.mean(1, keepdims=True),
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_warm_start_changes_the_way_and_not_the_end() -> None:
    rows, labels = blobs(60, 7)
    path = list(logistic_path(rows, labels, torch.ones(60), 4, (1.0, 0.1), tolerance=1e-9, steps=5000))
    cold = list(logistic_path(rows, labels, torch.ones(60), 4, (0.1,), tolerance=1e-9, steps=5000))
    torch.testing.assert_close(path[-1][0], cold[0][0], atol=1e-6, rtol=0)
