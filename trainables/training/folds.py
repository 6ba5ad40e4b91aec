"""Folds: which part of the images each image is left out with; classes even, groups whole."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.seeds import generator

__all__ = ["folds_of"]


def folds_of(labels: Tensor, count: int, *, groups: Tensor | None = None, repeat: int = 0) -> Tensor:
    """The fold of each image, int64 [N]; each class is spread evenly over them.

    Args:
        labels: int64 [N].
        count: of folds.
        groups: int64 [N]; images of one group are in one fold. Large groups are placed first, each where it
            makes the classes most even.
        repeat: another number gives other folds.
    """
    order = torch.randperm(len(labels), generator=generator(repeat, "folds")).to(labels.device)
    if groups is not None:
        return _grouped(labels, count, groups, order)
    order = order[labels[order].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[order] = torch.arange(len(labels), device=labels.device) % count
    return folds


def _grouped(labels: Tensor, count: int, groups: Tensor, order: Tensor) -> Tensor:
    groups = groups.to(labels.device)
    classes, total = int(labels.max()) + 1, int(groups.max()) + 1
    table = torch.bincount(groups * classes + labels, minlength=classes * total).view(total, classes).double()
    sizes = table.sum(1)
    first = torch.full((total,), len(labels), device=labels.device)
    place = torch.arange(len(labels), device=labels.device)
    first.scatter_reduce_(0, groups[order], place, "amin")
    ordered = sorted(sizes.nonzero().squeeze(1).tolist(), key=lambda each: (-sizes[each], first[each]))
    filled = torch.zeros(count, classes, dtype=torch.float64, device=labels.device)
    wanted = table.sum(0).clamp(min=1) / count
    of_group = torch.zeros(total, dtype=torch.int64, device=labels.device)
    for group in ordered:
        after = ((filled + table[group]) / wanted).square().sum(1) - (filled / wanted).square().sum(1)
        fold = int(after.argmin())
        filled[fold] += table[group]
        of_group[group] = fold
    return of_group[groups]
