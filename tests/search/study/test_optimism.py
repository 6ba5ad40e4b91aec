"""The best of many trials, without what it owes to being the best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from search.study.optimism import corrected_accuracy
from trainables.files.trial_folder import read_epochs, read_right, write_epochs


def test_it_is_what_new_images_give() -> None:
    """Thirty searches of 64 trials that are all but alike, chosen on 500 images and seen on 4,000 others."""
    numbers = np.random.default_rng(0)
    claimed, corrected = [], []
    for _ in range(30):
        ease = numbers.normal(1.2, 1.2, 4500)
        skill = numbers.normal(0, 0.05, 64)
        right = ease + skill[:, None] + 0.5 * numbers.normal(size=(64, 4500)) > 0
        shares = right[:, :500].mean(1)
        order = np.argsort(-shares, kind="stable")
        told = corrected_accuracy(right[order, :500].tolist())
        assert told is not None
        truth = right[order[0], 500:].mean()
        claimed.append(shares[order[0]] - truth)
        corrected.append(told - truth)
    assert np.mean(claimed) > 0.009
    assert abs(np.mean(corrected)) < 0.006


def test_one_trial_was_not_chosen() -> None:
    right = [[True] * 80 + [False] * 20]
    assert corrected_accuracy(right) == pytest.approx(0.8, abs=0.01)
    assert corrected_accuracy(right, seed=1) == pytest.approx(0.8, abs=0.01)


def test_the_record_of_a_trial_says_which_images_it_tells_right(tmp_path: Path) -> None:
    write_epochs(tmp_path, {1: {"val_accuracy": 0.5}}, {"lr": 0.1}, [True, False, True])
    assert read_right(tmp_path) == [True, False, True]
    assert read_epochs(tmp_path) == {1: {"val_accuracy": 0.5}}
    write_epochs(tmp_path, {1: {"val_accuracy": 0.5}}, {"lr": 0.1})
    assert read_right(tmp_path) is None
    assert read_right(tmp_path / "nowhere") is None
