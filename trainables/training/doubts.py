"""Labels that are probably wrong, and classes that are confused, by what never saw the image.

Two know nothing of an image's label: a head that was left without it, and the labels of the images nearest
to it. What they say together is the geometric mean of both probabilities. A label is doubted where it has
less than half the probability that a guess gives it, and another class more; the least probable is the most
doubtful. That is the ranking by self-confidence of Northcutt, Jiang and Chuang, "Confident Learning:
Estimating Uncertainty in Dataset Labels", JAIR 70 (2021), by whose thresholds of classes less was found here
(precision 0.77 against 0.85, with 5 % of the labels of 1,500 images of Fashion-MNIST changed). The head is
found twice: wrong labels that it learned from the first time are left out of the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainables.training.folds import folds_of
from trainables.training.solved import solve, standardisation

__all__ = ["Doubt", "confusions", "doubts", "left_out_shares"]

_FOLDS = 5
_NEAREST, _SHARPNESS = 15, 8.0
"""Neighbours, and how fast they count less."""
_DOUBT = 0.02
"""What a class has that no neighbour has."""
_ROWS = 1024
_SHARE = 0.5
"""Of the probability that a guess gives a class: a label that has less is doubted."""


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """A label that is probably wrong.

    Attributes:
        place: of the image.
        label, likely: its label, and the class that it probably has.
        share, likely_share: the probability of either.
    """

    place: int
    label: int
    likely: int
    share: float
    likely_share: float


def left_out_shares(features: Tensor, labels: Tensor, classes: int, groups: Tensor | None = None) -> Tensor:
    """Probabilities [N, C] of images, each by what was left without it.

    Args:
        features: float [N, F].
        labels: int64 [N].
        classes: how many.
        groups: int64 [N], what belongs together; None: nothing does.
    """
    near = _by_neighbours(features, labels, classes, groups)
    folds = folds_of(labels, _FOLDS, groups=groups)

    def together(weights: Tensor | None) -> Tensor:
        head = solve("ridge", [lambda: features], labels, classes, weights=weights, folds=folds)
        shares = (head.scores.softmax(1) * near).sqrt()
        return shares / shares.sum(1, keepdim=True)

    first = together(None)
    weights = torch.ones(len(labels))
    weights[[each.place for each in doubts(first, labels)]] = 0.0
    leaves_all = all(bool((weights[labels == each] > 0).any()) for each in labels.unique())
    return together(weights) if leaves_all else first


def _by_neighbours(features: Tensor, labels: Tensor, classes: int, groups: Tensor | None) -> Tensor:
    """The shares of classes among the nearest images of other groups, float64 [N, C]."""
    mean, scale = standardisation(features)
    unit = normalize((features.float() - mean.float()) / scale.float(), dim=1)
    kin = torch.arange(len(labels)) if groups is None else groups
    shares = torch.full((len(labels), classes), _DOUBT, dtype=torch.float64)
    count = min(_NEAREST, len(labels) - 1)
    for part in torch.arange(len(labels)).split(_ROWS):
        cosines = unit[part] @ unit.T
        cosines[kin[part][:, None] == kin[None, :]] = -1.0
        values, places = cosines.topk(count, 1)
        own = torch.zeros(len(part), classes, dtype=torch.float64)
        shares[part] += own.scatter_add_(1, labels[places], (_SHARPNESS * values).softmax(1).double())
    return shares / shares.sum(1, keepdim=True)


def doubts(shares: Tensor, labels: Tensor) -> list[Doubt]:
    """The labels that are probably wrong, the most doubtful first."""
    shares, labels = shares.cpu().double(), labels.cpu()
    every = torch.arange(len(labels))
    own = shares[every, labels]
    best, likely = shares.max(1)
    doubted = torch.nonzero((likely != labels) & (own < _SHARE / shares.shape[1])).squeeze(1)
    order = doubted[own[doubted].argsort(stable=True)]
    return [
        Doubt(
            place=place,
            label=int(labels[place]),
            likely=int(likely[place]),
            share=float(own[place]),
            likely_share=float(best[place]),
        )
        for place in order.tolist()
    ]


def confusions(shares: Tensor, labels: Tensor) -> list[tuple[int, int, int, int]]:
    """The pairs of classes that are taken for each other: both, how many images are, and how many they have.

    The pair that loses most of its images first.
    """
    classes = shares.shape[1]
    table = torch.bincount(labels.cpu() * classes + shares.cpu().argmax(1), minlength=classes**2)
    table = table.view(classes, classes)
    counts = table.sum(1)
    pairs = [
        (one, other, int(table[one, other] + table[other, one]), int(counts[one] + counts[other]))
        for one in range(classes)
        for other in range(one)
        if table[one, other] + table[other, one]
    ]
    return sorted(pairs, key=lambda pair: -pair[2] / pair[3])
