"""What heads that are solved for are worth by folds: on each image by a head that it was left out of.

The heads of all folds share their features, and those of a ridge regression their moments, so folds cost
little more than one head. The penalty's strength is the one whose left-out scores are best over all folds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from trainables.modality import Data
from trainables.training.folds import folds_of
from trainables.training.keeping import expected_name
from trainables.training.metrics import Scores
from trainables.training.solved import SolvedHead

__all__ = ["folded_scores"]


def folded_scores(
    solve: Callable[[Tensor], SolvedHead],
    data: Data,
    places: Tensor,
    scores: Callable[[Tensor, Tensor], Scores],
    folds: int,
    repeats: int,
) -> tuple[dict[str, float], list[bool]]:
    """The mean over folds of each score, as what a head is expected to have; and which images it tells right.

    Args:
        solve: gives the head of the images at `places`, scored by these folds, int64 [N].
        data: has the images; what belongs together there is in one fold.
        places: of the images, int64 [N].
        scores: of logits and labels.
        folds: how many.
        repeats: how often folds are drawn.
    """
    labels, groups = data.labels[places], getattr(data, "groups", None)
    kin = None if groups is None else groups[places]
    found: list[dict[str, float]] = []
    right: list[bool] = []
    for repeat in range(repeats):
        parts = folds_of(labels, folds, groups=kin, repeat=repeat)
        left_out = solve(parts).scores.float().cpu()
        right = right or (left_out.argmax(1) == labels).tolist()
        found += [
            scores(left_out[parts == fold], labels[parts == fold]).named("val")
            for fold in torch.unique(parts).tolist()
        ]
    means = {expected_name(name): statistics.fmean(each[name] for each in found) for name in found[0]}
    return means, right
