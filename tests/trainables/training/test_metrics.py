from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

from trainables.training.metrics import calibration_error, scores


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
    assert len(found.named("val")) == 7
    assert all(math.isnan(value) for value in found.named("val").values())


def test_more_scores_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    numbers = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 7, (300,), generator=numbers)
    logits = 2 * torch.randn(300, 7, generator=numbers).round(decimals=1)  # with ties
    logits[torch.arange(300), labels] += 1
    scored, shares = scores(logits, labels), logits.double().softmax(1).numpy()
    found = scored.more()
    assert found["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(labels, logits.argmax(1))
    )
    areas = [metrics.roc_auc_score(labels.numpy() == each, shares[:, each]) for each in range(7)]
    assert found["auroc"] == pytest.approx(sum(areas) / 7)
    assert found["top5_accuracy"] == pytest.approx(metrics.top_k_accuracy_score(labels, shares, k=5))
    named = scored.named("val")
    assert named["val_loss"] == scored.loss
    assert named["val_auroc"] == found["auroc"]
    assert scored.named("val", more=False).keys() == {"val_loss", "val_accuracy", "val_macro_f1"}


def test_calibration_error_is_the_gap_of_sureness_and_right_answers() -> None:
    shares = torch.tensor([[0.9, 0.1]] * 10)
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert calibration_error(shares, labels) == pytest.approx(0.3)
    assert calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 0.0
    numbers = torch.Generator().manual_seed(0)
    honest = (2 * torch.randn(20_000, 4, generator=numbers)).softmax(1)
    drawn = honest.multinomial(1, generator=numbers).squeeze(1)
    assert calibration_error(honest, drawn) < 0.01
