"""What a trial leaves in its folder, read and written alike by the trial and by the service.

The folder holds the metrics of every epoch that was run (`record/epochs.json`), the model of the best of
them, and while the trial runs its state. They are written in this order, so a state never knows of an epoch
that the record lacks, and a model's card names an epoch of the record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from trainables.files.sealed import Damaged, write
from trainables.record import EPOCHS_FILE, MODEL_FOLDER

__all__ = [
    "CARD_FILE",
    "DELTA_FILE",
    "Epochs",
    "checked_model",
    "model_metric",
    "read_epochs",
    "read_right",
    "write_epochs",
]

DELTA_FILE = "delta.safetensors"
CARD_FILE = "model.json"

Epochs: TypeAlias = dict[int, dict[str, float]]
"""The metrics of each epoch that was run, by its number from 1."""


def write_epochs(
    folder: Path, epochs: Epochs, hparams: Mapping[str, Any], right: Sequence[bool] | None = None
) -> None:
    """Writes down the epochs of a trial of these hyperparameters.

    Args:
        folder: the trial's.
        epochs: their metrics.
        hparams: the trial's.
        right: whether the kept model tells each validation image right, where that is known.
    """
    told = {str(epoch): epochs[epoch] for epoch in sorted(epochs)}
    known: dict[str, Any] = {"hparams": dict(hparams), "epochs": told}
    if right is not None:
        known["right"] = "".join("1" if each else "0" for each in right)
    text = json.dumps({**known, "sha256": _digest(known)}, indent=1) + "\n"
    write(folder / EPOCHS_FILE, text.encode())


def read_epochs(folder: Path, hparams: Mapping[str, Any] | None = None) -> Epochs:
    """The epochs of the trial in `folder`; none where it wrote none.

    Raises:
        Damaged: where the file is not what was written, or is of a trial with other `hparams`.
    """
    path = folder / EPOCHS_FILE
    try:
        known = json.loads(path.read_bytes())
        sound = known.pop("sha256") == _digest(known)
        epochs = {int(epoch): dict(metrics) for epoch, metrics in known["epochs"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{path} is not what was written: {error}") from error
    if not sound:
        raise Damaged(f"{path} is not what was written: its digest is another")
    told, own = known["hparams"], json.loads(json.dumps(hparams or {}))  # a tuple has become a list
    if any(own[name] != told[name] for name in own.keys() & told.keys()):
        raise Damaged(f"{path} is of a trial with other hyperparameters")
    return epochs


def read_right(folder: Path) -> list[bool] | None:
    """Whether the kept model tells each validation image right; None where the trial did not write that down.

    Raises:
        Damaged: where the file is not what was written.
    """
    read_epochs(folder)
    try:
        told = json.loads((folder / EPOCHS_FILE).read_bytes()).get("right")
    except FileNotFoundError:
        return None
    return None if told is None else [each == "1" for each in told]


def model_metric(folder: Path) -> dict[str, float] | None:
    """The epoch and the metrics that the card of the trial's model names; None where it has no model.

    Raises:
        Damaged: where the card cannot be read, or the delta is not the one that it was written with.
    """
    model = folder / MODEL_FOLDER
    return checked_model(model) if model.is_dir() else None


def checked_model(model: Path) -> dict[str, float]:
    """The epoch and the metrics that the card of the model in a folder names.

    Raises:
        Damaged: as `model_metric`.
    """
    try:
        card = json.loads((model / CARD_FILE).read_bytes())
        metric = {str(name): float(value) for name, value in card["metric"].items()}
        with (model / DELTA_FILE).open("rb") as delta:
            sound = hashlib.file_digest(delta, "sha256").hexdigest() == card["delta_sha256"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{model} is no whole model: {error}") from error
    if not sound:
        raise Damaged(f"{model / DELTA_FILE} is not the one that {CARD_FILE} was written with")
    return metric


def _digest(known: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
