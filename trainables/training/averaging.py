"""The moving average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainables.training.hparams import HParams
from trainables.training.model import TransferModel

__all__ = ["EMA", "build_ema"]


def build_ema(model: TransferModel, hparams: HParams) -> EMA | None:
    """The average of `hparams`, starting from the model as it is; `None` without one."""
    return None if hparams.ema is None else EMA(model, hparams.ema)


class EMA:
    """An exponential moving average of what trains and of the buffers beside it.

    After its n-th step the decay is at most n / (n + 9), so that the average leaves the start soon
    even in a short training (as TensorFlow's `ExponentialMovingAverage` with `num_updates`). What
    is unfrozen later joins with its first update.
    """

    def __init__(self, model: TransferModel, decay: float) -> None:
        self._model, self._decay = model, decay
        self._updates = 0
        self._average: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in self._moving().items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """To call after each step of the optimizer."""
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 9))
        averages, tensors = [], []
        for name, tensor in self._moving().items():
            if name not in self._average:
                self._average[name] = tensor.detach().clone()
            elif tensor.is_floating_point():
                averages.append(self._average[name])
                tensors.append(tensor)
            else:
                self._average[name].copy_(tensor)
        if averages:
            torch._foreach_lerp_(averages, tensors, 1 - decay)  # on a GPU a few kernels for all of them

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged tensors, to evaluate and save; then as it was."""
        live = self._model.state_dict()
        kept = {name: live[name].clone() for name in self._average}
        try:
            self._copy(self._average, live)
            yield
        finally:
            self._copy(kept, live)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on exactly."""
        return {"updates": self._updates, "average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        live = self._model.state_dict()
        self._updates = int(state["updates"])
        self._average = {
            name: tensor.to(live[name].device, copy=True) for name, tensor in state["average"].items()
        }

    def _moving(self) -> dict[str, Tensor]:
        frozen = {f"trunk.{name}" for name in self._model.frozen}
        return {name: tensor for name, tensor in self._model.state_dict().items() if name not in frozen}

    @staticmethod
    @torch.no_grad()
    def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        for name, tensor in source.items():
            target[name].copy_(tensor)
