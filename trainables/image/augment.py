"""What a training image goes through: policies by name, mixing of a batch, and previews.

A policy maps frames (uint8 [B, 3, S, S]) to a network's inputs (uint8 [B, 3, s, s]). Each image's
random numbers come from its own seed, see `operations`. Every policy but `none` ends in a crop at a
random place and, unless orientation matters, a horizontal flip of every other image, as the
published recipes do. Geometry reads the nearest pixel and leaves black behind, as torchvision does;
`classic` and `flip_crop` resample bilinearly.

`orientation_matters` keeps labels that a mirror or a turn would change: nothing is flipped, the
operations in a row (or, in `augmix`, in a chain) turn no line of an image by more than 15 degrees
together, whether by Rotate or by a shear, and an operation shifts by at most a fifth of the side.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from trainables.image import operations as ops
from trainables.image.hparams import ADDED_POLICIES, BINS, OPERATIONS, ImageHParams
from trainables.plugins import PluginError

__all__ = [
    "OPERATIONS",
    "Mixing",
    "Policy",
    "build",
    "build_mixing",
    "center_crop",
    "operations",
    "preview",
]

VERSION = 1
"""To be raised with every change of this module or `operations` that changes a policy's output."""

_PUBLISHED = ("Identity", *(name for name in OPERATIONS if name != "Invert"))
_AUGMIX = (*ops.GEOMETRY, "Posterize", "Solarize", "AutoContrast", "Equalize")
# Images too small for 32 pixels are shifted as far as the other policies shift.
_WIDE = ops.Ranges(shear=0.99, translate_pixels=32.0, rotate=135.0, enhance=0.99, bits=(8, 2))

SubPolicy = tuple[tuple[str, float, int], ...]


def operations(orientation_matters: bool) -> tuple[str, ...]:
    """The names of `OPERATIONS` that a policy may use.

    All of them in either case: where orientation matters, it is their ranges that are narrower.
    """
    return OPERATIONS


_AUTO_AUGMENT: tuple[SubPolicy, ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)
"""The ImageNet policy of AutoAugment (Cubuk et al., 2019): operation, probability, bin 0 to 9."""


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
    table = ops.magnitudes(stage.ranges, names, stage.bins, images.shape[-1]).to(device)
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
    ranges: ops.Ranges
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
        bins = "a drawn bin" if self.bin is None else f"bin {self.bin}"
        head = f"{self.count} of {len(self.names)} operations at {bins} of 0 to {self.bins - 1}:"
        return [head, *(f"  {self.ranges.text(name)}" for name in self.names)]


@dataclass(frozen=True, kw_only=True)
class SubPolicies:
    """One of `rows`, drawn evenly, and of its operations each with its probability."""

    rows: tuple[SubPolicy, ...]
    ranges: ops.Ranges
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
    ranges: ops.Ranges
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


def _stages(hparams: ImageHParams, size: int, upright: bool) -> list[Stage]:
    """The stages of `hparams.policy`, random erasing aside."""
    flip = not upright

    def ranges(widest: ops.Ranges, chain: int) -> ops.Ranges:
        return widest.upright(chain) if upright else widest

    crop = RandomCrop(size=size, flip=flip)
    usual = ops.Ranges()
    match hparams.policy:
        case "none":
            return [CenterCrop(size=size)]
        case "flip_crop":
            return [ResizedCrop(size=size, flip=flip)]
        case "classic":
            limits = ranges(ops.Ranges(rotate=36.0, shear=0.2), 2)
            return [Classic(size=size, flip=flip, degrees=limits.rotate, shear=limits.shear)]
        case "trivial_augment":
            return [
                RandomOperations(names=_PUBLISHED, ranges=ranges(_WIDE, 1), count=1, bin=None),
                crop,
            ]
        case "rand_augment":
            count, level = hparams.ra_ops, hparams.ra_magnitude
            limits = ranges(usual, count)
            return [RandomOperations(names=_PUBLISHED, ranges=limits, count=count, bin=level), crop]
        case "auto_augment":
            return [SubPolicies(rows=_AUTO_AUGMENT, ranges=ranges(usual, 2), bins=10), crop]
        case "augmix":
            limits = ranges(replace(usual, translate=1 / 3, bits=(4, 0)), 3)
            return [AugMix(names=_AUGMIX, ranges=limits), crop]
        case "sampled":
            rows = _checked(hparams.sub_policies)
            return [SubPolicies(rows=rows, ranges=ranges(usual, max(map(len, rows))), bins=BINS), crop]
    return list(_added(hparams.policy, size, upright))


def _added(name: str, size: int, upright: bool) -> tuple[Stage, ...]:
    """The stages of a policy that an installed package adds, after a trial of them.

    Raises:
        UnknownName: where there is none.
        PluginError: where it is not what a policy must be.
    """
    build = ADDED_POLICIES.load(name)
    try:
        stages = tuple(build(image_size=size, orientation_matters=upright))
        _try(stages, size)
    except Exception as error:  # a stranger's code raises whatever it likes
        raise PluginError(
            f"the policy {name!r} of {ADDED_POLICIES.origin(name)} cannot be used: "
            f"{type(error).__name__}: {error}; mend the package or uninstall it"
        ) from error
    return stages


def _try(stages: tuple[Stage, ...], size: int) -> None:
    """Sees that stages give inputs, the same for a frame and a seed in whatever batch.

    Raises:
        ValueError: where they do not.
    """
    if not stages:
        raise ValueError("it has no stage, but must have at least one, such as a crop")
    for stage in stages:
        if " at 0x" in repr(stage):
            raise ValueError(f"repr({stage!r}) must tell what it does: make it a frozen dataclass")
        if not all(isinstance(line, str) for line in stage.describe()):
            raise ValueError(f"{stage!r}.describe() must give lines of text")
    side = size + size // 7
    numbers = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=numbers)
    seeds = torch.tensor([1, 2, 3])
    policy = Policy("", size, stages)
    together, alone = policy(frames, seeds), policy(frames[1:2], seeds[1:2])
    if together.dtype != torch.uint8 or together.shape != (3, 3, size, size):
        raise ValueError(
            f"it gives {together.dtype} {list(together.shape)}, but must give uint8 {[3, 3, size, size]}"
        )
    if not torch.equal(together[1:2], alone):
        raise ValueError("a frame and a seed give another input in another batch: draw from the seeds alone")


def _checked(rows: tuple[SubPolicy, ...]) -> tuple[SubPolicy, ...]:
    """`rows` in plain types, unless there is none or one is not allowed: that is a `ValueError`."""
    problems = [] if rows else ["there is none, but policy `sampled` needs at least one"]
    for place, row in enumerate(rows):
        if not row:
            problems.append(f"[{place}] is empty, but must have at least one operation")
        for name, probability, level in row:
            if name not in OPERATIONS:
                problems.append(
                    f"[{place}] has operation {name!r}, but must have one of " + ", ".join(OPERATIONS)
                )
            if not 0 <= probability <= 1:
                problems.append(f"[{place}] has probability {probability}, but must be in 0..1")
            if level not in range(BINS):
                problems.append(f"[{place}] has bin {level}, but must be in 0..{BINS - 1}")
    if problems:
        raise ValueError("sub_policies: " + "; ".join(problems))
    return tuple(tuple((name, float(chance), int(level)) for name, chance, level in row) for row in rows)


@dataclass(frozen=True)
class Policy:
    """A policy as built: call it with frames and one seed for each.

    Attributes:
        name: `HParams.policy`.
        image_size: side of what it returns.
        stages: what it does, in order.
        origin: the package that adds it, with its version; empty for our own.
    """

    name: str
    image_size: int
    stages: tuple[Stage, ...]
    origin: str = ""

    def __call__(self, frames: Tensor, seeds: Tensor) -> Tensor:
        """Inputs, uint8 [B, 3, s, s], of frames uint8 [B, 3, S, S] and seeds int64 [B].

        Raises:
            ValueError: if the shapes or types are others, or S is less than s.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}, but must be uint8 [B, 3, S, S]"
            )
        if frames.shape[2] != frames.shape[3] or frames.shape[3] < self.image_size:
            raise ValueError(
                f"frames are {frames.shape[2]}x{frames.shape[3]}, but must be square "
                f"and at least {self.image_size} px"
            )
        if seeds.dtype != torch.int64 or seeds.shape != frames.shape[:1]:
            raise ValueError(
                f"seeds are {seeds.dtype} {list(seeds.shape)}, but must be int64 [{len(frames)}]"
            )
        images, seeds = frames.contiguous(), seeds.to(frames.device)
        if not len(images):
            return center_crop(images, self.image_size)
        for stage in self.stages:
            images = stage(images, seeds)
        return images

    @property
    def is_identity(self) -> bool:
        """Whether it is the centre crop alone, whatever the seed."""
        return all(isinstance(stage, CenterCrop) for stage in self.stages)

    @property
    def key(self) -> str:
        """Text that changes with everything that changes what a frame and a seed become."""
        ours = f"augment {VERSION}: " + "; ".join(map(repr, self.stages))
        return f"{self.origin}, {ours}" if self.origin else ours

    def describe(self) -> list[str]:
        """The stages as built, with their ranges, for a person."""
        return [line for stage in self.stages for line in stage.describe()]


def build(hparams: ImageHParams, *, image_size: int, orientation_matters: bool = False) -> Policy:
    """The policy that `hparams` asks for, on inputs of side `image_size`.

    Raises:
        ValueError: for a sampled policy whose sub-policies are missing or not allowed.
    """
    stages = _stages(hparams, image_size, orientation_matters)
    if hparams.random_erasing > 0:
        stages.append(Erasing(probability=hparams.random_erasing))
    added = hparams.policy in ADDED_POLICIES.added
    origin = ADDED_POLICIES.origin(hparams.policy) if added else ""
    return Policy(hparams.policy, image_size, tuple(stages), origin)


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


def preview(policy: Policy, frames: Tensor, seed: int, rows: int, draws: int = 7) -> Image.Image:
    """A grid with a row for each of the first `rows` frames: its centre crop, then `draws` draws.

    Args:
        frames: uint8 [N, 3, S, S].
        seed: root of the draws' seeds.

    Raises:
        ValueError: if there is no frame to show.
    """
    shown = frames[:rows].cpu()
    if not len(shown):
        raise ValueError(f"rows is {rows} of {len(frames)} frames, but there must be one to show")
    places = torch.arange(len(shown))
    columns = [center_crop(shown, policy.image_size)]
    columns += [policy(shown, ops.derived_seeds(seed, draw, places)) for draw in range(draws)]
    cell, gap = policy.image_size, 2
    pitch = cell + gap
    grid = torch.full((len(shown) * pitch - gap, len(columns) * pitch - gap, 3), 255).byte()
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            y, x = row * pitch, column * pitch
            grid[y : y + cell, x : x + cell] = image.permute(1, 2, 0)
    return Image.fromarray(grid.numpy())
