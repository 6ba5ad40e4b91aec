"""What a trial on images can vary, beside what every trial can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trainables.plugins import Registry, takes
from trainables.training.hparams import WHILE_TRUNK_TRAINS, HParams
from trainables.training.knobs import Knob, Rows, knob

__all__ = ["ADDED_POLICIES", "BINS", "OPERATIONS", "POLICIES", "ImageHParams"]

POLICIES = (
    "none",
    "flip_crop",
    "classic",
    "trivial_augment",
    "rand_augment",
    "auto_augment",
    "augmix",
    "sampled",
)


def _check_policy(name: str, build: Any) -> None:
    takes("it", build, image_size="image_size", orientation_matters="orientation_matters")


ADDED_POLICIES = Registry("policies", "policy", POLICIES, _check_policy)
"""Policies by name; those that packages add are functions of `image_size` and `orientation_matters`."""

OPERATIONS = (
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)
"""The names that a sampled sub-policy may use."""
BINS = 31
"""How many strengths an operation has."""

_SUB_POLICIES = Rows(
    columns=(
        Knob(name="operation", default="Rotate", doc="What is done.", choices=OPERATIONS),
        Knob(name="probability", default=0.5, doc="How often.", low=0.0, high=1.0),
        Knob(name="magnitude", default=9, doc="How strongly.", low=0, high=BINS - 1, integer=True),
    ),
    steps=2,
    most=10,
)


@dataclass(frozen=True, kw_only=True)
class ImageHParams(HParams):
    """One trial's hyperparameters, of images.

    Raises:
        ValueError: on construction, naming every value that is not allowed.
    """

    modality: ClassVar[str] = "image"

    backbone: str = knob("efficientnet_lite0", "Name of the pretrained network.")
    image_size: int | None = knob(
        None,
        "Side of the network's input in pixels; null: the weights' own.",
        low=8,
        high=1024,
        integer=True,
        optional=True,
        space=[96, 128, 160, 224],
    )
    features: str = knob(
        "last",
        "What of the trunk the head reads: its `last` features; the pooled outputs of its `stages`; or these "
        "on a `grid` of 3 x 3 fields, which keeps where in a picture things are.",
        choices=("last", "stages", "grid"),
        space=["grid", "stages", "last"],
    )
    policy: str = knob(
        "none",
        "The augmentation policy.",
        choices=POLICIES,
        added=ADDED_POLICIES,
        space=list(POLICIES),
    )
    ra_ops: int = knob(
        2,
        "Operations in a row.",
        low=1,
        high=8,
        integer=True,
        when={"policy": ("rand_augment",)},
        space=[1, 2, 3],
    )
    ra_magnitude: int = knob(
        9,
        "Magnitude bin of every operation.",
        low=0,
        high=BINS - 1,
        integer=True,
        when={"policy": ("rand_augment",)},
        space={"low": 0, "high": BINS - 1},
    )
    sub_policies: tuple[tuple[tuple[str, float, int], ...], ...] = knob(
        (),
        "The sampled policy: sub-policies of (operation, probability, magnitude bin) in a row.",
        when={"policy": ("sampled",)},
        rows=_SUB_POLICIES,
        space=3,
    )
    mixing: str = knob(
        "none",
        "Mixing of the images of a batch.",
        choices=("none", "mixup", "cutmix", "both"),
        when=WHILE_TRUNK_TRAINS,
        space=["none", "mixup", "cutmix", "both"],
    )
    mixing_alpha: float = knob(
        0.2,
        "Both parameters of the Beta distribution that mixing draws from.",
        low=0.01,
        high=10.0,
        when={**WHILE_TRUNK_TRAINS, "mixing": ("mixup", "cutmix", "both")},
        space={"low": 0.1, "high": 1.0},
    )
    random_erasing: float = knob(
        0.0,
        "Probability that a rectangle of a training image is erased.",
        low=0.0,
        high=1.0,
    )
