"""What a trial that tells classes apart minimises and is measured by; for modalities to inherit."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from trainables.training.metrics import Scores

__all__ = ["Classification"]


class Classification:
    """The `loss` and `scores` of a modality whose examples each have one class."""

    # The imports stand within, since a spec is read without torch.

    def loss(
        self, logits: Tensor, targets: Tensor, *, weights: Tensor | None, label_smoothing: float
    ) -> Tensor:
        """Cross-entropy of logits [B, C] and classes int64 [B], or distributions float [B, C]."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets, weight=weights, label_smoothing=label_smoothing)

    def scores(self, logits: Tensor, labels: Tensor) -> Scores:
        """`training.metrics.scores`."""
        from trainables.training.metrics import scores

        return scores(logits, labels)
