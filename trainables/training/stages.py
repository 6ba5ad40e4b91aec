"""The stages of a trunk: where its maps change their shape, and what they hold on the average.

The last features of a network that was trained for other classes have thrown away what those classes did not
need. What its stages computed on the way is still there: Evci et al., "Head2Toe: Utilizing Intermediate
Representations for Better Transfer Learning", ICML 2022. Each stage is pooled to one vector: a map to the
mean over its pixels, tokens to the class token, where there is one, and the mean of the others. A trunk
with a method `pooled`, of an output and the trunk's own inputs, pools its stages itself: one of texts leaves
out the padding.

Where things are in a picture is lost in such a mean. On a grid a map is pooled to the means over 3 x 3
fields, or fewer where the network is wide, and to its deviation over all pixels; so are tokens that lie in a
square. A stage on a grid has the number of fields along a side behind its name: `blocks.2:3`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["StagedTrunk", "features_read", "grid_names", "pooled_stages", "stage_names", "stage_width"]

_FIELDS = 3
"""Fields along a side of a grid, at most."""
_WIDEST = 10_000
"""Features on a grid, at most, as long as its sides can have fewer fields."""
_FEW = 3
"""A network with fewer different shapes is the same all through, and is cut into parts of one length."""
_PARTS = 4
_VARIANCE = 1e-5


class StagedTrunk(nn.Module):
    """A trunk that gives what several heads read of it, one after the other, in place of its features.

    Args:
        trunk: normalised float [B, 3, s, s] to features.
        asked: by head, the stages that it reads, as `stage_names` gives them; none: the trunk's features.
    """

    def __init__(self, trunk: nn.Module, asked: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.trunk = trunk
        self.asked = tuple(map(tuple, asked))
        self.training = trunk.training

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(features_read(self.trunk, self.asked, images), 1)


def pooled_stages(trunk: nn.Module, names: Sequence[str], images: Tensor) -> Tensor:
    """The pooled outputs of the named stages, float [B, F], in one pass over the images."""
    return features_read(trunk, [names], images)[0]


def features_read(trunk: nn.Module, asked: Sequence[Sequence[str]], images: Tensor) -> list[Tensor]:
    """What several heads read of a trunk, each float [B, F], in one pass over the images.

    Args:
        trunk: normalised images to features.
        asked: by head, the stages whose pooled outputs it reads; none: the trunk's features.
        images: what the trunk takes.
    """
    pool = _pooling(trunk, images)
    pooled: dict[str, Tensor] = {}

    def keep(name: str, fields: int) -> Callable[[nn.Module, Any, Any], None]:
        # At once: what comes next may write its result over the output.
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            pooled[name] = pool(output, fields)

        return hook

    hooks = []
    for name in dict.fromkeys(name for names in asked for name in names):
        module, _, fields = name.partition(":")
        hooks.append(trunk.get_submodule(module).register_forward_hook(keep(name, int(fields or 0))))
    try:
        features: Tensor = trunk(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat([pooled[name] for name in names], 1) if names else features for names in asked]


@functools.lru_cache(maxsize=8)
def stage_names(
    trunk: nn.Module, groups: tuple[tuple[str, ...], ...], shape: tuple[int, ...]
) -> tuple[str, ...]:
    """The modules of a trunk that end its stages, from input to output.

    A stage is a run of blocks whose outputs have one shape; where all blocks' outputs have (as in a vision
    transformer), up to four blocks at even distances. The stem, and layers after the last block, are none.

    Args:
        trunk: in evaluation mode.
        groups: names of its parameters, ordered, as `Backbone.groups` has them.
        shape: of one of the inputs that it takes, [3, s, s] of images.

    Raises:
        ValueError: for a network that shows no stages.
    """
    shapes = _shapes(trunk, shape)
    ends = [name for name in _blocks(trunk, groups) if name in shapes]
    if not ends:
        raise ValueError("the network shows no stages; take features: last")
    runs: list[list[str]] = []
    for name in ends:
        if runs and shapes[runs[-1][-1]] == shapes[name]:
            runs[-1].append(name)
        else:
            runs.append([name])
    if len(runs) < _FEW:
        count = min(_PARTS, len(ends))
        return tuple(ends[len(ends) * (part + 1) // count - 1] for part in range(count))
    return tuple(_end(run, ends, shapes) for run in runs)


@functools.lru_cache(maxsize=8)
def grid_names(
    trunk: nn.Module, groups: tuple[tuple[str, ...], ...], shape: tuple[int, ...]
) -> tuple[str, ...]:
    """The same, each on a grid of as many fields as a head can read."""
    names = stage_names(trunk, groups, shape)
    grids = (tuple(f"{name}:{fields}" for name in names) for fields in range(_FIELDS, 1, -1))
    narrow = (grid for grid in grids if stage_width(trunk, grid, shape) <= _WIDEST)
    return next(narrow, tuple(f"{name}:1" for name in names))


@functools.lru_cache(maxsize=8)
def stage_width(trunk: nn.Module, names: tuple[str, ...], shape: tuple[int, ...]) -> int:
    """How many features `pooled_stages` gives of an image; without names, how many the trunk gives."""
    with torch.no_grad():
        return int(pooled_stages(trunk, names, _blank(trunk, 1, shape)).shape[1])


def _blocks(trunk: nn.Module, groups: Sequence[Sequence[str]]) -> list[str]:
    """The last module of each group with more than one kernel; where no group has any, of each group."""
    kernels = {name for name, p in trunk.named_parameters() if p.numel() > max(p.shape, default=1)}
    inside = [_outermost(group, trunk) for group in groups]
    counts = [{name: sum(each.startswith(f"{name}.") for each in kernels) for name in own} for own in inside]
    blocks = [name for own in counts for name in [name for name in own if own[name] > 1][-1:]]
    return blocks or [list(own)[-1] for own in counts if any(own.values())]


def _outermost(group: Sequence[str], trunk: nn.Module) -> list[str]:
    """The largest modules whose whole state is in the group, in its order."""
    own = set(group)
    state = list(trunk.state_dict())
    found = []
    for name in group:
        parts = name.split(".")[:-1]
        prefixes = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        found += [p for p in prefixes if own.issuperset(n for n in state if n.startswith(f"{p}."))][:1]
    return list(dict.fromkeys(found))


def _common(names: Sequence[str]) -> str:
    """The innermost module that holds all the named ones; empty if that is the network."""
    common: list[str] = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _end(run: Sequence[str], ends: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The module that ends a run of blocks: one that holds just them and joins what they give, or the last.

    The layers of a dense block each give a few channels; the block gives all of them.
    """
    around, last = _common(run), run[-1]
    holds = [name for name in ends if name == around or name.startswith(f"{around}.")]
    if len(run) > 1 and holds == list(run) and around in shapes and shapes[around][1:] == shapes[last][1:]:
        return around
    return last


def _shapes(trunk: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Channels and positions of what each module gives, where that is one tensor an image."""
    found: dict[str, tuple[int, ...]] = {}
    calls: dict[str, int] = {}

    def see(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.ndim in (2, 3, 4) and len(output) == len(images):
                channels = output.shape[1 if _is_map(output) else -1]
                found[name] = (channels, output[0].numel() // channels)

        return hook

    images = _blank(trunk, 2, shape)
    hooks = [module.register_forward_hook(see(name)) for name, module in trunk.named_modules() if name]
    try:
        with torch.no_grad():
            trunk(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: shape for name, shape in found.items() if calls[name] == 1}


def _blank(trunk: nn.Module, count: int, shape: tuple[int, ...]) -> Tensor:
    like = next(trunk.parameters())
    return torch.zeros(count, *shape, device=like.device, dtype=like.dtype)


def _is_map(output: Tensor) -> bool:
    """Whether the channels of a map come first; inputs are square, so the positions' axes are alike."""
    return output.ndim == 4 and output.shape[2] == output.shape[3]


def _prefix_tokens(trunk: nn.Module) -> int:
    """How many tokens come before those of the patches, the class token first."""
    return int(getattr(trunk, "num_prefix_tokens", 1 if hasattr(trunk, "class_token") else 0))


def _pooling(trunk: nn.Module, inputs: Tensor) -> Callable[[Tensor, int], Tensor]:
    """What makes a vector an input of the output of a stage, on a grid of so many fields a side."""
    own = getattr(trunk, "pooled", None)
    if own is not None:
        return lambda output, fields: own(output, inputs=inputs)
    return functools.partial(_pooled, prefix=_prefix_tokens(trunk))


def _pooled(output: Tensor, fields: int, prefix: int) -> Tensor:
    if output.ndim == 4:
        if fields:
            return _on_grid(output if _is_map(output) else output.permute(0, 3, 1, 2), fields)
        return output.mean((2, 3) if _is_map(output) else (1, 2))
    if output.ndim == 3:
        tokens = output[:, prefix:]
        side = math.isqrt(tokens.shape[1])
        if fields and side * side == tokens.shape[1]:
            means = _on_grid(tokens.transpose(1, 2).unflatten(2, (side, side)), fields)
        else:
            means = tokens.mean(1)
        return torch.cat([output[:, 0], means], 1) if prefix else means
    return output


def _on_grid(maps: Tensor, fields: int) -> Tensor:
    """The means of maps [B, C, H, W] over a grid's fields, and their deviation: [B, C * fields**2 + C].

    Products with constant matrices, which every format that a model is exported in has.
    """
    rows, columns = (_fields(size, fields).to(maps) for size in maps.shape[2:])
    pixels = maps.permute(0, 2, 3, 1)  # as they lie in memory
    across = (rows @ pixels.flatten(2)).unflatten(2, (maps.shape[3], maps.shape[1]))
    means = (columns @ across).permute(0, 3, 1, 2).flatten(1)
    centred = pixels.flatten(1, 2)
    centred = centred - centred.mean(1, keepdim=True)
    variance = centred.square().mean(1)  # torch's own takes four times as long
    return torch.cat([means, (variance + _VARIANCE).sqrt()], 1)  # of one pixel it has a slope too


def _fields(size: int, fields: int) -> Tensor:
    """What takes the means over so many fields of `size` pixels, which overlap if they must: [f, size]."""
    count = min(fields, size)
    bounds = [(place * size // count, -(-(place + 1) * size // count)) for place in range(count)]
    # Of numbers, which are a constant wherever this is traced.
    return torch.tensor(
        [[(first <= pixel < last) / (last - first) for pixel in range(size)] for first, last in bounds]
    )
