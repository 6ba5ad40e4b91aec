"""Multinomial logistic regression for a path of strengths, each begun where the one before it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["logistic_path"]

_STEPS = 60


def logistic_path(
    rows: Tensor,
    labels: Tensor,
    weights: Tensor,
    classes: int,
    strengths: Sequence[float],
    *,
    tolerance: float = 1e-3,
    steps: int = _STEPS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights [C, F] and biases [C] for each strength in turn, by L-BFGS (Liu and Nocedal, 1989).

    Minimised is the weighted mean of the cross-entropy, plus half the strength times the squared norm of the
    weights; the biases are free. It is the objective of scikit-learn's `LogisticRegression` with C of one
    over the strength times the sum of the weights.

    Args:
        rows: [N, F], in the precision that is computed in.
        labels: int64 [N].
        weights: of the rows, [N].
        classes: C.
        strengths: from strong to weak, which is the quick way.
        tolerance: the largest entry of the gradient at the end.
        steps: at most so many for each strength.
    """
    share = (weights / weights.sum()).to(rows)
    weight = torch.zeros(classes, rows.shape[1], dtype=rows.dtype, device=rows.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=rows.dtype, device=rows.device, requires_grad=True)
    for strength in strengths:
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=steps,
            tolerance_grad=tolerance,
            tolerance_change=tolerance**2,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(strength: float = strength, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            logits = torch.addmm(bias, rows, weight.T)
            loss = (functional.cross_entropy(logits, labels, reduction="none") * share).sum()
            loss = loss + 0.5 * strength * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        yield weight.detach().clone(), bias.detach().clone()
