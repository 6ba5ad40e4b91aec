"""Folded trunks compute the same in fewer passes, or are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.image import backbones
from trainables.training.folding import folded


def norms(module: nn.Module) -> int:
    return sum(isinstance(each, _BatchNorm) for each in module.modules())


def shaken(module: nn.Module) -> nn.Module:
    """With statistics as if it had seen images: a fresh BatchNorm folds to nothing."""
    numbers = torch.Generator().manual_seed(1)
    for each in module.modules():
        if isinstance(each, _BatchNorm):
            for tensor in (each.weight.data, each.running_var):
                tensor.uniform_(0.5, 2.0, generator=numbers)
            for tensor in (each.bias.data, each.running_mean):
                tensor.normal_(generator=numbers)
    return module.eval()


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "resnet18", "mobilenet_v3_small", "densenet121", "timm/regnetx_002"]
)
def test_a_folded_trunk_gives_the_same_features(name: str) -> None:
    weights = "pretrained" if name == "efficientnet_lite0" else "none"
    backbone = backbones.build(name, weights=weights, image_size=64)
    trunk = backbone.module if weights == "pretrained" else shaken(backbone.module)
    before = {key: tensor.clone() for key, tensor in trunk.state_dict().items()}
    copy = folded(trunk, (3, 64, 64))
    assert norms(copy) < norms(trunk)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = trunk(images), copy(images)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
    assert all(torch.equal(tensor, before[key]) for key, tensor in trunk.state_dict().items())


class Twice(nn.Module):
    """Uses what the convolution gives a second time, behind the BatchNorm's back."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        return (self.norm(maps) + maps).mean((2, 3))


def test_what_does_not_fold_is_left_alone() -> None:
    trunk = shaken(Twice())
    assert folded(trunk, (3, 16, 16)) is trunk


def test_a_trunk_without_batchnorm_is_copied_as_it_is() -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(folded(trunk, (3, 16, 16))(images), trunk(images))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_rounding_does_not_keep_a_trunk_from_folding() -> None:
    trunk = shaken(backbones.build("resnet18", weights="none", image_size=64).module).cuda()
    assert norms(folded(trunk, (3, 64, 64))) == 0
