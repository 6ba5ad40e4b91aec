"""A backbone's trunk under a new head: freezing that holds, and models saved as what they changed.

A saved model is a folder of two files: `delta.safetensors`, the tensors that differ from the
pretrained ones, and `model.json`, the `Card` that says what they differ from. Both are read as
untrusted: no pickle, and every name, type and size is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.errors import BackboneError
from trainables.files import sealed
from trainables.files.trial_folder import CARD_FILE, DELTA_FILE
from trainables.modality import Backbone, Preprocessing, modality
from trainables.seeds import generator
from trainables.training.hparams import HParams
from trainables.training.stages import pooled_stages, stage_names, stage_width

__all__ = [
    "Card",
    "LoadedModel",
    "ModelError",
    "Standardised",
    "TransferModel",
    "build_model",
    "frozen_groups",
    "load_delta",
    "make_card",
    "save_delta",
    "unfreeze",
    "whole_model",
]

CARD_FORMAT = 1
CARD_BYTES = 16 * 2**20
HIDDEN = 512
"""Width of the hidden layer of an `mlp` head."""


class ModelError(ValueError):
    """A saved model cannot be used; the message says which file and why."""


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
        if not (self.trunk_is_frozen or self._owns_trunk):
            self.trunk, self._owns_trunk = deepcopy(self.trunk), True
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(name not in frozen)
            if name in frozen:
                parameter.grad = None
        self.train(self.training)

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
    stages, width = _read_by_head(backbone, hparams)
    head = _head(hparams, width, classes)
    numbers = generator(hparams.seed, "head")
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            # The distribution of torch's own linear layers, with the bias at zero.
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=numbers)
            nn.init.zeros_(layer.bias)
    return TransferModel(backbone.module, head, backbone.preprocessing, stages).train()


def _read_by_head(backbone: Backbone, hparams: HParams) -> tuple[tuple[str, ...], int]:
    """The stages that the head reads, none for the last features; and how many features they are."""
    if hparams.features == "last":
        return (), backbone.features
    preprocessing = backbone.preprocessing
    shape = tuple(preprocessing.normaliser()(preprocessing.blank(1)).shape[1:])
    try:
        stages = stage_names(backbone.module, backbone.groups, shape)
    except ValueError as error:
        raise ModelError(f"backbone {backbone.name}: {error}") from error
    return stages, stage_width(backbone.module, stages, shape)


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
    if hparams.features == "stages" or hparams.head_is_solved:
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
    if hparams.strategy == "full":
        return 0
    return round(hparams.freeze * len(groups))


def unfreeze(model: TransferModel, groups: Sequence[Sequence[str]], hparams: HParams, phase: str) -> None:
    """Freezes what `phase` freezes and lets the rest train.

    `head` freezes the whole trunk; `trunk` leaves frozen what `hparams.strategy` and `.freeze` say.

    Raises:
        ValueError: for another phase.
    """
    count = frozen_groups(groups, hparams, phase)
    frozen = frozenset(name for group in groups[:count] for name in group)
    model._freeze(frozen, hparams.batch_norm)


# The card


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a saved model is: enough, with the delta, to build it again.

    Attributes:
        backbone, weights: as the modality's `backbone` takes them; a weights file by its absolute path.
        weights_hash: of the weights that the delta differs from.
        preprocessing: what the model was trained with, a value of the modality's.
        head: the kind of head.
        classes: the names of the classes in the order of the logits.
        hparams: the trial's.
        metric: what the model reached, by name, such as `{"val_accuracy": 0.93}`.
    """

    backbone: str
    weights: str
    weights_hash: str
    preprocessing: Any
    head: str
    classes: tuple[str, ...]
    hparams: HParams
    metric: Mapping[str, float]

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ModelError("; ".join(problems))

    def _problems(self) -> Iterable[str]:
        for name in ("backbone", "weights", "weights_hash", "head"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or "\0" in value:
                yield f"{name} is {value!r}, but must be text"
        for name in ("backbone", "head"):
            if getattr(self, name) != getattr(self.hparams, name):
                yield f"{name} is {getattr(self, name)!r}, but hparams says otherwise"
        names = self.classes
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            yield "classes must be a list of names"
        elif len(names) < 2 or len(set(names)) != len(names):
            yield "classes must be at least two names, all different"
        if not isinstance(self.metric, Mapping) or not all(
            isinstance(name, str) and isinstance(value, int | float) and not isinstance(value, bool)
            for name, value in self.metric.items()
        ):
            yield "metric must map names to numbers"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `from_dict`."""
        return {
            "modality": self.hparams.modality,
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "preprocessing": self.preprocessing.to_dict(),
            "classes": list(self.classes),
            "hparams": self.hparams.to_dict(),
            "metric": dict(self.metric),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """The card that `to_dict` described.

        Raises:
            ModelError: for anything missing, unknown, or of the wrong type.
        """
        values = _with_modality(values)
        known = {"modality", *(each.name for each in fields(cls))}
        if set(values) != known:
            raise ModelError(f"it has {sorted(values)}, but must have exactly {sorted(known)}")
        for name, shape in (("preprocessing", dict), ("hparams", dict), ("classes", list)):
            if not isinstance(values[name], shape):
                raise ModelError(f"{name} must be a {'list' if shape is list else 'mapping'}")
        try:
            kind = modality(values.pop("modality"))
            preprocessing = kind.preprocessing(values["preprocessing"])
            hparams = kind.hparams.from_dict(values["hparams"])
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ModelError(str(error)) from error
        return cls(
            **{
                **values,
                "preprocessing": preprocessing,
                "hparams": hparams,
                "classes": tuple(values["classes"]),
            }
        )


def _with_modality(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a card that may have been made when there were only images.

    Raises:
        ModelError: where the size that it gives twice differs.
    """
    whole = {"modality": "image", **values}
    if "image_size" in whole:
        size, preprocessing = whole.pop("image_size"), values.get("preprocessing")
        inner = preprocessing.get("image_size") if isinstance(preprocessing, Mapping) else size
        if size != inner:
            raise ModelError(f"image_size is {size!r}, but preprocessing says {inner!r}")
    return whole


def make_card(
    backbone: Backbone, hparams: HParams, classes: Sequence[str], metric: Mapping[str, float]
) -> Card:
    """The card of a model of `hparams` on `backbone`.

    Raises:
        ModelError: where they do not fit each other.
    """
    from_file = backbone.weights not in ("pretrained", "none")
    return Card(
        backbone=backbone.name,
        # Whoever loads the model may be in another directory.
        weights=str(Path(backbone.weights).absolute()) if from_file else backbone.weights,
        weights_hash=backbone.weights_hash,
        preprocessing=backbone.preprocessing,
        head=hparams.head,
        classes=tuple(classes),
        hparams=hparams,
        metric=dict(metric),
    )


# Saving and loading


@dataclass(frozen=True)
class LoadedModel:
    """A model as it was saved, in evaluation mode on the CPU, and its card."""

    model: TransferModel
    card: Card


def save_delta(directory: Path, model: TransferModel, backbone: Backbone, card: Card) -> None:
    """Writes the tensors of `model` that differ, bit for bit, from the backbone's, and the card.

    The head is always written. So is the whole trunk where the weights are random: the same seed
    need not give the same numbers on another machine. Each file appears whole or not at all, and
    the card names the delta's digest, so that a pair torn by a crash is noticed on loading.

    Raises:
        ModelError: when the model's tensors are not those of the backbone and of the card's head.
    """
    base = backbone.module.state_dict()
    trunk = model.trunk.state_dict()
    if trunk.keys() != base.keys():
        raise ModelError(f"the model's trunk is not one of {backbone.name}")
    told = model.head.get_parameter("output.weight").shape[0]
    if told != len(card.classes):
        raise ModelError(f"the model tells {told} classes apart, but the card names {len(card.classes)}")
    changed = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    if backbone.weights == "none":
        changed |= {f"trunk.{name}": tensor for name, tensor in trunk.items()}
    elif model.trunk is not backbone.module:
        changed |= {
            f"trunk.{name}": tensor
            for name, tensor in trunk.items()
            if not _same_bits(tensor.cpu(), base[name].cpu())
        }
    # Copies, since tensors that share memory cannot be written.
    changed = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in changed.items()}
    delta = safetensors.torch.save(changed)
    described = {
        "format": CARD_FORMAT,
        "delta_sha256": hashlib.sha256(delta).hexdigest(),
        **card.to_dict(),
    }
    sealed.write(directory / DELTA_FILE, delta)
    sealed.write(directory / CARD_FILE, (json.dumps(described, indent=2) + "\n").encode())


def load_delta(directory: Path) -> LoadedModel:
    """The model that `save_delta` wrote to `directory`.

    Raises:
        ModelError: when a file is missing, damaged or not what it should be, when the backbone's
            weights are not at hand, or when they are not those that the delta differs from.
    """
    card, digest = _read_card(directory / CARD_FILE)
    try:
        delta = (directory / DELTA_FILE).read_bytes()
        if hashlib.sha256(delta).hexdigest() != digest:
            raise ModelError(
                f"{directory / DELTA_FILE} is not the one that {CARD_FILE} was written with: "
                "copy both files again"
            )
        changed = safetensors.torch.load(delta)
    except OSError as error:
        raise ModelError(f"{directory / DELTA_FILE} cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{directory / DELTA_FILE} is damaged: {error}") from error
    model = _empty(card)
    _fill(model, changed, directory / DELTA_FILE, whole=card.weights == "none")
    return LoadedModel(model.eval(), card)


def whole_model(card: Card, tensors: Mapping[str, Tensor], path: Path) -> LoadedModel:
    """The model of a card and all its tensors, which came from `path`; needs no pretrained weights.

    Raises:
        ModelError: when they do not fit each other.
    """
    model = _empty(replace(card, weights="none"))
    _fill(model, tensors, path, whole=True)
    return LoadedModel(model.eval(), card)


def _empty(card: Card) -> TransferModel:
    """The model of the card before the delta."""
    kind = modality(card.hparams.modality)
    asked = {name: getattr(card.hparams, name) for name in kind.backbone_knobs}
    try:
        backbone = kind.backbone({**asked, "weights": card.weights}, preprocessing=card.preprocessing)
    except BackboneError as error:
        raise ModelError(f"the saved model cannot be built: {error}") from error
    if card.weights != "none" and backbone.weights_hash != card.weights_hash:
        raise ModelError(
            f"the weights {card.weights!r} of {card.backbone} on this machine are not those that "
            f"the model was trained from (digest {backbone.weights_hash[:12]}, but it must be "
            f"{card.weights_hash[:12]}): install the same version of them"
        )
    backbone = replace(backbone, preprocessing=card.preprocessing)
    return build_model(backbone, card.hparams, len(card.classes))


def _fill(model: TransferModel, changed: Mapping[str, Tensor], path: Path, *, whole: bool) -> None:
    """Puts the delta's tensors into the model, after checking every one."""
    state = model.state_dict()
    needed = {name for name in state if whole or name.startswith("head.")}
    problems = [f"{name} is missing" for name in sorted(needed - set(changed))]
    for name, tensor in changed.items():
        if name not in state:
            problems.append(f"{name[:200]!r} is unknown")
        elif tensor.shape != state[name].shape or tensor.dtype != state[name].dtype:
            problems.append(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, but must be {state[name].dtype} "
                f"{list(state[name].shape)}"
            )
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ModelError(f"{path} does not fit the model: {'; '.join(problems[:4])}{more}")
    model.load_state_dict({**state, **changed})


def _read_card(path: Path) -> tuple[Card, str]:
    """The card and the digest of the delta that it was written with."""
    try:
        with path.open("rb") as file:
            content = file.read(CARD_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > CARD_BYTES:
        raise ModelError(f"{path} is larger than a card can be")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != CARD_FORMAT:
        raise ModelError(f"{path} is not a card of format {CARD_FORMAT}")
    digest = values.pop("delta_sha256", None)
    if not isinstance(digest, str):
        raise ModelError(f"{path}: delta_sha256 is {digest!r}, but must be text")
    try:
        return Card.from_dict(values), digest
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes; unlike `==`, tells -0.0 from 0.0 and NaN is NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    left, right = (each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(left, right)
