"""Ridge regression for a whole path of strengths from one eigendecomposition.

Classes are told apart by regression to targets of 1 for an image's class and -1 for the others, with an
intercept that is not shrunk: the objective of scikit-learn's `RidgeClassifier`. What it needs of the data are
sums of products, which are added up over batches: the memory does not grow with the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["Moments", "RidgePath", "targets_of"]

_BATCH = 4096


def targets_of(labels: Tensor, classes: int) -> Tensor:
    """What is regressed on: float64 [N, C] of 1 for the class and -1 for the others."""
    return 2.0 * torch.nn.functional.one_hot(labels, classes).double() - 1.0


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Weighted sums over rows: all that a ridge regression needs of them, float64.

    Attributes:
        weight: sum of the weights.
        rows: [F], of the rows.
        targets: [C], of the targets.
        gram: [F, F], of products of features.
        cross: [F, C], of products of features and targets.
    """

    weight: Tensor
    rows: Tensor
    targets: Tensor
    gram: Tensor
    cross: Tensor

    @classmethod
    def of(cls, rows: Tensor, targets: Tensor, weights: Tensor) -> Self:
        """The moments of rows [N, F], targets [N, C] and weights [N], in batches."""
        features, classes = rows.shape[1], targets.shape[1]
        shapes = {
            "weight": (),
            "rows": (features,),
            "targets": (classes,),
            "gram": (features, features),
            "cross": (features, classes),
        }
        made = cls(
            **{
                name: torch.zeros(shape, dtype=torch.float64, device=rows.device)
                for name, shape in shapes.items()
            }
        )
        parts = (each.split(_BATCH) for each in (rows, targets, weights))
        for part, target, weight in zip(*parts, strict=True):
            made.add(part, target, weight)
        return made

    def add(self, rows: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Adds more rows to these, in place: as large as they are, no copy of them is made."""
        rows, targets, weights = rows.double(), targets.double(), weights.double()
        weighed = rows * weights[:, None]
        self.weight.add_(weights.sum())
        self.rows.add_(weighed.sum(0))
        self.targets.add_((targets * weights[:, None]).sum(0))
        self.gram.addmm_(weighed.T, rows)
        self.cross.addmm_(weighed.T, targets)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Of rows [F] and of targets [C]."""
        return self.rows / self.weight, self.targets / self.weight

    @property
    def centred(self) -> tuple[Tensor, Tensor]:
        """`gram` and `cross` of rows and targets less their means."""
        mean, target = self.means
        gram = self.gram - self.weight * torch.outer(mean, mean)
        return gram, self.cross - torch.outer(self.rows, target)

    def solution(self, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [C, F] and biases [C] of a regression with one penalty: of many, see `RidgePath`."""
        mean, target = self.means
        gram, cross = self.centred
        gram.diagonal().add_(strength)
        weights = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)).T
        return weights, target - weights @ mean

    def __add__(self, other: Moments) -> Moments:
        return Moments(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __sub__(self, other: Moments) -> Moments:
        return Moments(**{name: value - getattr(other, name) for name, value in vars(self).items()})


class RidgePath:
    """The regressions of a path of strengths.

    Args:
        moments: of the rows that it is fitted to.
        strengths: float64 [L], all above 0; the penalty is strength times the squared norm of the weights.
        exact: whether the decomposition is in double precision; else it takes half the time, which does where
            strengths are only to be compared.
    """

    def __init__(self, moments: Moments, strengths: Tensor, *, exact: bool = True) -> None:
        self.strengths = strengths.to(moments.gram)
        self._total = moments.weight
        self._mean, self._target = moments.means
        gram, cross = moments.centred
        values, basis = torch.linalg.eigh(gram if exact else gram.float())
        values, self._basis = values.double(), basis.double()
        # Sums of squares: what falls below 0 does so by rounding.
        self._shrunk = 1 / (values.clamp(min=0) + self.strengths[:, None])  # [L, F]
        self._cross = self._basis.T @ cross

    def linear(self, index: int) -> tuple[Tensor, Tensor]:
        """Weights [C, F] and biases [C] of the strength at `index`."""
        weights = (self._basis @ (self._shrunk[index][:, None] * self._cross)).T
        return weights, self._target - weights @ self._mean

    def scores(self, rows: Tensor) -> Tensor:
        """Scores of rows [N, F] by every regression, [L, N, C]."""
        return self._scores(self._turned(rows))

    def left_out(self, rows: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Scores [L, N, C] of rows that it is fitted to, each by the regression fitted to all rows but it.

        In closed form: the residual grows by one over one minus the row's leverage (Allen's PRESS, 1974).

        Args:
            rows, targets, weights: [N, F], [N, C], [N]: some of what the moments are of.
        """
        turned = self._turned(rows)
        leverage = turned.square() @ self._shrunk.T + 1 / self._total  # [N, L]
        room = (1 - leverage * weights[:, None]).T.unsqueeze(2)
        residual = targets - self._scores(turned)
        found: Tensor = targets - residual / room.clamp(min=1e-12)
        return found

    def left_out_together(self, rows: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Scores [L, N, C] of rows that it is fitted to, by the regression fitted to all rows but these.

        The same for several rows: the residuals are multiplied with the inverse of one minus their part of
        the hat matrix, so there should not be many.
        """
        turned = self._turned(rows)
        found = self._scores(turned)
        for place, shrunk in enumerate(self._shrunk):
            hat = (turned * shrunk) @ turned.T + 1 / self._total
            room = torch.eye(len(rows)).to(hat) - hat * weights
            found[place] = targets - torch.linalg.solve(room, targets - found[place])
        return found

    def _turned(self, rows: Tensor) -> Tensor:
        turned: Tensor = (rows.double() - self._mean) @ self._basis
        return turned

    def _scores(self, turned: Tensor) -> Tensor:
        found: Tensor = turned @ (self._shrunk.unsqueeze(2) * self._cross) + self._target
        return found
