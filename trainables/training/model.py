"""A backbone's trunk under a new head, and freezing that holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from trainables.modality import Backbone, Preprocessing
from trainables.seeds import generator
from trainables.training import lora
from trainables.training.card import ModelError
from trainables.training.hparams import HParams
from trainables.training.stages import grid_names, pooled_stages, stage_names, stage_width

__all__ = ["Standardised", "TransferModel", "build_model", "frozen_groups", "stages_read", "unfreeze"]

HIDDEN = 512
"""Width of the hidden layer of an `mlp` head."""


class TransferModel(nn.Module):
    """A trunk, a head on its features, and in front of both what makes inputs the trunk's.

    The trunk starts frozen, and is the one it was given: models that train only a head share it.
    `unfreeze` gives the model a copy of its own. Frozen parts stay in evaluation mode whatever `train`
    is told: running statistics do not move, and nothing in them drops out.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        preprocessing: Preprocessing,
        stages: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.stages = stages
        self.normaliser = preprocessing.normaliser()
        # Convolutions are faster on maps whose channels lie together: 1.5 to 2 times on CPUs.
        self.to(memory_format=torch.channels_last)
        self._names = frozenset(trunk.state_dict())
        self._owns_trunk = False
        self._freeze(self._names, "eval")

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, C] of inputs [B, ...]."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    def features(self, inputs: Tensor) -> Tensor:
        """What the head reads, [B, F], of inputs [B, ...].

        The trunk's last features, or the pooled outputs of its `stages` where it has names of any.
        """
        taken = self.normalised(inputs)
        if self.stages:
            return pooled_stages(self.trunk, self.stages, taken)
        found: Tensor = self.trunk(taken)
        return found

    def normalised(self, inputs: Tensor) -> Tensor:
        """What the trunk takes."""
        taken: Tensor = self.normaliser(inputs)
        return taken

    def train(self, mode: bool = True) -> TransferModel:
        """Sets training mode, but for what is frozen and for BatchNorm that is held in `eval`."""
        self.training = mode
        self.head.train(mode)
        self.normaliser.train(mode)
        if not self.trunk_is_frozen:
            self.trunk.train(mode)
            if mode:
                self._hold(self.trunk, "")
        elif self.trunk.training:
            self.trunk.eval()
        return self

    @property
    def frozen(self) -> frozenset[str]:
        """The names within the trunk of the parameters and buffers that do not change."""
        return self._frozen

    @property
    def trunk_is_frozen(self) -> bool:
        """Whether nothing in the trunk trains, so that its features are a fixed function."""
        return self._frozen >= self._names

    def _freeze(self, frozen: frozenset[str], batch_norm: str) -> None:
        self._frozen, self._batch_norm = frozen, batch_norm
        if not self.trunk_is_frozen:
            self._own_trunk()
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(name not in frozen)
            if name in frozen:
                parameter.grad = None
        self.train(self.training)

    def _own_trunk(self) -> None:
        if not self._owns_trunk:
            self.trunk, self._owns_trunk = deepcopy(self.trunk), True

    def adapt(self, hparams: HParams) -> None:
        """Gives the trunk low-rank updates, unless it has them: as the strategy `lora` trains them.

        Raises:
            ModelError: for a trunk without linear layers.
        """
        if any(map(lora.is_update, self._names)):
            return
        if next(lora.linear_layers(self.trunk), None) is None:
            raise ModelError(
                f"strategy lora updates linear layers, such as transformers have, and {hparams.backbone} has "
                "none: take bias, partial or lp_ft"
            )
        self._own_trunk()
        lora.adapt(self.trunk, hparams.lora_rank, generator(hparams.seed, "lora"))
        self._names = frozenset(self.trunk.state_dict())

    def merge(self) -> None:
        """Adds the trunk's updates to its layers, which are plain ones then."""
        lora.merge(self.trunk)
        self._names = frozenset(self.trunk.state_dict())

    def _hold(self, module: nn.Module, prefix: str, frozen: bool = False) -> None:
        """Puts what is frozen into evaluation mode: `module` if `frozen`, else among its children.

        A module without a state of its own, such as dropout, goes with the one before it.
        """
        if frozen or (self._batch_norm == "eval" and isinstance(module, _BatchNorm)):
            module.eval()
            return
        children = [
            (name, child, [f"{prefix}{name}.{inner}" for inner in child.state_dict()])
            for name, child in module.named_children()
        ]
        follows = next((self._frozen.issuperset(state) for *_, state in children if state), False)
        for name, child, state in children:
            if state:
                follows = self._frozen.issuperset(state)
            self._hold(child, f"{prefix}{name}.", follows)


def build_model(backbone: Backbone, hparams: HParams, classes: int) -> TransferModel:
    """The model that a trial starts from: the pretrained trunk, frozen and shared, and a new head.

    The head depends on `hparams.seed` alone, and no global generator is read or moved.

    Raises:
        ModelError: for fewer than two classes.
    """
    if classes < 2:
        raise ModelError(f"a classifier needs at least two classes, but there are {classes}")
    stages, shape = stages_read(backbone, hparams.features), _shape(backbone)
    width = stage_width(backbone.module, stages, shape) if stages else backbone.features
    head = _head(hparams, width, classes)
    numbers = generator(hparams.seed, "head")
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            # The distribution of torch's own linear layers, with the bias at zero.
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=numbers)
            nn.init.zeros_(layer.bias)
    return TransferModel(backbone.module, head, backbone.preprocessing, stages).train()


def stages_read(backbone: Backbone, features: str) -> tuple[str, ...]:
    """The stages that a head reads by the knob `features`: none for the last features.

    Raises:
        ModelError: where the backbone has no stages.
    """
    if features == "last":
        return ()
    try:
        names = grid_names if features == "grid" else stage_names
        return names(backbone.module, backbone.groups, _shape(backbone))
    except ValueError as error:
        raise ModelError(f"backbone {backbone.name}: {error}") from error


def _shape(backbone: Backbone) -> tuple[int, ...]:
    """The shape of one of the inputs that the trunk takes."""
    preprocessing = backbone.preprocessing
    return tuple(preprocessing.normaliser()(preprocessing.blank(1)).shape[1:])


class Standardised(nn.Module):
    """Features less their mean over their deviation, both of the training images; part of a head.

    Until `set` has been called it changes nothing.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def set(self, mean: Tensor, scale: Tensor) -> None:
        """Takes over the mean and the deviation of each feature, [F]."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


def _head(hparams: HParams, features: int, classes: int) -> nn.Sequential:
    head = nn.Sequential()
    if hparams.features != "last" or hparams.head_is_solved:
        # Stages differ in scale, and a penalty of one strength must suit all features.
        head.add_module("standard", Standardised(features))
    if hparams.head == "mlp":
        head.add_module("hidden", _linear(features, HIDDEN))
        head.add_module("activation", nn.ReLU())
        features = HIDDEN
    head.add_module("dropout", nn.Dropout(hparams.dropout))
    head.add_module("output", _linear(features, classes))
    return head


def _linear(features: int, out: int) -> nn.Linear:
    """A linear layer whose weights are yet to be set: no random number is drawn."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, features, out)
    return layer


def frozen_groups(groups: Sequence[Sequence[str]], hparams: HParams, phase: str) -> int:
    """How many of the ordered groups, from the input, are frozen in `phase`: `head` or `trunk`.

    Raises:
        ValueError: for another phase.
    """
    if phase not in ("head", "trunk"):
        raise ValueError(f"phase is {phase!r}, but must be head or trunk")
    if phase == "head" or hparams.strategy == "probe":
        return len(groups)
    if hparams.strategy in ("full", "bias", "lora"):
        return 0
    return round(hparams.freeze * len(groups))


def unfreeze(model: TransferModel, groups: Sequence[Sequence[str]], hparams: HParams, phase: str) -> None:
    """Freezes what `phase` freezes and lets the rest train.

    `head` freezes the whole trunk; `trunk` leaves frozen what `hparams.strategy` and `.freeze` say.

    Raises:
        ValueError: for another phase.
        ModelError: where the strategy trains what the trunk has none of.
    """
    count = frozen_groups(groups, hparams, phase)
    frozen = frozenset(name for group in groups[:count] for name in group)
    if phase == "trunk" and hparams.strategy == "bias":
        frozen = model._names - _biases_and_norms(model.trunk)
    if phase == "trunk" and hparams.strategy == "lora":
        model.adapt(hparams)
        frozen = frozenset(name for name in model._names if not lora.is_update(name))
    model._freeze(frozen, hparams.batch_norm)


def _biases_and_norms(trunk: nn.Module) -> frozenset[str]:
    """Names of the biases, and of all that norms have: what BitFit trains (Ben Zaken et al., 2022).

    With the norms' own scales, as for convolutions (Frankle et al., 2021).
    """
    norms = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    found = {name for name, _ in trunk.named_parameters() if name.rpartition(".")[2] == "bias"}
    for prefix, module in trunk.named_modules():
        if isinstance(module, norms):
            found |= {f"{prefix}.{name}".lstrip(".") for name in module.state_dict()}
    return frozenset(found)
