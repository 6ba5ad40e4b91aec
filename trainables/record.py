"""What a trial leaves behind: the names of its metrics and of its files."""

from __future__ import annotations

__all__ = ["APPLIED_FILE", "METRICS", "MODEL_FOLDER", "OWNER_FILE", "PREVIEW_FILE", "STATE_FILE"]

METRICS = (
    "train_loss",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "learning_rate",
    "epoch_seconds",
    "images_per_second",
)
"""What an epoch reports."""

STATE_FILE = "state.pt"
"""From which a trial goes on; gone when it has ended."""
OWNER_FILE = "owner"
"""Names the process that may write here; whoever goes on with the trial elsewhere replaces it."""
MODEL_FOLDER = "model"
"""The delta of the best epoch so far."""
APPLIED_FILE = "applied.json"
"""What was really built."""
PREVIEW_FILE = "policy.png"
"""Training images as the trial's policy draws them."""
