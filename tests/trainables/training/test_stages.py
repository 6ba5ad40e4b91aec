from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.trainables.image.test_backbones import SMALL, TIMM, WithoutInit
from trainables.image import backbones
from trainables.image.backbones import Backbone
from trainables.training.card import ModelError
from trainables.training.hparams import HParams
from trainables.training.inference import fast_passes
from trainables.training.model import build_model
from trainables.training.stages import StagedTrunk, grid_names, pooled_stages, stage_names, stage_width

FAMILIES = {**SMALL, **{f"timm/{name}": size for name, size in TIMM.items()}}


FEW = (
    "densenet121",
    "shufflenet_v2_x0_5",
    "swin_t",
    "vgg11_bn",
    "timm/vit_tiny_patch16_224",
    "timm/resnet10t",
)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=[] if name in FEW else [pytest.mark.slow])
        for name, size in FAMILIES.items()
    ],
)
def test_every_family_has_stages(name: str, size: int) -> None:
    with WithoutInit():
        backbone = backbones.build(name, weights="none", image_size=size)
    names = stage_names(backbone.module, backbone.groups, (3, size, size))
    assert 3 <= len(names) <= 8
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        found = pooled_stages(backbone.module, names, images)
    assert found.shape == (2, stage_width(backbone.module, names, (3, size, size)))
    assert not any(module._forward_hooks for module in backbone.module.modules())


def test_the_stages_of_known_networks(small_lite0: Backbone) -> None:
    blocks = tuple(f"blocks.{number}" for number in range(7))
    assert stage_names(small_lite0.module, small_lite0.groups, (3, 32, 32)) == blocks
    assert stage_width(small_lite0.module, blocks, (3, 32, 32)) == 16 + 24 + 40 + 80 + 112 + 192 + 320
    resnet = backbones.build("resnet18", weights="none", image_size=32)
    assert stage_names(resnet.module, resnet.groups, (3, 32, 32)) == ("layer1", "layer2", "layer3", "layer4")


def test_maps_are_pooled_over_pixels_and_tokens_by_kind() -> None:
    resnet = backbones.build("resnet18", weights="none", image_size=32)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        # The mean over the last map's pixels is what this network gives itself.
        torch.testing.assert_close(pooled_stages(resnet.module, ("layer4",), images), resnet.module(images))
    vit = backbones.build("timm/vit_tiny_patch16_224", weights="none", image_size=64)
    tokens: list[torch.Tensor] = []
    vit.module.get_submodule("blocks.11").register_forward_hook(lambda _, __, out: tokens.append(out))
    with torch.no_grad():
        found = pooled_stages(vit.module, ("blocks.11",), torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(found, torch.cat([tokens[0][:, 0], tokens[0][:, 1:].mean(1)], 1))


def test_on_a_grid_maps_keep_where_things_are() -> None:
    resnet = backbones.build("resnet18", weights="none", image_size=64)
    maps: list[torch.Tensor] = []
    resnet.module.get_submodule("layer2").register_forward_hook(lambda _, __, out: maps.append(out))
    with torch.no_grad():
        found = pooled_stages(resnet.module, ("layer2:3",), torch.rand(2, 3, 64, 64))
    means = nn.functional.adaptive_avg_pool2d(maps[0], 3).flatten(1)  # of 8 x 8 pixels, so fields overlap
    deviation = maps[0].flatten(2).std(2, unbiased=False)
    torch.testing.assert_close(found, torch.cat([means, deviation], 1), atol=4e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "size"), [(name, FAMILIES[name]) for name in FEW])
def test_a_grid_is_as_fine_as_the_network_is_narrow(name: str, size: int) -> None:
    with WithoutInit():
        backbone = backbones.build(name, weights="none", image_size=size)
    names = grid_names(backbone.module, backbone.groups, (3, size, size))
    width = stage_width(backbone.module, names, (3, size, size))
    plain = stage_width(backbone.module, tuple(each.partition(":")[0] for each in names), (3, size, size))
    assert width > plain
    assert width <= 10_000 or {each.partition(":")[2] for each in names} == {"1"}
    images = torch.rand(2, 3, size, size, requires_grad=True)
    pooled_stages(backbone.module, names, images).sum().backward()  # though what follows writes over maps


def test_a_grid_has_a_slope_where_a_map_is_one_pixel() -> None:
    resnet = backbones.build("resnet18", weights="none", image_size=32)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    pooled_stages(resnet.module, ("layer4:3",), images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_the_fast_passes_give_the_same(small_lite0: Backbone) -> None:
    names = stage_names(small_lite0.module, small_lite0.groups, (3, 32, 32))
    grid = grid_names(small_lite0.module, small_lite0.groups, (3, 32, 32))
    trunk = StagedTrunk(small_lite0.module, [names, grid, ()])
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = trunk(images)
        assert expected.shape == (40, 784 + 2784 + 1280)  # the last maps have a pixel or four
        found = fast_passes(trunk, (3, 32, 32))(images)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_network_without_stages_says_so(small_lite0: Backbone) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * self.scale

    flat = Backbone("flat", "none", Flat(), 3, (("scale",),), small_lite0.preprocessing, "0")
    with pytest.raises(ModelError, match="backbone flat: the network shows no stages; take features: last"):
        build_model(flat, HParams(features="stages"), 2)
