"""What the winner's model says of the validation images: class by class, and where it is most wrong.

The model is the winning trial's, or of a finalist its run on the first seed: what was made of it afterwards
may have been trained on these images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from search.errors import BadInput
from search.results.rows import TrialRow, trial_folder
from search.run.planning import load_data
from search.search import Search
from trainables.errors import DataError
from trainables.files.sealed import Damaged, unsealed
from trainables.modality import Data, Predictor
from trainables.record import MODEL_FOLDER, PREVIEW_FILE
from trainables.training.card import ModelError
from trainables.training.delta import load_delta
from trainables.training.evaluation import Evaluation, evaluation

__all__ = ["evaluated", "policy_picture", "split_logits", "validation_logits"]

_BATCH = 64
_WORST = 12


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
        kind = search.spec.modality
        logits = validation_logits(kind.predictor(loaded), data)
        preprocessing = loaded.card.preprocessing
        return evaluation(kind, data, preprocessing, "validation", logits, worst=_WORST)
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


def policy_picture(search: Search, row: TrialRow) -> bytes | None:
    """A PNG of what the row's policy draws of training examples; None where it draws nothing."""
    try:
        return unsealed(trial_folder(search, row) / PREVIEW_FILE).read()
    except (OSError, Damaged):
        return None
