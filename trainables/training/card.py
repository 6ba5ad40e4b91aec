"""The card of a saved model: what its tensors belong to, in plain values that are checked on reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainables.modalities import modality
from trainables.modality import Backbone
from trainables.training.hparams import HParams

__all__ = ["Card", "ModelError", "make_card"]


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
        metric: what the model reached, by name, such as `{"val_accuracy": 0.93}`.
    """

    backbone: str
    weights: str
    weights_hash: str
    preprocessing: Any
    head: str
    classes: tuple[str, ...]
    hparams: HParams
    metric: Mapping[str, float]

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `from_dict`."""
        return {
            "modality": self.hparams.modality,
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "preprocessing": self.preprocessing.to_dict(),
            "classes": list(self.classes),
            "hparams": self.hparams.to_dict(),
            "metric": dict(self.metric),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """The card that `to_dict` described.

        Raises:
            ModelError: for anything missing, unknown, or of the wrong type.
        """
        values = _with_modality(values)
        known = {"modality", *(each.name for each in fields(cls))}
        if set(values) != known:
            raise ModelError(f"it has {sorted(values)}, but must have exactly {sorted(known)}")
        for name, shape in (("preprocessing", dict), ("hparams", dict), ("classes", list)):
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
            }
        )


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
    backbone: Backbone, hparams: HParams, classes: Sequence[str], metric: Mapping[str, float]
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
    )
