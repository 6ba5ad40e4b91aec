"""Several models as one, which averages their probabilities; heads on one trunk cost one pass of it.

Each member's logits are first divided by its temperature, since the average of sure and unsure models is that
of the sure ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.training import lora
from trainables.training.card import Member
from trainables.training.model import TransferModel
from trainables.training.stages import features_read

__all__ = ["EnsembleModel"]

_LEAST = 1e-30
"""What a probability is at least, so that it has a logarithm in single precision."""


@dataclass(frozen=True)
class _Part:
    share: float
    factor: float
    trunk: int
    stages: tuple[str, ...]


class EnsembleModel(nn.Module):
    """The weighted average of the members' probabilities, as logits: its softmax is that average.

    Args:
        models: the members as they stand alone; of those with one trunk the first one's is used.
        members: what their part is, in the same order.
        factor: what the logarithms of the average are multiplied with, which is 1 for the average itself.
    """

    def __init__(
        self, models: Sequence[TransferModel], members: Sequence[Member], factor: float = 1.0
    ) -> None:
        super().__init__()
        self.factor = factor
        own: dict[int, nn.Module] = {}
        for model, member in zip(models, members, strict=True):
            own.setdefault(member.trunk, model.trunk)
        self.trunks = nn.ModuleList(own[place] for place in sorted(own))
        self.heads = nn.ModuleList(model.head for model in models)
        self.normaliser = models[0].normaliser
        self._parts = tuple(
            _Part(member.share, member.factor, member.trunk, model.stages)
            for model, member in zip(models, members, strict=True)
        )

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """What each member's head reads of its trunk."""
        return tuple(part.stages for part in self._parts)

    def merge(self) -> None:
        """Adds the trunks' low-rank updates to their layers, which are plain ones then."""
        lora.merge(self.trunks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, C] of inputs [B, ...]."""
        total = torch.zeros(())
        for part, logits in zip(self._parts, self.members(inputs), strict=True):
            total = total + part.share * (part.factor * logits).softmax(1)
        return self.factor * total.clamp(min=_LEAST).log()

    def members(self, inputs: Tensor) -> list[Tensor]:
        """Logits [B, C] of each member, as it would give them alone."""
        taken = self.normaliser(inputs)
        found: dict[int, Tensor] = {}
        for place, trunk in enumerate(self.trunks):
            mine = [number for number, part in enumerate(self._parts) if part.trunk == place]
            features = features_read(trunk, [self._parts[number].stages for number in mine], taken)
            found |= dict(zip(mine, features, strict=True))
        return [head(found[number]) for number, head in enumerate(self.heads)]
