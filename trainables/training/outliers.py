"""Examples that are like no other: far from their nearest, in what a frozen trunk sees.

How far that is spreads over examples like a product of many things, so its logarithm is looked at; and since
the examples looked for are among those that say what is usual, by median and median absolute deviation
(Leys et al., "Detecting outliers", Journal of Experimental Social Psychology 49, 2013).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainables.training.solved import standardisation

__all__ = ["outliers"]

_NEAREST = 5
_ROWS = 1024
_FAR = 4.0
"""Deviations above the median."""
_NORMAL = 1.4826
"""The standard deviation over the median absolute one, of a normal distribution."""
_LEAST = 1e-6


def outliers(features: Tensor, groups: Tensor | None = None) -> list[tuple[int, float]]:
    """Places of the examples that are like no other, and how many times as far as usual; farthest first.

    Args:
        features: float [N, F].
        groups: int64 [N], what belongs together and is not compared; None: nothing does.
    """
    count = min(_NEAREST, len(features) - 1)
    if count < _NEAREST:
        return []
    mean, scale = standardisation(features)
    scaled = (features.float() - mean.float()) / scale.float()
    kin = torch.arange(len(features)) if groups is None else groups
    found = []
    for part in torch.arange(len(features)).split(_ROWS):
        distances = torch.cdist(scaled[part], scaled)
        distances[kin[part][:, None] == kin[None, :]] = math.inf
        found.append(distances.topk(count, 1, largest=False).values.mean(1))
    apart = torch.cat(found).clamp(min=_LEAST).log()
    beyond = apart - apart.median()
    far = beyond > _FAR * _NORMAL * beyond.abs().median().clamp(min=_LEAST)
    places = torch.nonzero(far).squeeze(1)
    return [
        (int(place), float(beyond[place].exp())) for place in places[beyond[places].argsort(descending=True)]
    ]
