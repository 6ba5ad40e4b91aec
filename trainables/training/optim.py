"""What moves the weights: parameter groups, optimizers, schedules, regularisers, averages.

For a strategy of two phases, the loop builds the groups, the optimizer, the schedule and the
regulariser anew for each: what is frozen when they are built is no part of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainables.errors import UnknownName
from trainables.modality import Backbone
from trainables.training.hparams import REGULARISERS, SCHEDULES, HParams
from trainables.training.model import TransferModel

__all__ = [
    "EMA",
    "Regulariser",
    "Schedule",
    "build_ema",
    "build_optimizer",
    "build_schedule",
    "parameter_groups",
    "regulariser",
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
            share = _trunk_share(hparams, len(groups) - place[name])
            if hparams.layer_rates == "decay":
                part = f"trunk.{place[name]}"
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


class Regulariser:
    """A penalty on a trunk that trains, to be added to the loss of every step.

    Call it with the inputs of the step and the features that the model made of them, in that
    order of events: `features = model.features(inputs)`, then `penalty(inputs, features)`.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, inputs: Tensor, features: Tensor) -> Tensor:
        """The penalty, a scalar: the strength times what the kind measures."""
        return self.strength * self.measure(inputs, features)

    def measure(self, inputs: Tensor, features: Tensor) -> Tensor:
        """The penalty at strength one."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of what it attached to the model."""


class _L2SP(Regulariser):
    """Half the squared distance of the trunk's trained parameters from where they started.

    Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", ICML 2018. The paper's plain L2 penalty of the new layer is weight decay here.
    """

    def __init__(self, strength: float, model: TransferModel, backbone: Backbone) -> None:
        super().__init__(strength)
        start = dict(backbone.module.named_parameters())
        self._pairs = [
            (parameter, start[name].detach().to(parameter.device, copy=True))
            for name, parameter in model.trunk.named_parameters()
            if parameter.requires_grad
        ]

    def measure(self, inputs: Tensor, features: Tensor) -> Tensor:
        squares = [(now - start).square().sum() for now, start in self._pairs]
        return 0.5 * torch.stack(squares).sum()


class _Delta(Regulariser):
    """Half the squared distance of the trunk's feature maps from those of the pretrained one.

    Li et al., "DELTA: Deep Learning Transfer using Feature Map with Attention", ICLR 2019, without
    the attention: every channel weighs the same. At the ends of up to four groups, evenly spaced
    over those that train, squares are summed over channels, averaged over positions and images.
    The paper's plain L2 penalty of the new layer is weight decay here.
    """

    def __init__(
        self,
        strength: float,
        model: TransferModel,
        backbone: Backbone,
        groups: Sequence[Sequence[str]],
    ) -> None:
        super().__init__(strength)
        self._model = model
        source = deepcopy(backbone.module).eval().requires_grad_(False)
        # In the layout of the model's own maps: sums in another order would differ at the start.
        self._source = source.to(next(model.parameters()).device).to(memory_format=torch.channels_last)
        trained = [group for group in groups if not model.frozen.issuperset(group)]
        count = min(4, len(trained))
        ends = [trained[len(trained) * (i + 1) // count - 1] for i in range(count)]
        self._ours: dict[str, Tensor] = {}
        self._theirs: dict[str, Tensor] = {}
        self._hooks = [
            trunk.get_submodule(name).register_forward_hook(_keep(name, maps))
            for name in dict.fromkeys(_end_of(group) for group in ends)
            for trunk, maps in ((model.trunk, self._ours), (self._source, self._theirs))
        ]

    def measure(self, inputs: Tensor, features: Tensor) -> Tensor:
        with torch.no_grad():
            self._source(self._model.normalised(inputs))
        if not self._ours:
            raise RuntimeError("DELTA needs the model's pass over the inputs before the penalty")
        total = features.new_zeros(())
        for name, ours in self._ours.items():
            squares = (ours - self._theirs[name]).square()
            total = total + squares.sum() / (len(ours) * _positions(ours))
        self._ours.clear()
        self._theirs.clear()
        return 0.5 * total

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


class _BSS(Regulariser):
    """The square of the smallest singular value of the batch's feature matrix.

    Chen et al., "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for
    Safe Transfer Learning", NeurIPS 2019, with the paper's choice of one singular value.
    """

    def measure(self, inputs: Tensor, features: Tensor) -> Tensor:
        # Half precision has no decomposition.
        smallest: Tensor = torch.linalg.svdvals(features.float())[-1]
        return smallest.square()


def regulariser(model: TransferModel, backbone: Backbone, hparams: HParams) -> Regulariser | None:
    """The regulariser of `hparams` for what of the trunk trains now; `None` where nothing does.

    `close` it before the model is saved, copied, or trained further without it.
    """
    kind = hparams.regulariser
    if kind == "none" or model.trunk_is_frozen:
        return None
    if "regulariser" not in hparams.active:
        return None
    strength = hparams.regulariser_strength
    if kind == "l2_sp":
        return _L2SP(strength, model, backbone)
    if kind == "delta":
        return _Delta(strength, model, backbone, backbone.groups)
    if kind == "bss":
        return _BSS(strength)
    raise UnknownName("regulariser", kind, REGULARISERS)


def _end_of(group: Sequence[str]) -> str:
    """The module whose output is that of the group: all of it, or else its last one."""
    modules = [name.split(".")[:-1] for name in group]
    common: list[str] = []
    for parts in zip(*modules, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common or modules[-1])


def _keep(name: str, maps: dict[str, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that keeps a module's output in `maps`, but for what only evaluates the module."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        trains = any(parameter.requires_grad for parameter in module.parameters())
        if isinstance(output, Tensor) and torch.is_grad_enabled() == trains:
            maps[name] = output

    return hook


def _positions(maps: Tensor) -> int:
    """How many positions the maps have, of any layout: channels are the axis that is not one."""
    if maps.ndim == 4:
        # Inputs are square: the two axes of positions have the same length.
        return maps.shape[2] ** 2 if maps.shape[2] == maps.shape[3] else maps.shape[1] ** 2
    return maps.shape[1] if maps.ndim == 3 else 1


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
