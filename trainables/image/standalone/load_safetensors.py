"""Builds the network of `model.safetensors` again; needs torch, torchvision, timm and safetensors.

    from load_safetensors import load
    model = load("model.safetensors")
    logits = model(model.prepare(Image.open("photo.jpg").convert("RGB")).unsqueeze(0))
    print(model.classes[logits.argmax()])

To train it on, everything is an ordinary module: `model.trunk` and `model.head`.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional


class Model(nn.Module):
    """A trunk, a head on its features, and the normalisation in front of both.

    Attributes:
        card: what the file says of itself: preprocessing, hyperparameters, metrics.
        classes: names, in the order of the logits.
        stages: the modules of the trunk whose pooled outputs the head reads, `NAME:3` on a grid of 3 x 3
            fields; none: the trunk's features.
    """

    def __init__(self, card: dict[str, Any], tensors: dict[str, Tensor], stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.card = card
        self.stages: tuple[Any, ...] = tuple(stages)
        self.classes: list[str] = card["classes"]
        self.trunk = _trunk(card["backbone"], card["preprocessing"]["image_size"])
        self.head = _head(_below(tensors, "head."))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, C] of what `prepare` gives, uint8 [B, 3, s, s]."""
        logits: Tensor = self.head(_features(self.trunk, self.stages, self.normalised(inputs)))
        return logits

    def normalised(self, inputs: Tensor) -> Tensor:
        """What trunks take."""
        mean, std = (torch.tensor(self.card["preprocessing"][k]).view(1, 3, 1, 1) for k in ("mean", "std"))
        return (inputs.to(torch.float32) / 255 - mean) / std

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright picture in RGB as the network takes it: uint8 [3, s, s]."""
        how = self.card["preprocessing"]
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        frame = functional.resize(
            pixels, [how["frame_size"]], interpolation=InterpolationMode(how["interpolation"]), antialias=True
        )
        cut: Tensor = functional.center_crop(
            functional.center_crop(frame, [how["frame_size"]] * 2), [how["image_size"]] * 2
        )
        return cut


def load(path: str | Path) -> Model:
    """The model of a file, in evaluation mode on the CPU.

    Raises:
        RuntimeError: where the file's tensors are not those of its network.
    """
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["transfer_search.card"])
        stages = json.loads(file.metadata().get("transfer_search.stages", "[]"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    model = (Ensemble if card.get("members") else Model)(card, tensors, stages)
    model.load_state_dict(tensors)
    return model.eval()


class Ensemble(Model):
    """Several heads, each on one of some trunks, whose probabilities are averaged.

    Attributes:
        stages: of each head what `Model` has of its own.
    """

    def __init__(self, card: dict[str, Any], tensors: dict[str, Tensor], stages: Sequence[Any] = ()) -> None:
        nn.Module.__init__(self)
        self.card, self.stages = card, tuple(tuple(names) for names in stages)
        self.classes = card["classes"]
        backbones = {member["trunk"]: member["card"]["backbone"] for member in card["members"]}
        size = card["preprocessing"]["image_size"]
        self.trunks = nn.ModuleList(_trunk(backbones[place], size) for place in sorted(backbones))
        self.heads = nn.ModuleList(
            _head(_below(tensors, f"heads.{place}.")) for place in range(len(card["members"]))
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, C], whose softmax is the average of the members' probabilities."""
        taken, total = self.normalised(inputs), torch.zeros(())
        read: dict[Any, Tensor] = {}
        for member, head, stages in zip(self.card["members"], self.heads, self.stages, strict=True):
            key = (member["trunk"], stages)
            if key not in read:
                read[key] = _features(self.trunks[member["trunk"]], stages, taken)
            total = total + member["share"] * (member["factor"] * head(read[key])).softmax(1)
        logits: Tensor = self.card.get("factor", 1.0) * total.clamp(min=1e-30).log()
        return logits


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _head(tensors: dict[str, Tensor]) -> nn.Sequential:
    """The head whose layers are in the file: `output`, after `standard` and `hidden` where they are there."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if "standard.mean" in tensors:
        layers["standard"] = Standardised(len(tensors["standard.mean"]))
    for name in ("hidden", "output"):
        weight = tensors.get(f"{name}.weight")
        if weight is not None:
            layers[name] = nn.Linear(weight.shape[1], weight.shape[0])
            if name == "hidden":
                layers["activation"] = nn.ReLU()
    return nn.Sequential(layers)


class Standardised(nn.Module):
    """Features less their mean over their deviation."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


def _features(trunk: nn.Module, names: Sequence[str], images: Tensor) -> Tensor:
    """The pooled outputs of the named stages, float [B, F]; without names the trunk's own features."""
    if not names:
        features: Tensor = trunk(images)
        return features
    # Tokens that come before those of the patches, the class token first.
    tokens = int(getattr(trunk, "num_prefix_tokens", 1 if hasattr(trunk, "class_token") else 0))
    pooled: dict[str, Tensor] = {}

    def keep(name: str, fields: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            pooled[name] = _pooled(output, fields, tokens)  # at once: what comes next may write over it

        return hook

    hooks = []
    for name in names:
        module, _, fields = name.partition(":")
        hooks.append(trunk.get_submodule(module).register_forward_hook(keep(name, int(fields or 0))))
    try:
        trunk(images)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([pooled[name] for name in names], 1)


def _pooled(output: Tensor, fields: int, tokens: int) -> Tensor:
    """A map's means; the class token and the means of the others; or what is pooled already."""
    if output.ndim == 4:
        return _means(output if output.shape[2] == output.shape[3] else output.permute(0, 3, 1, 2), fields)
    if output.ndim == 3:
        maps = output[:, tokens:].transpose(1, 2)
        side = math.isqrt(maps.shape[2])
        square = side * side == maps.shape[2]
        means = _means(maps.unflatten(2, (side, side)), fields) if square else maps.mean(2)
        return torch.cat([output[:, 0], means], 1) if tokens else means
    return output


def _means(maps: Tensor, fields: int) -> Tensor:
    """The means of maps [B, C, H, W] over their pixels; on a grid those of its fields, and the deviation."""
    if not fields:
        return maps.mean((2, 3))
    grid = (min(fields, maps.shape[2]), min(fields, maps.shape[3]))
    means = nn.functional.adaptive_avg_pool2d(maps, grid).flatten(1)
    return torch.cat([means, (maps.var((2, 3), unbiased=False) + 1e-5).sqrt()], 1)


def _trunk(backbone: str, image_size: int) -> nn.Module:
    """The network of a name without its classifier and without weights."""
    if backbone.startswith("efficientnet_lite"):
        return _timm("tf_" + backbone, image_size)
    if backbone.startswith("timm/"):
        return _timm(backbone.removeprefix("timm/"), image_size)
    options: dict[str, Any] = {}
    if backbone.startswith("vit_"):
        options = {"image_size": image_size}
    elif backbone.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    elif backbone in ("inception_v3", "googlenet"):
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    model: Any = torchvision.models.get_model(backbone, weights=None, **options)
    if backbone == "alexnet" or backbone.startswith("vgg"):
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    elif backbone.startswith("squeezenet"):
        model.classifier = nn.AdaptiveAvgPool2d(1)
    elif backbone.startswith("swin"):
        model.head = nn.Identity()
    elif backbone.startswith("vit"):
        model.heads = nn.Identity()
    elif hasattr(model, "fc"):
        model.fc, model.dropout = nn.Identity(), nn.Identity()
    else:
        model.classifier = _before_last_linear(model.classifier)
    trunk: nn.Module = model
    return trunk


def _timm(name: str, image_size: int) -> nn.Module:
    config = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {}
    if config is not None and config.fixed_input_size and image_size != config.input_size[-1]:
        size = {"img_size": image_size}
    trunk: Any = timm.create_model(name, pretrained=False, **size)
    trunk.reset_classifier(0)
    module: nn.Module = trunk
    return module


def _before_last_linear(classifier: nn.Module) -> nn.Module:
    if isinstance(classifier, nn.Linear):
        return nn.Identity()
    children = list(classifier.named_children())
    last = max(place for place, (_, child) in enumerate(children) if isinstance(child, nn.Linear))
    kept = [(name, child) for name, child in children[:last] if not isinstance(child, nn.Dropout)]
    return nn.Sequential(OrderedDict(kept))
