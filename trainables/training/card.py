"""The card of a saved model: what its tensors belong to, in plain values that are checked on reading."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trainables.modalities import modality
from trainables.modality import Backbone
from trainables.training.hparams import HParams
from trainables.training.splits import SPLITS

__all__ = ["TRAIN", "Card", "Member", "ModelError", "make_card"]


TRAIN = "train"
"""The split that a trial is trained on."""


_USUAL: Mapping[str, Any] = {
    "trained_on": [TRAIN],
    "members": [],
    "made_with": {},
    "factor": 1.0,
    "calibration": {},
}
"""What a card says where it does not say otherwise."""


class ModelError(ValueError):
    """A saved model cannot be used; the message says which file and why."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a saved model is: enough, with the delta, to build it again.

    Attributes:
        backbone, weights: as the modality's `backbone` takes them; a weights file by its absolute path.
        weights_hash: of the weights that the delta differs from.
        preprocessing: what the model was trained with, a value of the modality's.
        head: the kind of head.
        classes: the names of the classes in the order of the logits.
        hparams: the trial's.
        metric: what the model reached, by name, such as `{"val_accuracy": 0.93}`. Where it was trained on
            validation images too, a `val_` score says only which model it is.
        trained_on: the splits that it was trained on.
        members: what it averages, where it is an ensemble; all but the metric is then that of the first.
        made_with: versions of code and libraries, the kind of machine, and the digest of the `data`; empty
            where it was made before that was written down.
        factor: of an ensemble, what the logarithms of its averaged probabilities are multiplied with; what a
            single model's logits are multiplied with is in its weights.
        calibration: of an export, its `temperature`, of what it was found, and what it does to the
            expected calibration error; and under `conformal` the `threshold` of sets of classes.
    """

    backbone: str
    weights: str
    weights_hash: str
    preprocessing: Any
    head: str
    classes: tuple[str, ...]
    hparams: HParams
    metric: Mapping[str, float]
    trained_on: tuple[str, ...] = (TRAIN,)
    members: tuple[Member, ...] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)
    factor: float = 1.0
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ModelError("; ".join(problems))

    def _problems(self) -> Iterable[str]:
        for name in ("backbone", "weights", "weights_hash", "head"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or "\0" in value:
                yield f"{name} is {value!r}, but must be text"
        for name in ("backbone", "head"):
            if getattr(self, name) != getattr(self.hparams, name):
                yield f"{name} is {getattr(self, name)!r}, but hparams says otherwise"
        names = self.classes
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            yield "classes must be a list of names"
        elif len(names) < 2 or len(set(names)) != len(names):
            yield "classes must be at least two names, all different"
        if not isinstance(self.metric, Mapping) or not all(
            isinstance(name, str) and isinstance(value, int | float) and not isinstance(value, bool)
            for name, value in self.metric.items()
        ):
            yield "metric must map names to numbers"
        if not self.trained_on or not all(split in SPLITS for split in self.trained_on):
            yield f"trained_on is {list(self.trained_on)}, but must name some of {', '.join(SPLITS)}"
        if not all(isinstance(value, str) for value in self.made_with.values()):
            yield "made_with must map names to text"
        if not _is_positive(self.factor):
            yield f"the factor is {self.factor!r}, but must be a positive number"
        for member in self.members:
            yield from member.problems(self)

    @property
    def has_seen_validation(self) -> bool:
        """Whether it, or one of its members, was trained on the validation images."""
        members = (member.card.has_seen_validation for member in self.members)
        return "validation" in self.trained_on or any(members)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `from_dict`."""
        told = {
            "modality": self.hparams.modality,
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "preprocessing": self.preprocessing.to_dict(),
            "classes": list(self.classes),
            "hparams": self.hparams.to_dict(),
            "metric": dict(self.metric),
            "trained_on": list(self.trained_on),
            "members": [member.to_dict() for member in self.members],
            "made_with": dict(self.made_with),
            "calibration": dict(self.calibration),
        }
        return {name: value for name, value in told.items() if value != _USUAL.get(name)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """The card that `to_dict` described.

        Raises:
            ModelError: for anything missing, unknown, or of the wrong type.
        """
        values = {**_USUAL, **_with_modality(values)}
        known = {"modality", *(each.name for each in fields(cls))}
        if set(values) != known:
            raise ModelError(f"it has {sorted(values)}, but must have exactly {sorted(known)}")
        shapes = {"preprocessing": dict, "hparams": dict, "classes": list}
        shapes |= {"trained_on": list, "members": list, "made_with": dict, "calibration": dict}
        for name, shape in shapes.items():
            if not isinstance(values[name], shape):
                raise ModelError(f"{name} must be a {'list' if shape is list else 'mapping'}")
        try:
            kind = modality(values.pop("modality"))
            preprocessing = kind.preprocessing(values["preprocessing"])
            hparams = kind.hparams.from_dict(values["hparams"])
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ModelError(str(error)) from error
        return cls(
            **{
                **values,
                "preprocessing": preprocessing,
                "hparams": hparams,
                "classes": tuple(values["classes"]),
                "trained_on": tuple(values["trained_on"]),
                "members": tuple(Member.from_dict(each) for each in values["members"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Member:
    """A model that is a part of an ensemble.

    Attributes:
        name: what a person calls it, such as `trial 7`.
        share: of its probabilities in the average; those of all members are 1 together.
        factor: what its logits are multiplied with, one over its temperature.
        trunk: place of its trunk in the ensemble; members whose trunks did not train have one in common.
        card: its own.
    """

    name: str
    share: float
    factor: float
    trunk: int
    card: Card

    def problems(self, whole: Card) -> Iterable[str]:
        """Why it cannot be a part of `whole`."""
        if self.card.members:
            yield f"{self.name} is an ensemble itself"
        if self.card.classes != whole.classes or self.card.preprocessing != whole.preprocessing:
            yield f"{self.name} has other classes, or takes other inputs, than the ensemble"
        for name in ("share", "factor"):
            value = getattr(self, name)
            if not _is_positive(value):
                yield f"the {name} of {self.name} is {value!r}, but must be a positive number"
        if not isinstance(self.trunk, int) or not 0 <= self.trunk < len(whole.members):
            yield f"the trunk of {self.name} is {self.trunk!r}, but must be a place among its trunks"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `from_dict`."""
        return {**vars(self), "card": self.card.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> Member:
        """The member that `to_dict` described.

        Raises:
            ModelError: for anything missing, unknown, or of the wrong type.
        """
        known = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or set(values) != known or not isinstance(values["card"], dict):
            raise ModelError(f"a member must have exactly {sorted(known)}, its card a mapping")
        return cls(**{**values, "name": str(values["name"]), "card": Card.from_dict(values["card"])})


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _with_modality(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a card that may have been made when there were only images.

    Raises:
        ModelError: where the size that it gives twice differs.
    """
    whole = {"modality": "image", **values}
    if "image_size" in whole:
        size, preprocessing = whole.pop("image_size"), values.get("preprocessing")
        inner = preprocessing.get("image_size") if isinstance(preprocessing, Mapping) else size
        if size != inner:
            raise ModelError(f"image_size is {size!r}, but preprocessing says {inner!r}")
    return whole


def make_card(
    backbone: Backbone,
    hparams: HParams,
    classes: Sequence[str],
    metric: Mapping[str, float],
    *,
    trained_on: tuple[str, ...] = (TRAIN,),
    made_with: Mapping[str, str] | None = None,
) -> Card:
    """The card of a model of `hparams` on `backbone`.

    Raises:
        ModelError: where they do not fit each other.
    """
    from_file = backbone.weights not in ("pretrained", "none")
    return Card(
        backbone=backbone.name,
        # Whoever loads the model may be in another directory.
        weights=str(Path(backbone.weights).absolute()) if from_file else backbone.weights,
        weights_hash=backbone.weights_hash,
        preprocessing=backbone.preprocessing,
        head=hparams.head,
        classes=tuple(classes),
        hparams=hparams,
        metric=dict(metric),
        trained_on=trained_on,
        made_with=dict(made_with or {}),
    )
