"""Which models make an ensemble: greedily by what they are worth together, on images that trained none.

Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004: the best models are put in as long
as that helps; then, again and again, the model that helps most, which may be there already. What helps is a
lower cross-entropy of the averaged probabilities, which tells more of a few hundred images than the share of
right answers does.

Whether the ensemble is worth having is judged by cross-fitting: for each fifth of the images an ensemble is
chosen on the others, and what these have on images that did not choose them is held against the winner's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.training.folds import folds_of
from trainables.training.temperature import inverse_temperatures

__all__ = ["Selection", "select"]

_STEPS = 30
_FOLDS = 5
_LEVEL = 1.645
"""Standard errors that a difference of nothing exceeds in 5 % of cases (a normal distribution)."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """An ensemble as chosen, and what it is worth beside the winner alone.

    Attributes:
        shares: of the average, by place of the model, the largest first.
        factors: one over the temperature, by place.
        logits: float [N, C], for each image of an ensemble that it did not choose.
        accuracy, winner_accuracy: shares of right answers by these, and by the winner alone.
        gain: by how much cross-entropy falls.
        error: the standard error of that.
    """

    shares: Mapping[int, float]
    factors: Mapping[int, float]
    accuracy: float
    winner_accuracy: float
    gain: float
    error: float
    logits: Tensor

    @property
    def pays(self) -> bool:
        """Whether it is better than the winner alone, beyond what chance makes of it."""
        return len(self.shares) > 1 and self.gain > _LEVEL * self.error


def select(logits: Tensor, labels: Tensor) -> Selection:
    """The ensemble of some models.

    Args:
        logits: float [M, N, C], of the winner first, then of the others.
        labels: int64 [N].
    """
    logits = logits.double()
    every = torch.arange(len(labels))
    factors, shares = _chosen(logits, labels)
    average, alone = torch.empty_like(logits[0]), torch.empty_like(logits[0])
    folds = folds_of(labels, _FOLDS)
    for fold in folds.unique():
        rest, held = every[folds != fold], every[folds == fold]
        own_factors, own_shares = _chosen(logits[:, rest], labels[rest])
        average[held] = _averaged(logits[:, held], own_factors, own_shares)
        alone[held] = (own_factors[0] * logits[0, held]).softmax(1)
    difference = _losses(alone, labels) - _losses(average, labels)
    return Selection(
        shares=shares,
        factors={place: float(factors[place]) for place in shares},
        accuracy=float((average.argmax(1) == labels).double().mean()),
        winner_accuracy=float((alone.argmax(1) == labels).double().mean()),
        gain=float(difference.mean()),
        error=float(difference.std()) / math.sqrt(len(labels)),
        logits=average.clamp(min=1e-30).log().float(),
    )


def _chosen(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[int, float]]:
    """The factors [M] that calibrate the models, and the shares of those that are chosen."""
    factors = inverse_temperatures(logits, labels)
    probabilities = (factors[:, None, None] * logits).softmax(2)
    counts = Counter(_greedy(probabilities[:, torch.arange(len(labels)), labels]))
    total = sum(counts.values())
    return factors, {place: count / total for place, count in counts.most_common()}


def _greedy(right: Tensor) -> list[int]:
    """The models that are put in, in order; `right` [M, N] has their probabilities of the true classes."""

    def loss(sums: Tensor, count: int) -> Tensor:
        return -(sums / count).clamp(min=1e-30).log().mean(-1)

    order = loss(right, 1).argsort(stable=True).tolist()
    taken = [order[0]]
    sums = right[order[0]].clone()
    for place in order[1:]:
        if loss(sums + right[place], len(taken) + 1) >= loss(sums, len(taken)):
            break
        sums += right[place]
        taken.append(place)
    best, shortest = float(loss(sums, len(taken))), len(taken)
    while len(taken) < _STEPS:
        losses = loss(sums + right, len(taken) + 1)
        place = int(losses.argmin())
        sums += right[place]
        taken.append(place)
        if float(losses[place]) < best:
            best, shortest = float(losses[place]), len(taken)
    return taken[:shortest]


def _averaged(logits: Tensor, factors: Tensor, shares: Mapping[int, float]) -> Tensor:
    parts = [share * (factors[place] * logits[place]).softmax(1) for place, share in shares.items()]
    return torch.stack(parts).sum(0)


def _losses(probabilities: Tensor, labels: Tensor) -> Tensor:
    return -probabilities[torch.arange(len(labels)), labels].clamp(min=1e-30).log()
