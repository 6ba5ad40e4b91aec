"""Models saved as what they changed of a backbone, and loaded again.

A saved model is a folder of two files: `delta.safetensors`, the tensors that differ from the
pretrained ones, and `model.json`, the `Card` that says what they differ from. Both are read as
untrusted: no pickle, and every name, type and size is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trainables.errors import BackboneError
from trainables.files import sealed
from trainables.files.trial_folder import CARD_FILE, DELTA_FILE
from trainables.modalities import modality
from trainables.modality import Backbone
from trainables.training.card import Card, Member, ModelError
from trainables.training.ensemble import EnsembleModel
from trainables.training.lora import is_update
from trainables.training.model import TransferModel, build_model

__all__ = [
    "LoadedModel",
    "Part",
    "card_of",
    "load_delta",
    "save_delta",
    "save_ensemble",
    "scaled",
    "whole_model",
]

CARD_FORMAT = 1
CARD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class LoadedModel:
    """A model as it was saved, in evaluation mode on the CPU, and its card."""

    model: TransferModel | EnsembleModel
    card: Card


def save_delta(directory: Path, model: TransferModel, backbone: Backbone, card: Card) -> None:
    """Writes the tensors of `model` that differ, bit for bit, from the backbone's, and the card.

    The head is always written. So is the whole trunk where the weights are random: the same seed
    need not give the same numbers on another machine. Each file appears whole or not at all, and
    the card names the delta's digest, so that a pair torn by a crash is noticed on loading.

    Raises:
        ModelError: when the model's tensors are not those of the backbone and of the card's head.
    """
    told = model.head.get_parameter("output.weight").shape[0]
    if told != len(card.classes):
        raise ModelError(f"the model tells {told} classes apart, but the card names {len(card.classes)}")
    changed = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    if backbone.weights == "none" or model.trunk is not backbone.module:
        changed |= _changed(model, backbone)
    # Copies, since tensors that share memory cannot be written.
    _write(
        directory,
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in changed.items()},
        card,
    )


def _changed(model: TransferModel, backbone: Backbone) -> dict[str, Tensor]:
    """What of the model's trunk is to be saved."""
    base, trunk = backbone.module.state_dict(), model.trunk.state_dict()
    if {name for name in trunk if not is_update(name)} != base.keys():
        raise ModelError(f"the model's trunk is not one of {backbone.name}")
    return {
        f"trunk.{name}": tensor
        for name, tensor in trunk.items()
        if backbone.weights == "none" or name not in base or not _same_bits(tensor.cpu(), base[name].cpu())
    }


def _write(directory: Path, changed: Mapping[str, Tensor], card: Card) -> None:
    delta = safetensors.torch.save(dict(changed))
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
    card, changed = _read(directory)
    model = _empty(card, updated=True)
    _fill(model, changed, directory / DELTA_FILE, card)
    model.merge()
    return LoadedModel(model.eval(), card)


def card_of(directory: Path) -> Card:
    """The card of the model in a folder.

    Raises:
        ModelError: if it cannot be read.
    """
    return _read_card(directory / CARD_FILE)[0]


def _read(directory: Path) -> tuple[Card, dict[str, Tensor]]:
    """The card and the tensors in a folder."""
    card, digest = _read_card(directory / CARD_FILE)
    try:
        delta = (directory / DELTA_FILE).read_bytes()
        if hashlib.sha256(delta).hexdigest() != digest:
            raise ModelError(
                f"{directory / DELTA_FILE} is not the one that {CARD_FILE} was written with: "
                "copy both files again"
            )
        return card, safetensors.torch.load(delta)
    except OSError as error:
        raise ModelError(f"{directory / DELTA_FILE} cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{directory / DELTA_FILE} is damaged: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Part:
    """A saved model, in a folder, that is to be a part of an ensemble; the rest is as `Member` has it."""

    folder: Path
    name: str
    share: float
    factor: float


def save_ensemble(directory: Path, parts: Sequence[Part], metric: Mapping[str, float]) -> Card:
    """Writes saved models as one, which averages their probabilities; needs no backbone.

    Raises:
        ModelError: where one of them cannot be read, or they do not fit each other.
    """
    trunks: dict[object, int] = {}
    members: list[Member] = []
    tensors: dict[str, Tensor] = {}
    for place, part in enumerate(parts):
        card, own = _read(part.folder)
        changes = any(name.startswith("trunk.") for name in own)
        trunk = trunks.setdefault(place if changes else (card.backbone, card.weights_hash), len(trunks))
        members.append(Member(name=part.name, share=part.share, factor=part.factor, trunk=trunk, card=card))
        for name, tensor in own.items():
            kind, _, rest = name.partition(".")
            tensors[f"heads.{place}.{rest}" if kind == "head" else f"trunks.{trunk}.{rest}"] = tensor
    whole = replace(members[0].card, metric=dict(metric), members=tuple(members))
    _write(directory, tensors, whole)
    return whole


def scaled(loaded: LoadedModel, factor: float) -> LoadedModel:
    """The same model, whose logits are multiplied with a factor; it takes the place of what was loaded."""
    card, model = loaded.card, loaded.model
    if isinstance(model, EnsembleModel):
        model.factor = factor * card.factor
        return LoadedModel(model, replace(card, factor=model.factor))
    output = model.head.get_submodule("output")
    assert isinstance(output, nn.Linear)
    with torch.no_grad():
        output.weight.mul_(factor)
        output.bias.mul_(factor)
    return LoadedModel(model, card)


def whole_model(card: Card, tensors: Mapping[str, Tensor], path: Path) -> LoadedModel:
    """The model of a card and all its tensors, which came from `path`; needs no pretrained weights.

    Raises:
        ModelError: when they do not fit each other.
    """
    members = [replace(each, card=replace(each.card, weights="none")) for each in card.members]
    unaided = replace(card, weights="none", members=tuple(members))
    model = _empty(unaided)
    _fill(model, tensors, path, unaided)
    return LoadedModel(model.eval(), card)


def _empty(card: Card, *, updated: bool = False) -> TransferModel | EnsembleModel:
    """The model of the card before its tensors; `updated`: with low-rank updates apart, where it has any."""
    if not card.members:
        return _built(card, _backbone(card), updated)
    own = {member.trunk: member.card for member in reversed(card.members)}
    backbones = {trunk: _backbone(mine) for trunk, mine in own.items()}
    models = [_built(member.card, backbones[member.trunk], updated) for member in card.members]
    return EnsembleModel(models, card.members, card.factor)


def _built(card: Card, backbone: Backbone, updated: bool) -> TransferModel:
    model = build_model(backbone, card.hparams, len(card.classes))
    if updated and card.hparams.strategy == "lora":
        model.adapt(card.hparams)
    return model


def _backbone(card: Card) -> Backbone:
    """The backbone that the card's model differs from."""
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
    return replace(backbone, preprocessing=card.preprocessing)


def _fill(model: nn.Module, changed: Mapping[str, Tensor], path: Path, card: Card) -> None:
    """Puts the delta's tensors into the model, after checking every one."""
    state = model.state_dict()
    from_nothing = tuple(
        {f"trunks.{each.trunk}." for each in card.members if each.card.weights == "none"}
        or ({"trunk."} if card.weights == "none" else ())
    )
    whole = ("head.", "heads.", *from_nothing)
    needed = {name for name in state if name.startswith(whole) or is_update(name)}
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
