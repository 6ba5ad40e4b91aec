"""The resizing of exported graphs against the one that networks are trained with."""

from __future__ import annotations

import pytest
import torch

from trainables.image.decode import INTERPOLATIONS, to_frame
from trainables.image.resizing import Resizing
from trainables.image.transforms import center_crop

SIZES = [(8, 8), (28, 28), (50, 40), (41, 300), (300, 41), (225, 256), (601, 400), (1, 50), (50, 1), (97, 98)]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("frame", "side"), [(73, 64), (37, 32), (64, 64)])
def test_pixels_are_those_of_the_training(interpolation: str, frame: int, side: int) -> None:
    resizing = Resizing(frame, side, interpolation)
    noise = torch.Generator().manual_seed(0)
    for height, width in SIZES:
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=noise)
        expected = center_crop(to_frame(images, frame, interpolation), side).float()
        found = resizing(images.permute(0, 2, 3, 1))
        difference = (found - expected).abs()
        assert difference.max() <= 1, (height, width)
        assert (difference > 0).float().mean() < 1e-3, (height, width)


def test_a_frame_is_left_as_it_is() -> None:
    frames = torch.randint(0, 256, (3, 3, 73, 73), dtype=torch.uint8)
    found = Resizing(73, 64, "bicubic")(frames.permute(0, 2, 3, 1))
    assert torch.equal(found, center_crop(frames, 64).float())
