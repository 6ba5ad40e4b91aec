"""The steps of which policies are made: crops, flips, random operations, erasing.

Each is a frozen dataclass that maps images to images, and draws from each image's own seed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from trainables.image import operations as ops
from trainables.image.hparams import BINS, OPERATIONS
from trainables.image.ranges import Ranges, magnitudes

__all__ = [
    "AugMix",
    "CenterCrop",
    "Classic",
    "Erasing",
    "RandomCrop",
    "RandomOperations",
    "ResizedCrop",
    "Stage",
    "SubPolicies",
    "SubPolicy",
    "center_crop",
]


SubPolicy: TypeAlias = tuple[tuple[str, float, int], ...]
"""Operations one after another: name, probability, bin."""


class _Stream(IntEnum):
    """Streams of random numbers, so that a stage's draws do not depend on the other stages."""

    CROP = 0
    OPERATIONS = 1
    ERASING = 2


class Stage(Protocol):
    """A step of a policy: a frozen dataclass whose `repr` tells everything that it does."""

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor: ...

    def describe(self) -> list[str]: ...


def center_crop(frames: Tensor, size: int) -> Tensor:
    """The middle [..., size, size] of `frames` [..., S, S].

    Raises:
        ValueError: if the frames are smaller.
    """
    height, width = frames.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f"frames are {height}x{width}, but must be at least {size}x{size} to be cropped to it"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return frames[..., top : top + size, left : left + size].contiguous()


def _whole(draws: Tensor, count: Tensor | int) -> Tensor:
    """Whole numbers from 0 to `count` - 1, as often, for numbers in [0, 1)."""
    return (draws * count).long()


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The middle of the frame."""

    size: int

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        return center_crop(images, self.size)

    def describe(self) -> list[str]:
        return [f"centre crop to {self.size} px"]


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A crop anywhere in the frame, and a flip of every other image."""

    size: int
    flip: bool

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        top, left, flip = ops.uniform(seeds, _Stream.CROP, 3).unbind(1)
        room = images.shape[-1] - self.size + 1
        images = ops.cropped(images, _whole(top, room), _whole(left, room), self.size)
        return ops.flipped(images, flip < 0.5) if self.flip else images

    def describe(self) -> list[str]:
        return [f"random crop to {self.size} px", *_flip_text(self.flip)]


def _flip_text(flip: bool) -> list[str]:
    return ["horizontal flip with probability 0.5"] if flip else []


@dataclass(frozen=True, kw_only=True)
class ResizedCrop:
    """A random part of the frame, resized bilinearly, and a flip of every other image.

    The part covers 0.35 to 1 of the area. The usual lower end, 0.08, is made for training on a
    million images: with a few hundred, views that miss the object are noise in the labels. It also
    makes resizing an enlargement, or a reduction by no more than S / s, about 1.14: there bilinear
    readings need no antialiasing.
    """

    size: int
    flip: bool
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        side = images.shape[-1]
        area, ratio, top, left, flip = ops.uniform(seeds, _Stream.CROP, 5).double().unbind(1)
        height, width = _rectangles(area, ratio, self.scale, self.ratio, side)
        matrices = torch.zeros(len(images), 2, 3, device=images.device)
        mirror = 1 - 2 * ((flip < 0.5) & self.flip).float()
        matrices[:, 0, 0] = width / self.size * mirror
        matrices[:, 1, 1] = height / self.size
        matrices[:, 0, 2] = _whole(left, side - width + 1) + (width - side) / 2
        matrices[:, 1, 2] = _whole(top, side - height + 1) + (height - side) / 2
        return ops.warped(images, matrices, self.size, padding="border")

    def describe(self) -> list[str]:
        return [
            f"random part of {self.scale[0]:g} to {self.scale[1]:g} of the area, sides "
            f"{self.ratio[0]:.3g} to {self.ratio[1]:.3g}, resized to {self.size} px",
            *_flip_text(self.flip),
        ]


def _rectangles(
    area: Tensor, ratio: Tensor, scale: tuple[float, float], ratios: tuple[float, float], side: int
) -> tuple[Tensor, Tensor]:
    """Heights and widths, int64 [B], for draws of the area and of the ratio (log-uniform).

    A side that would be longer than the image is cut to it.
    """
    # In double precision, because the last bit of a logarithm may depend on the place in the batch.
    pixels = (scale[0] + (scale[1] - scale[0]) * area) * side**2
    low, high = map(math.log, ratios)
    factor = (low + (high - low) * ratio).exp()
    height = (pixels / factor).sqrt().round().clamp(1, side)
    width = (pixels * factor).sqrt().round().clamp(1, side)
    return height.long(), width.long()


@dataclass(frozen=True, kw_only=True)
class Classic:
    """Flip, rotation, zoom, shear and crop in one bilinear reading, then colour.

    What falls outside the frame is its reflection, so that no black corners mark a turned image.
    """

    size: int
    flip: bool
    degrees: float
    shear: float
    zoom: tuple[float, float] = (0.8, 1.2)
    colour: float = 0.2

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        draws = ops.uniform(seeds, _Stream.CROP, 9).unbind(1)
        flip, turn, slope, zoom, *shifts = draws[:6]
        matrices = ops.rotations((2 * turn - 1) * self.degrees)
        # The output is sheared, then mirrored and shrunk, then turned into the frame's axes.
        slope = (2 * slope - 1) * self.shear
        matrices[:, :, 1] += matrices[:, :, 0] * slope[:, None]
        matrices[:, :, 0] *= (1 - 2 * ((flip < 0.5) & self.flip).float())[:, None]
        low, high = self.zoom
        matrices[:, :, :2] /= (low + (high - low) * zoom)[:, None, None]
        room = images.shape[-1] - self.size
        matrices[:, :, 2] = (torch.stack(shifts, dim=1) - 0.5) * room
        images = ops.warped(images, matrices, self.size, padding="reflection")
        for adjusted, draw in zip((ops.brightness, ops.contrast, ops.color), draws[6:], strict=True):
            images = adjusted(images, (2 * draw - 1) * self.colour)
        return images

    def describe(self) -> list[str]:
        return [
            f"rotation ±{self.degrees:.3g}°, shear slope ±{self.shear:.3g}, zoom {self.zoom[0]:g} "
            f"to {self.zoom[1]:g}, random crop to {self.size} px",
            *_flip_text(self.flip),
            f"brightness, contrast and colour by a factor 1±{self.colour:g} each",
        ]


def _applied(
    images: Tensor,
    stage: RandomOperations | SubPolicies | AugMix,
    choice: Tensor,
    bins: Tensor,
    sign: Tensor,
) -> Tensor:
    """`images` after operation `choice` (-1: none) at one of the bins, both int64 [n]."""
    names, device = stage.names, images.device
    table = magnitudes(stage.ranges, names, stage.bins, images.shape[-1]).to(device)
    signed = torch.tensor([name in ops.SIGNED for name in names], device=device)
    magnitude = table[choice, bins]
    magnitude = torch.where(signed[choice] & (sign < 0.5), -magnitude, magnitude)
    return ops.applied(images, names, choice, magnitude)


@dataclass(frozen=True, kw_only=True)
class RandomOperations:
    """`count` operations in a row, each drawn evenly, at one bin or (`bin=None`) at a drawn one.

    One operation at a drawn bin and wide ranges is TrivialAugment (Müller, Hutter, 2021), a fixed
    bin RandAugment (Cubuk et al., 2020).
    """

    names: tuple[str, ...]
    ranges: Ranges
    count: int
    bin: int | None
    bins: int = BINS

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        draws = ops.uniform(seeds, _Stream.OPERATIONS, 3 * self.count).view(-1, self.count, 3)
        for step in draws.unbind(1):
            which, strength, sign = step.unbind(1)
            bins = _whole(strength, self.bins)
            if self.bin is not None:
                bins = torch.full_like(bins, self.bin)
            images = _applied(images, self, _whole(which, len(self.names)), bins, sign)
        return images

    def describe(self) -> list[str]:
        strength = "drawn from 0" if self.bin is None else f"{self.bin} of 0"
        head = f"{self.count} of {len(self.names)} operations, strength {strength} to {self.bins - 1}:"
        return [head, *(f"  {self.ranges.text(name)}" for name in self.names)]


@dataclass(frozen=True, kw_only=True)
class SubPolicies:
    """One of `rows`, drawn evenly, and of its operations each with its probability."""

    rows: tuple[SubPolicy, ...]
    ranges: Ranges
    bins: int

    @property
    def names(self) -> tuple[str, ...]:
        return OPERATIONS

    @property
    def steps(self) -> int:
        """Operations in the longest row."""
        return max(map(len, self.rows))

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        blank = (OPERATIONS[0], 0.0, 0)
        padded = [(*row, *[blank] * (self.steps - len(row))) for row in self.rows]
        table = torch.tensor(
            [[(OPERATIONS.index(op), chance, bin_) for op, chance, bin_ in row] for row in padded],
            device=images.device,
        )
        draws = ops.uniform(seeds, _Stream.OPERATIONS, 1 + 2 * self.steps)
        chosen = table[_whole(draws[:, 0], len(self.rows))]
        for step in range(self.steps):
            name, probability, bins = chosen[:, step].unbind(1)
            chance, sign = draws[:, 1 + 2 * step : 3 + 2 * step].unbind(1)
            choice = torch.where(chance < probability, name, -1).long()
            images = _applied(images, self, choice, bins.long(), sign)
        return images

    def describe(self) -> list[str]:
        used = {name for row in self.rows for name, _, _ in row}
        return [
            f"one of {len(self.rows)} sub-policies (operation, probability, bin of 0 to {self.bins - 1}):",
            *(
                "  " + ", then ".join(f"{name} {chance:g} {bin_}" for name, chance, bin_ in row)
                for row in self.rows
            ),
            "ranges over the bins:",
            *(f"  {self.ranges.text(name)}" for name in OPERATIONS if name in used),
        ]


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """The image mixed with `width` chains of one to `depth` operations (Hendrycks et al., 2020).

    The chains' weights are Dirichlet(1, 1, 1), the share of the image itself Beta(1, 1). An
    operation's strength is drawn from the weakest `severity` tenths of its range. The paper's
    consistency loss belongs to the training loop and is not part of this.
    """

    names: tuple[str, ...]
    ranges: Ranges
    width: int = 3
    depth: int = 3
    severity: int = 3
    bins: int = BINS

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        each = 1 + 3 * self.depth
        draws = ops.uniform(seeds, _Stream.OPERATIONS, self.width * (each + 1))
        # Distances between sorted uniform numbers are Dirichlet(1, ..., 1).
        cuts = draws[:, : self.width - 1].sort(dim=1).values
        share = draws[:, self.width - 1]
        weights = torch.diff(torch.nn.functional.pad(cuts, (1, 0)), append=torch.ones_like(share)[:, None])
        # All chains go through their operations as one batch, chain by chain.
        chains = draws[:, self.width :].view(-1, self.width, each).transpose(0, 1).flatten(0, 1)
        length = 1 + _whole(chains[:, 0], self.depth)
        strongest = self.severity * (self.bins - 1) // 10
        mixed = images.repeat(self.width, 1, 1, 1)
        for step in range(self.depth):
            which, strength, sign = chains[:, 1 + 3 * step : 4 + 3 * step].unbind(1)
            choice = torch.where(step < length, _whole(which, len(self.names)), -1)
            mixed = _applied(mixed, self, choice, 1 + _whole(strength, strongest), sign)
        total = images.float().mul_(share[:, None, None, None])
        for chain, weight in zip(mixed.chunk(self.width), weights.unbind(1), strict=True):
            total.add_(chain.float().mul_((weight * (1 - share))[:, None, None, None]))
        return total.round_().clamp_(0, 255).to(torch.uint8)

    def describe(self) -> list[str]:
        return [
            f"{self.width} chains of 1 to {self.depth} operations at severity {self.severity} of "
            "10, mixed with the image:",
            *(f"  {self.ranges.text(name)}" for name in self.names),
        ]


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """With `probability`, a rectangle of the image's own mean colour (Zhong et al., 2020).

    The mean is neutral whatever the weights' normalisation is.
    """

    probability: float
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 3.3)

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        draws = ops.uniform(seeds, _Stream.ERASING, 5)
        rows = (draws[:, 0] < self.probability).nonzero().flatten()
        side = images.shape[-1]
        area, ratio, top, left = draws[rows, 1:].double().unbind(1)
        height, width = _rectangles(area, ratio, self.scale, self.ratio, side)
        top, left = _whole(top, side - height + 1), _whole(left, side - width + 1)
        erased = ops.erased(images.index_select(0, rows), top, left, height, width)
        return images.index_copy(0, rows, erased)

    def describe(self) -> list[str]:
        return [
            f"with probability {self.probability:g}, {self.scale[0]:g} to {self.scale[1]:.3g} of "
            "the area erased to the mean colour"
        ]
