"""What a classifier is measured by."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BINS", "Scores", "calibration_error", "scores"]

BINS = 15
_TOP = 5


@dataclass(frozen=True)
class Scores:
    """What logits are worth; None is what somebody else's modality does not measure.

    Attributes:
        loss: mean cross-entropy without smoothing, which others call the log loss.
        accuracy: share of right answers.
        macro_f1: F1 averaged over classes.
        balanced_accuracy: recall averaged over classes.
        auroc: area under the ROC curve of each class against the rest, averaged over classes.
        top5_accuracy: share of cases whose class is among the five likeliest.
        calibration_error: expected calibration error, as `calibration_error` has it.
    """

    loss: float
    accuracy: float
    macro_f1: float
    balanced_accuracy: float | None = None
    auroc: float | None = None
    top5_accuracy: float | None = None
    calibration_error: float | None = None

    def named(self, split: str) -> dict[str, float]:
        """Those that are measured, as `val_loss` of the split `val`."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {f"{split}_{name}": value for name, value in own.items() if value is not None}


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of logits, [N, C], for labels, int64 [N].

    A class that neither occurs nor is predicted is left out of the mean of F1; one that is only
    predicted counts 0. Means of recall and of areas are over the classes that occur. Logits that hold a NaN
    score NaN throughout: a network that diverged still has a largest logit, but predicts nothing.
    """
    if logits.isnan().any():
        return Scores(*[math.nan] * len(fields(Scores)))
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2)
    confusion = confusion.view(classes, classes).double()
    right, true, told = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    seen = (true + told) > 0
    f1 = 2 * right[seen] / (true + told)[seen]
    shares = logits.double().softmax(1)
    likeliest = shares.topk(min(_TOP, classes), 1).indices
    return Scores(
        loss=float(functional.cross_entropy(logits.float(), labels)),
        accuracy=float(right.sum() / confusion.sum()),
        macro_f1=float(f1.mean()),
        balanced_accuracy=float((right[true > 0] / true[true > 0]).mean()),
        auroc=_auroc(shares, labels),
        top5_accuracy=float((likeliest == labels[:, None]).any(1).double().mean()),
        calibration_error=calibration_error(shares, labels),
    )


def calibration_error(shares: Tensor, labels: Tensor) -> float:
    """The expected calibration error of probabilities [N, C]: how far from the share of right ones they are.

    Of 15 bins of the largest probability, all of one width, as in Guo et al., "On Calibration of Modern
    Neural Networks", ICML 2017. Of few images it is never 0, however well calibrated the probabilities are.
    """
    sureness, told = shares.double().max(1)
    right = (told == labels).double()
    places = (sureness * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64, device=shares.device)
    gaps.index_add_(0, places, sureness - right)
    return float(gaps.abs().sum() / len(labels))


def _auroc(shares: Tensor, labels: Tensor) -> float:
    """By the ranks of each class's own images among all (Mann and Whitney); of equal ones the mean rank."""
    by_class = shares.T.contiguous()
    ordered, own = by_class.sort(1).values, shares.gather(1, labels[:, None]).T
    counts = torch.bincount(labels, minlength=len(by_class)).double()
    sums = torch.zeros_like(counts)
    for label in counts.nonzero().squeeze(1).tolist():
        mine = own[0, labels == label]
        below = torch.searchsorted(ordered[label], mine)
        upto = torch.searchsorted(ordered[label], mine, right=True)
        sums[label] = (below + upto + 1).double().sum() / 2
    pairs = counts * (len(labels) - counts)
    areas = (sums - counts * (counts + 1) / 2)[pairs > 0] / pairs[pairs > 0]
    return float(areas.mean()) if len(areas) else 0.5
