"""A model on its way out, calibrated: its temperature, its calibration error, its sets of classes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from search.errors import BadInput
from search.results.evaluation import split_logits
from search.results.rows import TrialRow, trial_folder
from search.search import Search
from trainables.modality import Data, Modality
from trainables.record import MODEL_FOLDER
from trainables.training.calibration import Calibration, calibrated, threshold
from trainables.training.card import ModelError
from trainables.training.delta import LoadedModel, Part, load_delta, save_ensemble, scaled
from trainables.training.metrics import calibration_error

__all__ = ["calibrated_model"]


def calibrated_model(search: Search, row: TrialRow, loaded: LoadedModel, data: Data) -> LoadedModel:
    """The model with probabilities that mean what they say, and a card that says how far they do.

    The temperature is found on the validation images. A refit has seen these: it has the temperature that
    its trial's model, which has not, needs on them; or where its head is solved for, what left-out scores
    gave it.
    Labels stay what they are. Where that trial's model is gone, so is the temperature.

    Args:
        search: whose model it is.
        row: of the model.
        loaded: the model, which is changed.
        data: that it was trained on.

    Raises:
        BadInput: if sets of classes are asked for and that model is gone.
    """
    kind, labels = search.spec.modality, data.labels[data.splits["validation"]]
    if not loaded.card.has_seen_validation:
        logits = split_logits(kind.predictor(loaded), data, "validation")
        found, of = calibrated(logits, labels), f"{len(labels):,} validation {kind.item}s"
        errors = (found.before, found.after, f"{of}, each by a temperature of the others")
    else:
        try:
            own = _unseen(search, row, loaded)
        except ModelError as error:  # nothing is left to find a temperature with
            if search.spec.search.conformal:
                raise BadInput(
                    f"sets of classes are found with the model of trial {row.trial}, which cannot be opened: "
                    f"{error}; export without them: --set search.conformal=null"
                ) from error
            return loaded
        logits = split_logits(kind.predictor(own), data, "validation")
        found, of = calibrated(logits, labels), f"{len(labels):,} validation {kind.item}s, before the refit"
        hparams = loaded.card.hparams
        if hparams.strategy == "probe" and hparams.head_is_solved and not loaded.card.members:
            found = Calibration(factor=1.0, before=found.before, after=found.before)
            of = f"scores of training {kind.item}s, left out of the head that was solved for"
        errors = _on_test(kind, loaded, data, found.factor) or (found.before, found.after, of)
    told: dict[str, Any] = {
        "temperature": 1 / found.factor,
        "found_on": of,
        "error_before": errors[0],
        "error_after": errors[1],
        "measured_on": errors[2],
    }
    if coverage := search.spec.search.conformal:
        shares = (found.factor * logits.double()).softmax(1)
        least = threshold(shares, labels, coverage)
        told["conformal"] = {"coverage": coverage, "threshold": least, "images": len(labels)}
    changed = scaled(loaded, found.factor)
    metric = {**loaded.card.metric, **_changed(kind, found.factor * logits, labels, loaded)}
    return LoadedModel(changed.model, replace(changed.card, metric=metric, calibration=told))


def _unseen(search: Search, row: TrialRow, loaded: LoadedModel) -> LoadedModel:
    """What a refitted model was before: its trial's model, or the ensemble of its members' trials.

    Raises:
        ModelError: where one of these is gone.
    """
    if not loaded.card.members:
        return load_delta(trial_folder(search, row) / MODEL_FOLDER)
    parts = [
        Part(
            folder=search.home.trial(trial) / MODEL_FOLDER,
            name=each.name,
            share=each.share,
            factor=each.factor,
        )
        for trial, each in zip(row.shares, loaded.card.members, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="ensemble-") as folder:
        save_ensemble(Path(folder), parts, {})
        return load_delta(Path(folder))


def _on_test(
    kind: Modality[Any], loaded: LoadedModel, data: Data, factor: float
) -> tuple[float, float, str] | None:
    """The calibration errors on the test images, before and after; None where there are none."""
    labels = data.labels[data.splits["test"]]
    if not len(labels):
        return None
    logits = split_logits(kind.predictor(loaded), data, "test").double()
    before, after = (calibration_error((each * logits).softmax(1), labels) for each in (1.0, factor))
    return before, after, f"{len(labels):,} test {kind.item}s"


def _changed(kind: Modality[Any], logits: Tensor, labels: Tensor, loaded: LoadedModel) -> dict[str, float]:
    """The recorded scores that a temperature changes; of images that trained the model they are none."""
    if loaded.card.has_seen_validation:
        return {}
    scores = kind.scores(logits.float(), labels).named("val")
    known = loaded.card.metric
    return {
        name: scores[name]
        for name in ("val_loss", "val_calibration_error")
        if name in known and name in scores
    }
