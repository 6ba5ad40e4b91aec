"""Intervals that hold for new images, and what beats naming the most frequent class."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from search.study.intervals import Sample, beats_majority, is_share, of_new_images


def test_the_images_part_stays_however_many_seeds_there_are() -> None:
    low, high = of_new_images([0.8] * 100, 500)
    share = (0.8 * 500 + 2) / 504
    half = stats.t.ppf(0.975, 499) * np.sqrt(share * (1 - share) / 500)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half))


def test_with_endless_images_only_the_seeds_are_left() -> None:
    values = [0.78, 0.8, 0.83]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert of_new_images(values, 10**9) == pytest.approx(expected, abs=1e-4)


def test_all_right_is_not_certain() -> None:
    low, high = of_new_images([1.0, 1.0, 1.0], 50)
    assert low < 0.97
    assert high == 1.0


@pytest.mark.parametrize("spread", [0.0, 0.004, 0.015])
@pytest.mark.parametrize("share", [0.82, 0.97])
def test_intervals_cover_what_4000_other_images_show(spread: float, share: float) -> None:
    """Three seeds on 500 images that are easier or harder for all of them alike, and the same on 4,000."""
    numbers = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(400):
        truths = np.clip(numbers.normal(share, spread, 3), 0, 0.999)[:, None]
        easy, easy_test = numbers.random((1, 500)), numbers.random((1, 4000))
        low, high = of_new_images(list((easy < truths).mean(1)), 500)
        covered += low <= (easy_test < truths).mean() <= high
        widths.append(high - low)
    print(
        f"share {share}, seeds' deviation {spread}: {covered / 400:.3f} covered, width {np.mean(widths):.3f}"
    )
    assert covered / 400 >= 0.93


def test_shuffled_labels_are_no_find() -> None:
    """The best of three finalists that guess, on 1,000 test images in ten classes, a thousand times."""
    numbers = np.random.default_rng(0)
    test = Sample(count=1000, majority=0.1)
    claims = [beats_majority(numbers.binomial(1000, 0.1, 3).max() / 1000, test, 3) for _ in range(1000)]
    assert np.mean(claims) < 0.05
    assert beats_majority(0.14, test, 3)
    assert not beats_majority(0.115, test, 3)


def test_what_is_a_share() -> None:
    assert is_share("val_accuracy")
    assert is_share("test_top5_accuracy")
    assert not any(map(is_share, ("val_loss", "test_macro_f1", "val_balanced_accuracy", "accuracy")))
