"""What the winner's model says of the validation images: class by class, and where it is most wrong.

The model is the winning trial's, or of a finalist its run on the first seed: what was made of it afterwards
may have been trained on these images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from search.errors import BadInput
from search.results.rows import TrialRow, trial_folder
from search.run.planning import load_data
from search.search import Search
from trainables.errors import DataError
from trainables.files.sealed import Damaged, unsealed
from trainables.modality import Data, Modality, Predictor
from trainables.record import MODEL_FOLDER, PREVIEW_FILE
from trainables.training.card import ModelError
from trainables.training.delta import LoadedModel, load_delta

__all__ = ["Evaluation", "Mistake", "evaluated", "policy_picture", "split_logits", "validation_logits"]

_BATCH = 64
_WORST = 12


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An example that the model takes for another class.

    Attributes:
        name: of the example.
        true, told: its class, and what the model says.
        probability: of what it says.
        picture: a JPEG; None where there is nothing to look at.
    """

    name: str
    true: str
    told: str
    probability: float
    picture: bytes | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model says of the validation images.

    Attributes:
        classes: their names.
        confusion: how many images of a class, a row, are taken for each class.
        worst: the mistakes that the model is surest of.
    """

    classes: Sequence[str]
    confusion: Sequence[Sequence[int]]
    worst: Sequence[Mistake]

    @property
    def scores(self) -> list[tuple[str, int, float, float, float]]:
        """Of each class its name, images, recall, precision and F1."""
        told = [sum(column) for column in zip(*self.confusion, strict=True)]
        rows = []
        for place, (name, row) in enumerate(zip(self.classes, self.confusion, strict=True)):
            right, true = row[place], sum(row)
            both = true + told[place]
            rows.append(
                (name, true, right / max(1, true), right / max(1, told[place]), 2 * right / max(1, both))
            )
        return rows

    @property
    def confused(self) -> list[tuple[str, str, int]]:
        """The pairs of a class and what it is taken for, the commonest first."""
        pairs = [
            (true, told, count)
            for true, row in zip(self.classes, self.confusion, strict=True)
            for told, count in zip(self.classes, row, strict=True)
            if true != told and count
        ]
        return sorted(pairs, key=lambda pair: -pair[2])


def evaluated(search: Search, row: TrialRow) -> Evaluation:
    """Measures the model of a row of `best_rows`, image by image.

    Raises:
        BadInput: if its model or the data is gone, with the reason.
    """
    try:
        loaded = load_delta(trial_folder(search, row) / MODEL_FOLDER)
        data = load_data(search.spec)
        if tuple(data.classes) != tuple(loaded.card.classes):
            raise BadInput("the data has other classes now than the model")
        return _measured(search.spec.modality, loaded, data)
    except (ModelError, DataError) as error:
        raise BadInput(str(error)) from error


def validation_logits(predictor: Predictor, data: Data) -> Tensor:
    """Logits [N, C] of the validation images."""
    return split_logits(predictor, data, "validation")


def split_logits(predictor: Predictor, data: Data, split: str) -> Tensor:
    """Logits [N, C] of the images of a split."""
    examples, indices = data.examples(predictor.card.preprocessing), data.splits[split]
    with torch.no_grad():
        return torch.cat([predictor.logits(examples[batch]) for batch in indices.split(_BATCH)])


def _measured(kind: Modality[Any], loaded: LoadedModel, data: Data) -> Evaluation:
    """What a model says of the validation split."""
    examples, indices = data.examples(loaded.card.preprocessing), data.splits["validation"]
    shares = validation_logits(kind.predictor(loaded), data).float().softmax(1)
    labels = data.labels[indices]
    count = len(data.classes)
    pairs = torch.bincount(labels * count + shares.argmax(1), minlength=count**2).view(count, count)
    worst = _worst(shares, labels)
    pictures = [kind.picture(example) for example in examples[indices[worst]]] if len(worst) else []
    return Evaluation(
        classes=data.classes,
        confusion=pairs.tolist(),
        worst=[
            Mistake(
                name=data.names[int(indices[place])],
                true=data.classes[int(labels[place])],
                told=data.classes[int(shares[place].argmax())],
                probability=float(shares[place].max()),
                picture=picture,
            )
            for place, picture in zip(worst.tolist(), pictures, strict=True)
        ],
    )


def _worst(shares: Tensor, labels: Tensor) -> Tensor:
    """The places of the mistakes that the model is surest of, the surest first."""
    sureness, told = shares.max(1)
    wrong = torch.nonzero(told != labels).squeeze(1)
    return wrong[sureness[wrong].argsort(descending=True)][:_WORST]


def policy_picture(search: Search, row: TrialRow) -> bytes | None:
    """A PNG of what the row's policy draws of training examples; None where it draws nothing."""
    try:
        return unsealed(trial_folder(search, row) / PREVIEW_FILE).read()
    except (OSError, Damaged):
        return None
