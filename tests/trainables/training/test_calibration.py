"""Temperatures and sets of classes: on new draws they are what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainables.training.calibration import calibrated, classes_in, threshold
from trainables.training.metrics import calibration_error


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits that mean what they say, and labels drawn from them."""
    numbers = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 6, generator=numbers)
    return logits, logits.softmax(1).multinomial(1, generator=numbers).squeeze(1)


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_the_temperature_is_found(factor: float) -> None:
    logits, labels = drawn(2000, 0)
    found = calibrated(factor * logits, labels)
    assert found.factor == pytest.approx(1 / factor, rel=0.15)
    assert found.after < found.before / 2
    new, answers = drawn(20_000, 1)
    assert calibration_error((found.factor * factor * new).softmax(1), answers) < 0.02


def test_what_is_calibrated_stays_as_it_is() -> None:
    logits, labels = drawn(200, 3)
    found = calibrated(logits, labels)
    assert found.factor == pytest.approx(1, abs=0.15)
    assert found.after <= found.before + 0.02


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_hold_the_true_class_as_often_as_asked(coverage: float) -> None:
    covered = []
    for seed in range(20):
        logits, labels = drawn(300, seed)
        least = threshold((2 * logits).softmax(1), labels, coverage)  # too sure, which does not matter
        new, answers = drawn(3000, 100 + seed)
        inside = classes_in((2 * new).softmax(1), least)
        covered.append(float(inside[torch.arange(3000), answers].double().mean()))
    assert sum(covered) / len(covered) == pytest.approx(coverage, abs=0.01)


def test_few_images_give_all_classes_and_a_set_is_never_empty() -> None:
    logits, labels = drawn(5, 0)
    assert threshold(logits.softmax(1), labels, 0.9) == 0.0
    assert classes_in(torch.tensor([[0.4, 0.3, 0.3]]), 0.5).tolist() == [[True, False, False]]
