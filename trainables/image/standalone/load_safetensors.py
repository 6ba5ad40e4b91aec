"""Builds the network of `model.safetensors` again; needs torch, torchvision, timm and safetensors.

    from load_safetensors import load
    model = load("model.safetensors")
    logits = model(model.prepare(Image.open("photo.jpg").convert("RGB")).unsqueeze(0))
    print(model.classes[logits.argmax()])

To train it on, everything is an ordinary module: `model.trunk` and `model.head`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
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
    """

    def __init__(self, card: dict[str, Any], head: nn.Module) -> None:
        super().__init__()
        self.card = card
        self.classes: list[str] = card["classes"]
        self.trunk = _trunk(card["backbone"], card["preprocessing"]["image_size"])
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, C] of what `prepare` gives, uint8 [B, 3, s, s]."""
        mean, std = (torch.tensor(self.card["preprocessing"][k]).view(1, 3, 1, 1) for k in ("mean", "std"))
        logits: Tensor = self.head(self.trunk((inputs.to(torch.float32) / 255 - mean) / std))
        return logits

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
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    model = Model(card, _head({name: tensor for name, tensor in tensors.items() if name.startswith("head.")}))
    model.load_state_dict(tensors)
    return model.eval()


def _head(tensors: dict[str, Tensor]) -> nn.Sequential:
    """The head whose linear layers are in the file: `output`, after `hidden` where that is there."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name in ("hidden", "output"):
        weight = tensors.get(f"head.{name}.weight")
        if weight is not None:
            layers[name] = nn.Linear(weight.shape[1], weight.shape[0])
            if name == "hidden":
                layers["activation"] = nn.ReLU()
    return nn.Sequential(layers)


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
