"""What a classifier is measured by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BINS", "Scores", "calibration_error", "scores"]

BINS = 15
_TOP = 5
_MORE = ("balanced_accuracy", "auroc", "top5_accuracy", "calibration_error")


@dataclass(frozen=True)
class Scores:
    """What logits are worth.

    Attributes:
        loss: mean cross-entropy without smoothing, which others call the log loss.
        accuracy: share of right answers.
        macro_f1: F1 averaged over classes.
        more: computes further ones, by name, for who asks: they take as long as a cheap epoch's training.
    """

    loss: float
    accuracy: float
    macro_f1: float
    more: Callable[[], Mapping[str, float]] = dict

    def named(self, split: str, *, more: bool = True) -> dict[str, float]:
        """All of them, or without the further ones, as `val_loss` of the split `val`."""
        own = {"loss": self.loss, "accuracy": self.accuracy, "macro_f1": self.macro_f1}
        return {f"{split}_{name}": value for name, value in {**own, **(self.more() if more else {})}.items()}


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of logits, [N, C], for labels, int64 [N].

    A class that neither occurs nor is predicted is left out of the mean of F1; one that is only
    predicted counts 0. Logits that hold a NaN score NaN throughout: a network that diverged still has a
    largest logit, but predicts nothing.

    Further ones: `balanced_accuracy`, recall averaged over the classes that occur; `auroc`, the area under
    the ROC curve of each of these against the rest, averaged; `top5_accuracy`, the share of cases whose class
    is among the five likeliest; and `calibration_error`, as the function of that name has it.
    """
    if logits.isnan().any():
        return Scores(math.nan, math.nan, math.nan, lambda: dict.fromkeys(_MORE, math.nan))
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2)
    confusion = confusion.view(classes, classes).double()
    right, true, told = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    seen = (true + told) > 0
    f1 = 2 * right[seen] / (true + told)[seen]

    def more() -> dict[str, float]:
        shares = logits.double().softmax(1)
        likeliest = shares.topk(min(_TOP, classes), 1).indices
        found = (
            float((right[true > 0] / true[true > 0]).mean()),
            _auroc(shares, labels),
            float((likeliest == labels[:, None]).any(1).double().mean()),
            calibration_error(shares, labels),
        )
        return dict(zip(_MORE, found, strict=True))

    return Scores(
        loss=float(functional.cross_entropy(logits.float(), labels)),
        accuracy=float(right.sum() / confusion.sum()),
        macro_f1=float(f1.mean()),
        more=more,
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
