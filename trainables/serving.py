"""The loader module of the models that a search logs in MLflow."""

from __future__ import annotations

from pathlib import Path

from trainables.image.classifier import Classifier
from trainables.modalities import modality
from trainables.modality import Predictor
from trainables.training.delta import load_delta

__all__ = ["Classifier"]


def _load_pyfunc(path: str) -> Predictor:
    """What `mlflow.pyfunc.load_model` calls with the folder of the delta."""
    loaded = load_delta(Path(path))
    return modality(loaded.card.hparams.modality).predictor(loaded)
