"""What a trunk is like: the width of its features, its freeze groups, its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.vision_transformer import Encoder

from trainables.errors import BackboneError
from trainables.image.backbones.source import first_lines

__all__ = ["digest_of", "groups", "width"]


NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def width(module: nn.Module, image_size: int, what: str) -> int:
    """The width of the features, by a pass without data; proves that the network takes the size."""
    shape = (1, 3, image_size, image_size)
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    try:
        with torch.no_grad():
            try:
                out = torch.func.functional_call(module, state, (torch.empty(shape, device="meta"),))
            except (RuntimeError, NotImplementedError):
                # Some networks hold tensors that are neither parameters nor buffers.
                out = module(torch.zeros(shape))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise BackboneError(
            f"{what} {image_size} does not work: {first_lines(error)}; leave image_size out for "
            "the weights' own, or try a larger size or a multiple of 32"
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2:
        raise BackboneError(f"{what} {image_size} gives no vector of features for each image")
    return int(out.shape[1])


def groups(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The names of the module's state in groups from input to output."""
    matcher: Any = getattr(module, "group_matcher", None)
    if matcher is None:
        places = _places(module)
    else:
        places = group_parameters(module, matcher(coarse=False), reverse=True)
    groups: dict[int, list[str]] = {}
    for name in module.state_dict():
        groups.setdefault(_place(name, places), []).append(name)
    return tuple(tuple(groups[place]) for place in sorted(groups))


def _place(name: str, places: Mapping[str, int]) -> int:
    """The group of a parameter, or for a buffer that of the parameters beside or around it."""
    if name in places:
        return places[name]
    scope = name
    while scope:
        scope = scope.rpartition(".")[0]
        near = [place for other, place in places.items() if other.startswith(f"{scope}.")]
        if near:
            return near[0]
    return min(places.values(), default=0)


def _places(module: nn.Module) -> dict[str, int]:
    """The groups of parameters by blocks, of networks that register children in forward order."""
    places: dict[str, int] = {}
    place = -1
    for prefix, unit in _units(module, ""):
        members = [f"{prefix}.{name}" for name, _ in unit.named_parameters()]
        # A norm goes with what it normalises, the layer before it.
        if members and (place < 0 or not isinstance(unit, NORMS)):
            place += 1
        places |= dict.fromkeys(members, place)
    # What stands in no block is a token or an embedding, added next to the input.
    return {name: places.get(name, 0) for name, _ in module.named_parameters()}


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of a network with their names, stages unrolled."""
    stages = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Encoder, MaxVitBlock)
    for name, child in module.named_children():
        of_blocks = any(any(each.children()) for each in child.children())
        if isinstance(child, stages) and (of_blocks or not prefix):
            yield from _units(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def digest_of(module: nn.Module) -> str:
    """A digest of the names, types, shapes and bytes of the module's state."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
