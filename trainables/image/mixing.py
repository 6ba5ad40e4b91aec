"""Mixing of a batch with itself: mixup and CutMix."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.image.hparams import ImageHParams

__all__ = ["Mixing", "build_mixing"]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019) of a batch with itself, reordered.

    Every batch is mixed, with one share for all its images; `both` is one of the two, as often.
    The targets are not smoothed: `cross_entropy(logits, targets, label_smoothing=...)` smooths
    probabilities as it smooths classes, once, so nothing else may.
    """

    kind: str
    alpha: float
    classes: int

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mixed inputs and targets, both float.

        Args:
            inputs: uint8 or float [B, 3, s, s], values 0 to 255.
            targets: float [B, classes], each row a distribution.
            generator: of any device; the only source of chance, so its state is all that a resumed
                run needs.

        Raises:
            ValueError: if the targets' shape is another.
        """
        if targets.shape != (len(inputs), self.classes):
            raise ValueError(f"targets are {list(targets.shape)}, but must be {[len(inputs), self.classes]}")
        inputs, targets = inputs.float(), targets.float()
        if self.kind == "none":
            return inputs, targets
        device = generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        order = torch.randperm(len(inputs), generator=generator, device=device).to(inputs.device)
        # torch's Beta takes no generator, the standard library's does.
        chance = random.Random(seed)
        share = chance.betavariate(self.alpha, self.alpha)
        if self.kind == "mixup" or (self.kind == "both" and chance.random() < 0.5):
            mixed = inputs * share + inputs[order] * (1 - share)
        else:
            mixed, share = _cut(inputs, order, share, chance)
        return mixed, targets * share + targets[order] * (1 - share)


def _cut(inputs: Tensor, order: Tensor, share: float, chance: random.Random) -> tuple[Tensor, float]:
    """`inputs` with a box from their partners, and the share of the area that stays their own."""
    height, width = inputs.shape[-2:]
    side = math.sqrt(1 - share)
    y, x = chance.randrange(height), chance.randrange(width)
    half_y, half_x = int(side * height / 2), int(side * width / 2)
    rows = slice(max(y - half_y, 0), min(y + half_y, height))
    columns = slice(max(x - half_x, 0), min(x + half_x, width))
    mixed = inputs.clone()
    mixed[..., rows, columns] = inputs[order][..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)


def build_mixing(hparams: ImageHParams, classes: int) -> Mixing:
    """The mixing that `hparams` asks for; which phases of training use it is the loop's choice."""
    return Mixing(kind=hparams.mixing, alpha=hparams.mixing_alpha, classes=classes)
