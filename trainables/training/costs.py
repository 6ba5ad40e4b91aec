"""What a model costs where it is used: time for one example, parameters, bytes."""

from __future__ import annotations

import time
from collections.abc import Collection

import torch
from torch import Tensor

from trainables.training.model import TransferModel

__all__ = ["costs"]

_WARM = 3
_PASSES = 30
_SECONDS = 1.0


def costs(model: TransferModel, blank: Tensor, asked: Collection[str]) -> dict[str, float]:
    """Those of the costs (`record.COSTS`) that are asked for.

    Args:
        model: on the device that it is used on.
        blank: one input, [1, ...], on that device.
        asked: names of costs.
    """
    found: dict[str, float] = {}
    if "latency_ms" in asked:
        found["latency_ms"] = 1000 * _seconds(model, blank)
    if "parameters" in asked:
        found["parameters"] = float(sum(p.numel() for p in model.parameters()))
    if "bytes" in asked:
        found["bytes"] = float(sum(t.numel() * t.element_size() for t in model.state_dict().values()))
    return found


def _seconds(model: TransferModel, blank: Tensor) -> float:
    """Of the quickest pass over one input: what else the machine does only adds to that."""
    was_training, began = model.training, time.perf_counter()
    model.eval()
    quickest = float("inf")
    with torch.no_grad():
        for place in range(_WARM + _PASSES):
            start = time.perf_counter()
            model(blank)
            if blank.is_cuda:
                torch.cuda.synchronize(blank.device)
            now = time.perf_counter()
            if place >= _WARM:
                quickest = min(quickest, now - start)
                if now - began > _SECONDS:
                    break
    model.train(was_training)
    return quickest
