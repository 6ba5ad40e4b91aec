from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from trainables.training.metrics import scores


def drawn(seed: int, classes: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize(("classes", "count"), [(2, 1), (2, 40), (10, 7), (10, 500), (300, 100)])
def test_the_scores_are_scikit_learns(classes: int, count: int) -> None:
    for seed in range(5):
        logits, labels = drawn(seed, classes, count)
        found, predicted = scores(logits, labels), logits.argmax(1)
        assert found.accuracy == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
        # Without `labels`, scikit-learn averages over the classes that occur or are predicted.
        f1 = f1_score(labels, predicted, average="macro", zero_division=0.0)
        assert found.macro_f1 == pytest.approx(f1, abs=1e-12)
        probabilities = logits.double().softmax(1)
        expected = log_loss(labels, probabilities, labels=range(classes))
        assert found.loss == pytest.approx(expected, rel=1e-5)


def test_a_class_that_is_only_predicted_counts_zero_and_an_absent_one_not_at_all() -> None:
    logits = torch.eye(4)[torch.tensor([0, 0, 1])]
    found = scores(logits, torch.tensor([0, 0, 0]))
    assert found.macro_f1 == pytest.approx((0.8 + 0.0) / 2)
    assert scores(logits, torch.tensor([0, 0, 1])).macro_f1 == 1.0


def test_a_network_that_diverged_has_no_score() -> None:
    logits, labels = drawn(0, 3, 10)
    logits[4, 1] = math.nan
    found = scores(logits, labels)
    assert all(math.isnan(value) for value in (found.loss, found.accuracy, found.macro_f1))
