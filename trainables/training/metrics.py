"""What a classifier is measured by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Scores", "scores"]


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy without smoothing, share of right answers, and F1 averaged over classes."""

    loss: float
    accuracy: float
    macro_f1: float


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of logits, [N, C], for labels, int64 [N].

    A class that neither occurs nor is predicted is left out of the mean of F1; one that is only
    predicted counts 0. Logits that hold a NaN score NaN throughout: a network that diverged still has a
    largest logit, but predicts nothing.
    """
    if logits.isnan().any():
        return Scores(math.nan, math.nan, math.nan)
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2)
    confusion = confusion.view(classes, classes).double()
    right, true, told = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    seen = (true + told) > 0
    f1 = 2 * right[seen] / (true + told)[seen]
    return Scores(
        loss=float(functional.cross_entropy(logits.float(), labels)),
        accuracy=float(right.sum() / confusion.sum()),
        macro_f1=float(f1.mean()),
    )
