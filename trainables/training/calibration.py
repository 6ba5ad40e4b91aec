"""Probabilities that mean what they say: a temperature, and sets of classes that hold the true one as asked.

Temperature: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Sets: split conformal
prediction (Vovk et al., 2005) by the probability of the true class, as Sadinle, Lei and Wasserman, "Least
ambiguous set-valued classifiers with bounded error levels", JASA 2019, have it: the classes whose
probability is at least a threshold, which a share of held-out images reach with their own class. Of images
drawn as these were, sets hold the true class that often. It is a sorted list and an index; a library for
that would be a dependency of every export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.training.folds import folds_of
from trainables.training.metrics import calibration_error
from trainables.training.temperature import cross_entropy, inverse_temperatures

__all__ = ["Calibration", "calibrated", "classes_in", "threshold"]

_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What logits are to be multiplied with, and what that does.

    Attributes:
        factor: one over the temperature; 1 where none lowers the cross-entropy of images that did not fit it.
        before, after: expected calibration errors; after, each image by a temperature of the other images.
    """

    factor: float
    before: float
    after: float


def calibrated(logits: Tensor, labels: Tensor) -> Calibration:
    """The calibration of logits [N, C] for labels int64 [N] that the model was not fitted to."""
    logits = logits.double()
    before = calibration_error(logits.softmax(1), labels)
    held_out = logits.clone()
    folds = folds_of(labels, _FOLDS)
    for fold in folds.unique():
        (factor,) = inverse_temperatures(logits[None, folds != fold], labels[folds != fold])
        held_out[folds == fold] *= factor
    if cross_entropy(held_out, labels) >= cross_entropy(logits, labels):
        return Calibration(factor=1.0, before=before, after=before)
    (factor,) = inverse_temperatures(logits[None], labels)
    after = calibration_error(held_out.softmax(1), labels)
    return Calibration(factor=float(factor), before=before, after=after)


def threshold(shares: Tensor, labels: Tensor, coverage: float) -> float:
    """The least probability of the classes of a set that holds the true class with this probability.

    Args:
        shares: probabilities [N, C] of images that the model was not fitted to.
        labels: their classes, int64 [N].
        coverage: how often sets are to hold the true class.
    """
    own = shares.double()[torch.arange(len(labels)), labels].sort(descending=True).values
    place = math.ceil((len(own) + 1) * coverage)
    return float(own[place - 1]) if place <= len(own) else 0.0


def classes_in(shares: Tensor, least: float) -> Tensor:
    """Which classes are in the sets of probabilities [N, C], bool [N, C]; the likeliest always is."""
    within = shares >= least
    within[torch.arange(len(shares)), shares.argmax(1)] = True
    return within
