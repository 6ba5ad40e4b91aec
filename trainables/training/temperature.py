"""The temperature that makes scores probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cross_entropy", "inverse_temperatures"]

_STEPS = 40
_LOW, _HIGH = 1e-3, 1e3
"""Where no temperature is best, as for scores that make no mistake, this is as far as it goes."""


def inverse_temperatures(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """What to multiply scores with so that their softmax has the least cross-entropy, [L].

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The cross-entropy is convex in the
    factor; it is found by bisection of its slope.

    Args:
        scores: [L, N, C], of L classifiers.
        labels: int64 [N], which the scores must not have been fitted to.
        weights: of the rows, [N]; None: all alike.
    """
    share = _shares(labels, weights).to(scores)
    size = scores.std().clamp(min=1e-12)
    low = torch.full((len(scores),), _LOW, dtype=scores.dtype, device=scores.device)
    high = torch.full_like(low, _HIGH)
    right = scores.gather(2, labels.expand(len(scores), -1).unsqueeze(2)).squeeze(2)
    # As if one more image had an unknown class (Platt, 1999): no mistake among few is not certainty.
    unknown = 1 / (len(labels) + 1)
    right = (1 - unknown) * right + unknown * scores.mean(2)
    for _ in range(_STEPS):
        middle = (low * high).sqrt()
        expected = (((middle / size)[:, None, None] * scores).softmax(2) * scores).sum(2)
        falls = ((expected - right) * share).sum(1) < 0
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return (low * high).sqrt() / size


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """The mean cross-entropy of logits, [N, C], for labels, int64 [N]."""
    each = functional.cross_entropy(logits, labels, reduction="none")
    return float((each * _shares(labels, weights).to(each)).sum())


def _shares(labels: Tensor, weights: Tensor | None) -> Tensor:
    weights = torch.ones(len(labels), device=labels.device) if weights is None else weights
    return weights / weights.sum()
