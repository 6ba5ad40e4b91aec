"""How far a measured share of right answers may be from that on new images: arithmetic alone.

An interval of a mean over seeds has two parts. The seeds: the sample variance over their number. The images:
p (1 - p) / n, as for a binomial share; they are the same in all runs, so no number of seeds makes their part
smaller. The degrees of freedom of the sum are those of Satterthwaite (1946),
the interval is Student's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LEVEL", "Sample", "beats_majority", "is_share", "of_new_images"]

LEVEL = 0.05
_SHARES = ("accuracy", "top5_accuracy")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The images of a split: how many, and the share of the most frequent class."""

    count: int
    majority: float


def is_share(metric: str) -> bool:
    """Whether a metric, of any split, is a share of images; an average over classes is none."""
    return metric.partition("_")[2] in _SHARES


def of_new_images(values: Sequence[float], count: int) -> tuple[float, float]:
    """The 95 % interval of a share on new images.

    Args:
        values: the share in each run, on the same images; two or more.
        count: how many images these were.
    """
    from scipy import stats  # not above: half a second, and most commands need none of it

    mean = statistics.fmean(values)
    seeds, images = statistics.variance(values) / len(values), _share_variance(mean, count)
    total = seeds + images
    if total == 0:
        return mean, mean
    freedom = total**2 / (seeds**2 / (len(values) - 1) + images**2 / max(1, count - 1))
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * math.sqrt(total)
    return max(0.0, mean - half), min(1.0, mean + half)


def _share_variance(share: float, count: int) -> float:
    """p (1 - p) / n, with p shrunk as Agresti and Coull (1998) do: a share of 1 is not certain."""
    shrunk = (share * count + 2) / (count + 4)
    return shrunk * (1 - shrunk) / count


def beats_majority(share: float, sample: Sample, comparisons: int) -> bool:
    """Whether a share is above what always naming the most frequent class gets; one-sided, exact binomial.

    Args:
        share: of right answers.
        sample: the images it was measured on.
        comparisons: how many shares it is the best of, among which the level of 5 % is divided (Bonferroni).
    """
    from scipy import stats

    right = round(share * sample.count)
    chance = float(stats.binom.sf(right - 1, sample.count, sample.majority))
    return chance < LEVEL / max(1, comparisons)
