"""Low-rank updates of a trunk's linear layers (LoRA; Hu et al., 2022).

Each layer keeps its pretrained weight; what trains is a product of two thin matrices that is added to it.
`merge` adds it for good: whoever uses a saved model meets plain layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["UpdatedLinear", "adapt", "is_update", "linear_layers", "merge", "weight_of"]

_DOWN, _UP = "lora_down", "lora_up"


class UpdatedLinear(nn.Linear):
    """A linear layer whose weight is its own plus `lora_up @ lora_down`, of [out, r] and [r, in]."""

    lora_down: Tensor
    lora_up: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight + self.update, self.bias)

    @property
    def update(self) -> Tensor:
        """What is added to the weight, [out, in]."""
        return self.lora_up @ self.lora_down


def linear_layers(trunk: nn.Module) -> Iterator[nn.Linear]:
    """The layers that can be updated; attention of torch's own reads its layers' weights by itself."""
    for module in trunk.children():
        if type(module) is nn.Linear:
            yield module
        elif not isinstance(module, nn.MultiheadAttention):
            yield from linear_layers(module)


def adapt(trunk: nn.Module, rank: int, numbers: torch.Generator) -> None:
    """Gives every linear layer of a trunk an update, which is zero to begin with.

    Args:
        trunk: changed in place.
        rank: of the updates; a layer that is narrower has its own width.
        numbers: where the thin matrices' random numbers come from.
    """
    for layer in list(linear_layers(trunk)):
        out, taken = layer.weight.shape
        thin = min(rank, out, taken)
        down = nn.init.kaiming_uniform_(torch.empty(thin, taken), a=math.sqrt(5), generator=numbers)
        layer.__class__ = UpdatedLinear
        layer.register_parameter(_DOWN, nn.Parameter(down.to(layer.weight)))
        layer.register_parameter(_UP, nn.Parameter(layer.weight.new_zeros(out, thin)))


def merge(module: nn.Module) -> None:
    """Adds every update below a module to its layer's weight, and leaves plain layers."""
    for layer in [each for each in module.modules() if isinstance(each, UpdatedLinear)]:
        with torch.no_grad():
            layer.weight.copy_(layer.weight + layer.update)
        del layer.lora_down, layer.lora_up
        layer.__class__ = nn.Linear  # type: ignore[assignment]


def is_update(name: str) -> bool:
    """Whether a name in a state is that of an update's part."""
    return name.rpartition(".")[2] in (_DOWN, _UP)


def weight_of(name: str) -> str:
    """The name of the weight that an update of that name is of; other names are their own."""
    return f"{name.rpartition('.')[0]}.weight" if is_update(name) else name
