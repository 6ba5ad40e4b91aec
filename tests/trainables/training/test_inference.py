from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainables.image import backbones
from trainables.training.inference import engine, fast_passes

CPU = torch.device("cpu")


def trunk_of(name: str) -> nn.Module:
    return backbones.build(name, weights="none", image_size=64).module.eval()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("efficientnet_lite0", "onnxruntime"), ("timm/convnext_atto", "onnxruntime"), ("resnet18", "torch")],
)
def test_the_features_are_the_trunks(name: str, expected: str) -> None:
    trunk = trunk_of(name)
    assert engine(trunk, CPU).split()[0] == expected
    passes = fast_passes(trunk, (3, 64, 64))
    assert isinstance(passes, nn.Module) == (expected == "torch")
    images = torch.randn(70, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = trunk(images), passes(images)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    torch.testing.assert_close(passes(images[:3]), found[:3], rtol=0, atol=1e-6 * float(wanted.abs().max()))


class Odd(nn.Module):
    """Has a grouped convolution, and something that no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, groups=3)

    def forward(self, images: Tensor) -> Tensor:
        spectrum = torch.linalg.eigvalsh(self.convolution(images)[:, 0])
        return spectrum.float()


def test_what_onnx_cannot_hold_stays_torchs() -> None:
    trunk = Odd().eval()
    passes = fast_passes(trunk, (3, 8, 8))
    assert isinstance(passes, nn.Module)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(passes(images), trunk(images))


class Drifting(nn.Module):
    """Computes what it does only while torch runs it: the graph keeps a number as it was."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, groups=3)

    def forward(self, images: Tensor) -> Tensor:
        type(self).calls += 1
        return self.convolution(images).mean((2, 3)) + type(self).calls


def test_a_graph_that_computes_something_else_is_not_used() -> None:
    assert isinstance(fast_passes(Drifting().eval(), (3, 8, 8)), nn.Module)
