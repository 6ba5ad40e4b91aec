"""Regularisers that hold a trunk that trains near what it knew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from trainables.errors import UnknownName
from trainables.modality import Backbone
from trainables.training.hparams import REGULARISERS, HParams
from trainables.training.lora import UpdatedLinear
from trainables.training.model import TransferModel

__all__ = ["Regulariser", "regulariser"]


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
            if parameter.requires_grad and name in start
        ]
        self._updated = [layer for layer in model.trunk.modules() if isinstance(layer, UpdatedLinear)]

    def measure(self, inputs: Tensor, features: Tensor) -> Tensor:
        squares = [(now - start).square().sum() for now, start in self._pairs]
        squares += [layer.update.square().sum() for layer in self._updated]
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
        # Where none of it trains by itself, all of it has updates.
        trained = [group for group in groups if not model.frozen.issuperset(group)] or groups
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
