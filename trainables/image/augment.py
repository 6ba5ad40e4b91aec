"""What a training image goes through: policies by name, and previews of them.

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

from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from trainables.image import operations as ops
from trainables.image.hparams import ADDED_POLICIES, BINS, OPERATIONS, ImageHParams
from trainables.image.ranges import Ranges
from trainables.image.transforms import (
    AugMix,
    CenterCrop,
    Classic,
    Erasing,
    RandomCrop,
    RandomOperations,
    ResizedCrop,
    Stage,
    SubPolicies,
    SubPolicy,
    center_crop,
)
from trainables.plugins import PluginError
from trainables.training.sub_policies import check_sub_policies

__all__ = [
    "OPERATIONS",
    "Policy",
    "build",
    "operations",
    "preview",
]

VERSION = 1
"""To be raised with every change here, in `transforms` or in `operations` that changes a policy's output."""

_PUBLISHED = ("Identity", *(name for name in OPERATIONS if name != "Invert"))
_AUGMIX = (*ops.GEOMETRY, "Posterize", "Solarize", "AutoContrast", "Equalize")
# Images too small for 32 pixels are shifted as far as the other policies shift.
_WIDE = Ranges(shear=0.99, translate_pixels=32.0, rotate=135.0, enhance=0.99, bits=(8, 2))


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


def _stages(hparams: ImageHParams, size: int, upright: bool) -> list[Stage]:
    """The stages of `hparams.policy`, random erasing aside."""
    flip = not upright

    def ranges(widest: Ranges, chain: int) -> Ranges:
        return widest.upright(chain) if upright else widest

    crop = RandomCrop(size=size, flip=flip)
    usual = Ranges()
    match hparams.policy:
        case "none":
            return [CenterCrop(size=size)]
        case "flip_crop":
            return [ResizedCrop(size=size, flip=flip)]
        case "classic":
            limits = ranges(Ranges(rotate=36.0, shear=0.2), 2)
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
    check_sub_policies(rows, OPERATIONS, BINS)
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
