"""Faster passes of a trunk that does not train: BatchNorm folded into the convolution before it.

In evaluation mode BatchNorm is an affine map of each channel, so a convolution and the BatchNorm after it are
one convolution with other numbers. That saves a pass over every feature map.
"""

from __future__ import annotations

import functools
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["folded"]

_TOLERANCE = 1e-4  # of the largest feature


@functools.lru_cache(maxsize=4)
def folded(trunk: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A copy of a trunk in evaluation mode that computes the same in fewer passes.

    Which BatchNorm follows which convolution is seen in one pass over two inputs. Where the copy does not
    compute the same up to rounding, the trunk itself is returned.

    Args:
        trunk: float [B, *shape] to [B, F]; its weights do not change afterwards.
        shape: of one input that it is used with.
    """
    if not any(isinstance(module, nn.Conv2d) for module in trunk.modules()):
        return trunk
    numbers = torch.Generator().manual_seed(0)
    images = torch.randn(2, *shape, generator=numbers).contiguous(memory_format=torch.channels_last)
    device = next(trunk.parameters()).device
    # On the CPU, since a GPU's convolutions round as coarsely as what is looked for.
    here = deepcopy(trunk).eval().cpu()
    with torch.no_grad():
        copy = deepcopy(here)
        for convolution, norm in _pairs(copy, images):
            _fold(copy, convolution, norm)
        copy = copy.to(memory_format=torch.channels_last).requires_grad_(False)
        expected, found = here(images), copy(images)
    same = torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max()))
    return copy.to(device) if same else trunk


def _pairs(trunk: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions that run once, each with the BatchNorm that takes what it gives."""
    made: dict[int, tuple[str, Tensor]] = {}  # holds the tensors too, so that no id is used twice
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def after(name: str, output: Tensor) -> None:
        made[id(output)] = name, output
        calls[name] = calls.get(name, 0) + 1

    def before(name: str, given: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        if id(given) in made:
            pairs.append((made[id(given)][0], name))

    hooks = []
    for name, module in trunk.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda _, __, out, name=name: after(name, out)))
        elif isinstance(module, _BatchNorm):
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: before(name, args[0])))
    try:
        trunk(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(calls[name] == 1 for name in pair)]


def _fold(trunk: nn.Module, convolution: str, norm: str) -> None:
    """Puts the folded convolution in its place, and what timm does after the affine map in the norm's."""
    before, after = trunk.get_submodule(convolution), trunk.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, _BatchNorm)
    trunk.set_submodule(convolution, fuse_conv_bn_eval(before, after))
    rest = [getattr(after, name, None) for name in ("drop", "act")]
    trunk.set_submodule(norm, nn.Sequential(*(module for module in rest if module is not None)))
