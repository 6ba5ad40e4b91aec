"""What a trial leaves behind: the names of its metrics and of its files."""

from __future__ import annotations

__all__ = [
    "APPLIED_FILE",
    "BEST",
    "BY_THE_CLOCK",
    "COSTS",
    "EPOCHS",
    "EPOCHS_FILE",
    "METRICS",
    "MODEL_FOLDER",
    "MORE_SCORES",
    "OWNER_FILE",
    "PREVIEW_FILE",
    "PROGRESS_FILE",
    "RECORD_FOLDER",
    "REPORTED",
    "STATE_FILE",
    "TEST_METRICS",
    "TOLD",
    "VALIDATION_FILE",
]

METRICS = (
    "train_loss",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "learning_rate",
    "epoch_seconds",
    "images_per_second",
)
"""What every epoch reports."""
MORE_SCORES = ("val_balanced_accuracy", "val_auroc", "val_top5_accuracy", "val_calibration_error")
"""What the last epoch reports too, and every one where a search asks for it; if the modality has it."""
COSTS = ("latency_ms", "parameters", "bytes")
"""What a model costs where it is used; reported where a search asks for it (`training.costs`)."""
REPORTED = (*METRICS, *MORE_SCORES, *COSTS)
"""All that an epoch may report."""
BY_THE_CLOCK = ("epoch_seconds", "images_per_second", "latency_ms")
"""Those of them that no repetition has again."""
BEST = "best"
"""Key of the kept epoch's metrics in a result, with what they are expected to be (`training.keeping`)."""
EPOCHS = "epochs"
"""Key, in a result, of a list of the metrics of every epoch that was run, each with its number as `epoch`."""
TOLD = "told"
"""Key, in a result, of what people should hear, in words: that a file was damaged."""

TEST_METRICS = (
    "test_loss",
    "test_accuracy",
    "test_macro_f1",
    *(name.replace("val_", "test_") for name in MORE_SCORES),
)
"""What a finalist's run reports once, of the model that it keeps."""

STATE_FILE = "state.pt"
"""From which a trial goes on; gone when it has ended."""
OWNER_FILE = "owner"
"""Names the process that may write here; whoever goes on with the trial elsewhere replaces it."""
PROGRESS_FILE = "progress"
"""In words, what an epoch that takes long is at; gone when the epoch has ended."""
MODEL_FOLDER = "model"
"""The delta of the best epoch so far."""
RECORD_FOLDER = "record"
"""What is shown of a trial beside its metrics."""
APPLIED_FILE = f"{RECORD_FOLDER}/applied.json"
"""What was really built."""
EPOCHS_FILE = f"{RECORD_FOLDER}/epochs.json"
"""The metrics of every epoch that was run."""
PREVIEW_FILE = f"{RECORD_FOLDER}/policy.png"
"""Training images as the trial's policy draws them."""
VALIDATION_FILE = f"{RECORD_FOLDER}/validation.html"
"""What the model of some epoch says of the validation images."""
