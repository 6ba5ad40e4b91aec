"""torchvision's classification networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from trainables.errors import BackboneError
from trainables.image.backbones.source import Source, State, Unloadable, first_lines, load
from trainables.image.preprocessing import Preprocessing

__all__ = ["TorchVision", "resized_positions"]


class TorchVision(Source):
    """The classification networks of torchvision."""

    _PIXELS = (
        'run `python -c "import torchvision; torchvision.models.get_model({name!r}, '
        "weights='DEFAULT')\"` on a machine with a network and copy {file} to {folder}"
    )

    def names(self) -> Iterable[str]:
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names

    def preprocessing(self, name: str) -> Preprocessing:
        transforms = self._default(name).transforms()
        return Preprocessing(
            image_size=transforms.crop_size[0],
            frame_size=transforms.resize_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )

    def parameters(self, name: str) -> int:
        return int(self._default(name).meta["num_params"])

    def file(self, name: str) -> Path | None:
        path = self._path(name)
        return path if path.is_file() else None

    def remedy(self, name: str) -> str:
        path = self._path(name)
        return self._PIXELS.format(name=name, file=path.name, folder=path.parent)

    def licence(self, name: str) -> str:
        return "BSD-3-Clause, torchvision's; of ImageNet, whose own terms are for research"

    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        options = _torchvision_options(name, image_size, random=state is None)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        _cut(name, model)
        if state is not None:
            if name.startswith("vit_"):
                state = resized_positions(state, image_size, _patch(name))
            elif name.startswith("densenet"):
                state = _modern_densenet(state)
            load(model, state, ignored=_TORCHVISION_IGNORED)
        return model

    @staticmethod
    def _default(name: str) -> Any:
        return torchvision.models.get_model_weights(name).DEFAULT

    def _path(self, name: str) -> Path:
        file = Path(urlparse(self._default(name).url).path).name
        return Path(torch.hub.get_dir()) / "checkpoints" / file


_TORCHVISION_IGNORED = ("classifier", "fc", "head", "heads", "aux1", "aux2", "AuxLogits")


def _torchvision_options(name: str, image_size: int, *, random: bool) -> dict[str, Any]:
    if name.startswith("vit_"):
        if image_size % _patch(name):
            raise BackboneError(
                f"{name} takes multiples of {_patch(name)} as image_size, but it is {image_size}"
            )
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        if image_size % 224:
            raise BackboneError(f"{name} takes multiples of 224 as image_size, but it is {image_size}")
        return {"input_size": (image_size, image_size)}
    if name in ("inception_v3", "googlenet"):
        # The pretrained weights expect inputs scaled to -1..1, which the networks do themselves.
        return {"aux_logits": False, "transform_input": True, "init_weights": random}
    return {}


def _cut(name: str, model: Any) -> None:
    """Takes the final classifier, and the dropout before it, off a torchvision network."""
    if name == "alexnet" or name.startswith("vgg"):
        # Pooled maps in place of the large fully connected layers, which belong to the old task.
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    elif name.startswith("squeezenet"):
        model.classifier = nn.AdaptiveAvgPool2d(1)
    elif name.startswith("swin"):
        model.head = nn.Identity()
    elif name.startswith("vit"):
        model.heads = nn.Identity()
    elif hasattr(model, "fc"):
        model.fc = nn.Identity()
        if hasattr(model, "dropout"):
            model.dropout = nn.Identity()
    else:
        model.classifier = _before_last_linear(model.classifier)


def _before_last_linear(classifier: nn.Module) -> nn.Module:
    """What a classifier does before its last layer: norms, pooling and hidden layers."""
    if isinstance(classifier, nn.Linear):
        return nn.Identity()
    children = list(classifier.named_children())
    last = max(i for i, (_, child) in enumerate(children) if isinstance(child, nn.Linear))
    kept = [(name, child) for name, child in children[:last] if not isinstance(child, nn.Dropout)]
    return nn.Sequential(OrderedDict(kept))


def _patch(name: str) -> int:
    """The side of a patch of a vision transformer in pixels."""
    return int(name.rsplit("_", 1)[1])


def resized_positions(state: State, image_size: int, patch: int) -> State:
    """The state with its position embeddings interpolated to another input size."""
    if "encoder.pos_embedding" not in state:
        return state
    try:
        resized: State = interpolate_embeddings(image_size, patch, OrderedDict(state))
    except ValueError as error:
        raise Unloadable(first_lines(error)) from error
    return resized


def _modern_densenet(state: State) -> dict[str, Tensor]:
    """Renames `norm.1` to `norm1` and so on: the published files are older than the module."""
    modern = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if len(parts) > 3 and parts[-3] in ("norm", "relu", "conv") and parts[-2] in "12":
            name = ".".join([*parts[:-3], parts[-3] + parts[-2], parts[-1]])
        modern[name] = tensor
    return modern
