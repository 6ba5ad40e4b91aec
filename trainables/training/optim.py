"""What moves the weights: parameter groups, optimizers, schedules.

For a strategy of two phases, the loop builds the groups, the optimizer, the schedule and the
regulariser anew for each: what is frozen when they are built is no part of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainables.errors import UnknownName
from trainables.training.hparams import SCHEDULES, HParams
from trainables.training.lora import weight_of
from trainables.training.model import TransferModel

__all__ = [
    "Schedule",
    "build_optimizer",
    "build_schedule",
    "parameter_groups",
]

MILESTONES = (0.5, 0.75)
"""Where the `step` schedule falls, as shares of the steps after the warm-up."""
FALL = 0.1
"""The factor of the `step` and `plateau` schedules at each fall."""


def parameter_groups(
    model: TransferModel, groups: Sequence[Sequence[str]], hparams: HParams
) -> list[dict[str, Any]]:
    """The trainable parameters, each in exactly one group, with its rate and weight decay.

    The head's rate is `hparams.lr`. The trunk's is `trunk_lr`, where there is one, else that times
    `backbone_lr_mult`; or falls by `layer_decay` with every one of `groups` towards the input, from
    `trunk_lr` at the last of them, or from `lr` at the head. Biases, norms' and
    other vectors, and what the network itself names (`no_weight_decay`), are not decayed; under
    L2-SP nothing in the trunk is, since that pulls to the start what decay would pull to zero.

    Returns:
        For each group its `name`, `params`, `lr`, `weight_decay`, and `share`, its rate over the
        head's.
    """
    place = {name: index for index, group in enumerate(groups) for name in group}
    exempt: set[str] = getattr(model.trunk, "no_weight_decay", set)()
    pull_to_start = hparams.regulariser == "l2_sp" and "regulariser" in hparams.active
    found: dict[str, dict[str, Any]] = {}
    for full, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, _, name = full.partition(".")
        share = 1.0
        if part == "trunk":
            own = place[weight_of(name)]
            share = _trunk_share(hparams, len(groups) - own)
            if hparams.layer_rates == "decay":
                part = f"trunk.{own}"
        # A vector may be kept with extra axes of size one, as layer scales and class tokens are.
        vector = parameter.numel() == max(parameter.shape, default=1)
        spared = vector or (part != "head" and (name in exempt or pull_to_start))
        key = f"{part}.{'no_decay' if spared else 'decay'}"
        group = found.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr": hparams.lr * share,
                "weight_decay": 0.0 if spared else hparams.weight_decay,
                "share": share,
            },
        )
        group["params"].append(parameter)
    return list(found.values())


def _trunk_share(hparams: HParams, distance: int) -> float:
    """Rate over the head's of a group of the trunk, the `distance`-th from the head."""
    falls, own = hparams.layer_rates == "decay", hparams.trunk_lr
    if own is None:
        return hparams.layer_decay**distance if falls else hparams.backbone_lr_mult
    return own / hparams.lr * (hparams.layer_decay ** (distance - 1) if falls else 1.0)


def build_optimizer(groups: Sequence[Mapping[str, Any]], hparams: HParams) -> Optimizer:
    """The optimizer of `hparams` over `parameter_groups`.

    Only `adamw` decays weights apart from the gradient (Loshchilov and Hutter, 2019); for `adam`
    and `sgd` weight decay is the gradient of an L2 penalty. `sgd` has plain momentum.
    """
    each = [dict(group) for group in groups]
    # One kernel for all parameters on a GPU; on a CPU the plain way, whose bits are the recorded ones.
    fused = True if all(p.is_cuda for group in groups for p in group["params"]) else None
    if hparams.optimizer == "sgd":
        return SGD(each, lr=hparams.lr, momentum=hparams.momentum, fused=fused)
    kinds: dict[str, type[Adam]] = {"adamw": AdamW, "adam": Adam}
    if hparams.optimizer not in kinds:
        raise UnknownName("optimizer", hparams.optimizer, ("sgd", *kinds))
    return kinds[hparams.optimizer](each, lr=hparams.lr, betas=(0.9, hparams.beta2), fused=fused)


class Schedule:
    """The rates of all groups over a phase: a warm-up from near zero, then a fall.

    `constant` stays; `cosine` falls to zero at the last step (Loshchilov and Hutter, 2017, without
    restarts); `step` falls to a tenth after half and again after three quarters of the steps;
    `plateau` falls to a tenth when the monitored value has not improved for more than a tenth of
    the epochs, and more than one. Build it right after the optimizer, whose first rates it sets.

    Args:
        optimizer: whose groups' `lr` are the peak rates.
        kind: one of the above.
        steps_per_epoch, epochs: of the phase.
        warmup_epochs: length of the warm-up, cut to the phase.
        mode: `min` or `max`, what is an improvement to `plateau`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        kind: str,
        *,
        steps_per_epoch: int,
        epochs: int,
        warmup_epochs: float = 0.0,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if kind not in SCHEDULES:
            raise UnknownName("schedule", kind, SCHEDULES)
        self._optimizer, self._kind = optimizer, kind
        for group in optimizer.param_groups:
            # Kept in the optimizer's own state, so that a loaded one keeps its peaks.
            group.setdefault("initial_lr", group["lr"])
        self._total = max(1, steps_per_epoch * epochs)
        self._warmup = min(round(warmup_epochs * steps_per_epoch), self._total - 1)
        self._step = 0
        # It watches a stand-in, so that the warm-up and it need not know of each other's rates.
        self._watched = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self._plateau = ReduceLROnPlateau(
            self._watched,
            mode=mode,
            factor=FALL,
            patience=max(1, round(epochs / 10)),
            eps=0,
            threshold=0,
            threshold_mode="abs",
        )
        self._apply()

    @property
    def factor(self) -> float:
        """The coming step's rates over the peak rates."""
        if self._step < self._warmup:
            return (self._step + 1) / (self._warmup + 1)
        done = min(1.0, (self._step - self._warmup) / (self._total - self._warmup))
        if self._kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self._kind == "step":
            return FALL ** sum(done >= milestone for milestone in MILESTONES)
        if self._kind == "plateau":
            return float(self._watched.param_groups[0]["lr"])
        return 1.0  # constant

    def step(self) -> None:
        """To call after each step of the optimizer: sets the next step's rates."""
        self._step += 1
        self._apply()

    def epoch_end(self, monitored: float) -> None:
        """To call after each epoch with its monitored value; only `plateau` looks at it."""
        if self._kind == "plateau" and self._step >= self._warmup:
            self._plateau.step(monitored)
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on exactly, as plain values."""
        plateau = self._plateau
        return {
            "step": self._step,
            "factor": self._watched.param_groups[0]["lr"],
            "best": plateau.best,
            "bad_epochs": plateau.num_bad_epochs,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, and sets the rates accordingly."""
        self._step = int(state["step"])
        self._watched.param_groups[0]["lr"] = float(state["factor"])
        self._plateau.best = float(state["best"])
        self._plateau.num_bad_epochs = int(state["bad_epochs"])
        self._apply()

    def _apply(self) -> None:
        factor = self.factor
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def build_schedule(
    optimizer: Optimizer,
    hparams: HParams,
    steps_per_epoch: int,
    epochs: int,
    mode: Literal["min", "max"] = "min",
) -> Schedule:
    """The schedule of `hparams` for a phase of `epochs`; `mode` (`min`, `max`) is for `plateau`."""
    return Schedule(
        optimizer,
        hparams.schedule,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        warmup_epochs=hparams.warmup_epochs,
        mode=mode,
    )
