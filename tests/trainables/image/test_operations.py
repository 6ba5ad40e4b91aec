from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from trainables.image import operations as ops
from trainables.image.ranges import Ranges, magnitudes

SIDE = 37


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def photos(count: int, side: int = SIDE) -> torch.Tensor:
    """Smooth images with noise on them, each channel with a range of its own."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    noise = torch.rand(count, 3, side, side, generator=generator) * 0.1
    return (20 + 200 * (0.9 * smooth + noise)).to(torch.uint8)


def differences(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    assert ours.dtype == theirs.dtype == torch.uint8
    assert ours.shape == theirs.shape
    return (ours.int() - theirs.int()).abs()


def sheared(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    moved: torch.Tensor = reference.affine(image, 0.0, [0, 0], 1.0, shear, center=[0, 0])
    return moved


def shifted(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    moved: torch.Tensor = reference.affine(image, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0])
    return moved


REFERENCE: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "ShearX": lambda image, m: sheared(image, m, 0),
    "ShearY": lambda image, m: sheared(image, 0, m),
    "TranslateX": lambda image, m: shifted(image, m, 0),
    "TranslateY": lambda image, m: shifted(image, 0, m),
    "Rotate": lambda image, m: reference.rotate(image, m),
    "Brightness": lambda image, m: reference.adjust_brightness(image, 1 + m),
    "Color": lambda image, m: reference.adjust_saturation(image, 1 + m),
    "Contrast": lambda image, m: reference.adjust_contrast(image, 1 + m),
    "Sharpness": lambda image, m: reference.adjust_sharpness(image, 1 + m),
    "Posterize": lambda image, m: reference.posterize(image, int(m)),
    "Solarize": lambda image, m: reference.solarize(image, 255 * m),
    "AutoContrast": lambda image, m: reference.autocontrast(image),
    "Equalize": lambda image, m: reference.equalize(image),
    "Invert": lambda image, m: reference.invert(image),
}
MAGNITUDES = {
    "Posterize": [8.0, 5.0, 4.0, 2.0, 1.0, 0.0],
    "Solarize": [1.0, 0.9, 0.5, 0.31, 0.1, 0.0],
    "Rotate": [0.0, 4.5, -30.0, 90.0, 101.3, -135.0],
    "TranslateX": [0.0, 1.0, -3.7, 12.2, -32.0, 32.0],
    "TranslateY": [0.0, 1.0, -3.7, 12.2, -32.0, 32.0],
}


def test_every_operation_has_a_reference() -> None:
    assert set(REFERENCE) == set(ops.KERNELS)


@pytest.mark.parametrize("name", ops.KERNELS)
@pytest.mark.parametrize("side", [SIDE, 64])
def test_operation_equals_torchvision_image_by_image(name: str, side: int) -> None:
    magnitudes = MAGNITUDES.get(name, [0.0, 0.13, -0.29, 0.5, -0.77, 0.99])
    images = photos(len(magnitudes), side)
    before = images.clone()
    ours = ops.KERNELS[name](images, torch.tensor(magnitudes))
    theirs = torch.stack([REFERENCE[name](image, m) for image, m in zip(images, magnitudes, strict=True)])
    off = differences(ours, theirs)
    if name in (
        "Posterize",
        "Solarize",
        "AutoContrast",
        "Equalize",
        "Invert",
        "TranslateX",
        "TranslateY",
    ):
        assert off.max() == 0
    elif name in ops.GEOMETRY:
        # Where a reading lies half-way between pixels, as along a diagonal, either is the nearest.
        assert (off > 0).any(1).flatten(1).sum(1).max() <= 2 * side
    else:
        assert off.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast", "Sharpness"])
def test_flat_and_tiny_images_equal_torchvision(name: str) -> None:
    flat = torch.full((1, 3, 9, 9), 77, dtype=torch.uint8)
    two = torch.tensor([0, 255], dtype=torch.uint8).repeat(122)[: 3 * 81].view(1, 3, 9, 9)
    tiny = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    for image in (flat, two, tiny):
        ours = ops.KERNELS[name](image, torch.tensor([0.5]))
        assert differences(ours[0], REFERENCE[name](image[0], 0.5)).max() <= 1


def test_geometry_keeps_grey_images_grey_and_fills_with_black() -> None:
    grey = photos(4)[:, :1].expand(-1, 3, -1, -1).contiguous().clamp(min=1)
    for name in ops.GEOMETRY:
        strong = 20.0 if name.startswith("Translate") else 40.0 if name == "Rotate" else 0.8
        out = ops.KERNELS[name](grey, torch.full((4,), strong))
        assert torch.equal(out[:, 0], out[:, 1])
        assert torch.equal(out[:, 0], out[:, 2])
        assert (out == 0).any()


def test_applied_touches_only_what_chose_and_ignores_order() -> None:
    images = photos(40)
    names = ("Identity", *ops.KERNELS)
    choice = torch.arange(40) % (len(names) + 1) - 1
    magnitude = torch.where(choice >= names.index("Brightness"), 0.4, 5.0)
    out = ops.applied(images, names, choice, magnitude)
    untouched = choice <= 0
    assert torch.equal(out[untouched], images[untouched])
    assert (out[~untouched] != images[~untouched]).flatten(1).any(1).float().mean() > 0.8
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.applied(images[order], names, choice[order], magnitude[order]), out[order])
    alone = [
        ops.applied(images[i : i + 1], names, choice[i : i + 1], magnitude[i : i + 1]) for i in range(40)
    ]
    assert torch.equal(torch.cat(alone), out)


def test_magnitudes_are_those_of_torchvision() -> None:
    wide = Ranges(shear=0.99, translate_pixels=32.0, rotate=135.0, enhance=0.99, bits=(8, 2))
    for ranges, theirs in ((wide, v2.TrivialAugmentWide), (Ranges(), v2.RandAugment)):
        space = theirs._AUGMENTATION_SPACE
        table = magnitudes(ranges, tuple(space), 31, 110)
        for row, (name, (values, signed)) in zip(table, space.items(), strict=True):
            expected = values(31, 110, 110)
            if expected is None:
                assert row.abs().max() == 0
                continue
            if name.startswith("Translate"):
                assert torch.equal(row, (expected + 1e-4).trunc())
            else:
                torch.testing.assert_close(row, expected.float())
            assert signed == (name in ops.SIGNED)


@pytest.mark.parametrize("chain", [1, 2, 3, 8])
def test_upright_ranges_never_turn_a_line_by_more_than_15_degrees(chain: int) -> None:
    ranges = Ranges(shear=0.99, rotate=135.0).upright(chain)
    angles = torch.linspace(0, math.pi, 721).double()
    lines = torch.stack([angles.cos(), angles.sin()])
    slope = torch.tensor([[1.0, ranges.shear], [0.0, 1.0]]).double()
    turned = slope @ lines
    cosine = (turned * lines).sum(0) / turned.norm(dim=0)
    worst = max(ranges.rotate, math.degrees(float(cosine.clamp(-1, 1).acos().max())))
    assert 14.9 < worst * chain <= 15.001
    assert ranges.translate <= 0.2


def test_uniform_is_even_and_depends_on_seed_stream_and_place() -> None:
    seeds = ops.derived_seeds(3, torch.arange(20_000))
    draws = ops.uniform(seeds, 1, 4)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.unbind(1):
        counts = torch.histc(column, 20, 0, 1)
        # 19 degrees of freedom: 50 is exceeded once in ten thousand times.
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 50
    joint = torch.corrcoef(torch.cat([draws, ops.uniform(seeds, 2, 4)], dim=1).T)
    assert float((joint - torch.eye(8)).abs().max()) < 0.03
    assert torch.equal(ops.uniform(seeds[5:9], 1, 2), draws[5:9, :2])


def test_splitmix_matches_the_published_sequence() -> None:
    # The first outputs of SplitMix64 from the state 1234567.
    states = 1234567 + torch.arange(1, 4) * ops._GOLDEN
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(v) % 2**64 for v in ops._mixed(states)] == expected


def test_derived_seeds_differ_by_root_part_and_order() -> None:
    seeds = [
        int(ops.derived_seeds(*parts))
        for parts in ((0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0), (0,), (-1, 0), (2**63 - 1, 0))
    ]
    assert len(set(seeds)) == len(seeds)
    assert len(set(ops.derived_seeds(7, 2, torch.arange(10_000)).tolist())) == 10_000


def test_warped_by_the_unit_matrix_is_the_image() -> None:
    images = photos(19)
    same = torch.eye(2, 3).repeat(19, 1, 1)
    assert torch.equal(ops.warped(images, same, SIDE), images)


@pytest.mark.parametrize("name", ops.KERNELS)
def test_an_image_alone_equals_the_image_in_a_batch(name: str) -> None:
    images = photos(23, 31)
    draws = ops.uniform(ops.derived_seeds(1, torch.arange(23)), 0, 1)[:, 0]
    strength = (draws * 8).floor() if name == "Posterize" else draws
    out = ops.KERNELS[name](images, strength)
    for start in (0, 7, 22):
        alone = ops.KERNELS[name](images[start : start + 1], strength[start : start + 1])
        assert torch.equal(alone[0], out[start])
