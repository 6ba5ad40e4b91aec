"""What moves the weights in one phase: the optimizer, its schedule, averaged weights, scaled gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainables.training import optim
from trainables.training.averaging import build_ema
from trainables.training.hparams import HParams
from trainables.training.model import TransferModel

__all__ = ["Optimisation"]


class Optimisation:
    """Steps of one phase of a trial.

    Args:
        model: what of it trains is what requires gradients now.
        groups: the backbone's, ordered from input to output.
        hparams: optimizer, rates, schedule, average and clipping.
        steps: an epoch has.
        epochs: the phase has.
        maximize: whether more is better of what `epoch_end` is told.
        scaler: of the trial's gradients.
    """

    def __init__(
        self,
        model: TransferModel,
        groups: Sequence[Sequence[str]],
        hparams: HParams,
        *,
        steps: int,
        epochs: int,
        maximize: bool,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._model = model
        self._hparams = hparams
        self.optimizer = optim.build_optimizer(optim.parameter_groups(model, groups, hparams), hparams)
        self._schedule = optim.build_schedule(
            self.optimizer, hparams, steps, epochs, mode="max" if maximize else "min"
        )
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._scaler = scaler
        self.restart_average()

    def restart_average(self) -> None:
        """Begins the average of the weights with what they are now."""
        self._ema = build_ema(self._model, self._hparams)

    @property
    def rate(self) -> float:
        """The head's learning rate in the coming step."""
        rate: float = self.optimizer.param_groups[-1]["lr"]
        return rate

    def step(self, losses: Iterator[Tensor]) -> None:
        """A step on losses that add up to that of a batch; each is computed when its turn has come."""
        self.optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            self._scaler.scale(loss).backward()
        self._scaler.unscale_(self.optimizer)
        if self._hparams.clip_grad is not None:
            nn.utils.clip_grad_norm_(self._trained, self._hparams.clip_grad)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self._schedule.step()
        if self._ema is not None:
            self._ema.update()

    def epoch_end(self, monitored: float) -> None:
        """To call after each epoch with its monitored value."""
        self._schedule.epoch_end(monitored)

    def averaged(self) -> AbstractContextManager[None]:
        """The model with its averaged weights, if it has such; then as it was."""
        return nullcontext() if self._ema is None else self._ema.applied()

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on exactly."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self._scaler.load_state_dict(state["scaler"])

    def described(self) -> list[dict[str, Any]]:
        """Of each group of parameters its name, peak rate, weight decay and size."""
        return [
            {
                "name": group["name"],
                "lr": self._hparams.lr * group["share"],
                "weight_decay": group["weight_decay"],
                "parameters": sum(p.numel() for p in group["params"]),
            }
            for group in self.optimizer.param_groups
        ]
