"""What a search fixes for all its trials, beside their hyperparameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from trainables.training.card import TRAIN
from trainables.training.keeping import LAST_EPOCHS

__all__ = ["Monitor", "Settings", "dtype_of"]


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """The metric that a trial is worth, its direction, and the rule (`keeping`) of which epoch is kept."""

    metric: str = "val_accuracy"
    maximize: bool = True
    rule: str = LAST_EPOCHS

    def better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats `than`; the earlier epoch keeps a tie, and a NaN never wins."""
        if math.isnan(value):
            return False
        return than is None or (value > than if self.maximize else value < than)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a search fixes for all its trials, beside their hyperparameters.

    Attributes:
        monitor: picks the epoch whose model is kept.
        views: views of a policy that a cached head trains on, in turn; None: a fresh one each epoch.
        device: where it trains.
        threads: CPU threads of a trial; part of the result, since sums are split among threads.
        passes: of a frozen trunk that are computed at once at most, each on so many threads: further ones as
            long as cores are idle. No part of the result.
        precision: of the passes that train a trunk: fp32, bf16, fp16 (CUDA alone, with a scaled loss),
            or auto: on a CUDA device bf16 where it has that, else fp16; on a CPU fp32. Evaluation is
            always in fp32, so that a model that is loaded again reproduces its metrics.
        trained_on: the splits that it trains on. Of images that it was trained on a validation score says
            only that the model is the one that was saved.
        folds: in how many parts training and validation images are left out of a head that is solved for; 0:
            it is worth what it has on the validation images.
        repeats: how often these parts are drawn.
        features: what else than its own features is kept of a frozen trunk's passes, values of the knob:
            other trials of the search may read that.
        asked: metrics that every epoch reports, where only the last would or none (`record`).
    """

    monitor: Monitor = Monitor()
    views: int | None = 8
    device: str = "cpu"
    threads: int = 1
    passes: int = 1
    precision: str = "auto"
    trained_on: tuple[str, ...] = (TRAIN,)
    asked: tuple[str, ...] = ()
    folds: int = 0
    repeats: int = 1
    features: tuple[str, ...] = ()


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """What the passes of a trunk that trains are computed in.

    Raises:
        ValueError: for another precision than `Settings` names, or fp16 without a CUDA device.
    """
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision not in known or (precision == "fp16" and device.type != "cuda"):
        raise ValueError(
            f"precision is {precision!r} on {device.type}, but must be auto, fp32, bf16, or on cuda fp16"
        )
    return known[precision]
