"""A policy and a backbone of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.image.preprocessing import Preprocessing
from trainables.image.transforms import CenterCrop, Stage


@dataclass(frozen=True)
class Negative:
    """Every other image as its negative."""

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        return torch.where((seeds & 1 == 1)[:, None, None, None], 255 - images, images)

    def describe(self) -> list[str]:
        return ["the negative of every other image"]


def negative(*, image_size: int, orientation_matters: bool) -> list[Stage]:
    return [CenterCrop(size=image_size), Negative()]


class _Averages:
    """Small means of an image under a layer that trains."""

    preprocessing = Preprocessing(
        image_size=16, frame_size=16, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    parameters = None
    licence = "none: the network begins from random numbers"

    def weights(self) -> Path | None:
        return None

    def trunk(self, image_size: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 32), nn.ReLU())


Averages = _Averages()
