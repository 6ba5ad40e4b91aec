"""One image file of every hard kind."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from trainables.errors import DataError
from trainables.image.decode import MAX_PIXELS, UnreadableImage, decode, read, to_frame

ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def corner(data: bytes) -> list[int]:
    return decode(data)[:, 0, 0].tolist()


def test_colour_is_kept_exactly() -> None:
    pixels = noise(5, 7)
    image = decode(encoded(Image.fromarray(pixels)))
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


def test_grey_has_three_equal_channels() -> None:
    pixels = noise(4, 6, channels=1)
    image = decode(encoded(Image.fromarray(pixels)))
    assert torch.equal(image, torch.from_numpy(pixels).expand(3, 4, 6))


def test_transparency_is_composited_on_white() -> None:
    half = Image.new("RGBA", (2, 2), (200, 0, 0, 128))
    red, green, blue = corner(encoded(half))
    assert red == pytest.approx(200 * 128 / 255 + 127, abs=1)
    assert green == blue == pytest.approx(127, abs=1)
    assert corner(encoded(Image.new("LA", (2, 2), (0, 0)))) == [255, 255, 255]


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert corner(encoded(image)) == [10, 20, 30]
    assert corner(encoded(image, transparency=1)) == [255, 255, 255]
    assert read(encoded(image)).mode == "P"


def test_transparent_colour_of_grey_and_colour_png() -> None:
    assert corner(encoded(Image.new("L", (2, 2), 7), transparency=7)) == [255, 255, 255]
    colour = Image.new("RGB", (2, 2), (1, 2, 3))
    assert corner(encoded(colour, transparency=(1, 2, 3))) == [255, 255, 255]


def test_print_colours() -> None:
    assert corner(encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")) == [255, 0, 0]


def test_one_bit() -> None:
    assert corner(encoded(Image.new("1", (2, 2), 1))) == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    wide = np.array([[0, 128, 129, 257, 32767, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(wide), kind))
    assert image[0, 0].tolist() == [0, 0, 1, 1, 127, 255]
    assert torch.equal(image[0], image[2])


def test_thirty_two_bits_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="32-bit"):
        decode(encoded(Image.new("F", (2, 2)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "turns", "is_mirrored"),
    [(1, 0, 0), (2, 0, 1), (3, 2, 0), (4, 2, 1), (5, 1, 1), (6, 3, 0), (7, 3, 1), (8, 1, 0)],
)
def test_exif_orientation(kind: str, orientation: int, turns: int, is_mirrored: int) -> None:
    # One bright quarter tells all eight orientations apart, if it is not square.
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:16, :16] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = decode(encoded(Image.fromarray(pixels), kind, exif=exif))
    # Whoever is to see `upright` turned it this way: mirrored first, then quarter turns.
    seen = np.rot90(pixels[:, ::-1] if is_mirrored else pixels, turns)
    assert image.shape[1:] == seen.shape[:2]
    assert (torch.from_numpy(seen.copy()).permute(2, 0, 1).int() - image.int()).abs().max() < 32


def test_broken_exif_does_not_cost_the_image() -> None:
    data = encoded(Image.fromarray(noise(8, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(data).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 255, 0))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], duration=50, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert corner(data) == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_cut_short(kind: str) -> None:
    data = encoded(Image.fromarray(noise(64, 64)), kind)
    assert decode(data).shape == (3, 64, 64)
    with pytest.raises(UnreadableImage):
        decode(data[: len(data) // 2])


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="0 bytes") as empty:
        decode(b"")
    assert empty.value.reason == "the file is empty (0 bytes)"
    with pytest.raises(UnreadableImage, match="not those of a known image format"):
        decode(b"<html>not found</html>")
    with pytest.raises(UnreadableImage, match="no such file"):
        decode(tmp_path / "absent.png")
    with pytest.raises(UnreadableImage, match="directory"):
        decode(tmp_path)


def test_postscript_is_never_run() -> None:
    with pytest.raises(UnreadableImage, match="known image format"):
        decode(encoded(Image.new("RGB", (2, 2)), "EPS"))


def test_bombs_are_refused_whatever_pillow_s_own_limit_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
        for side in (10_500, 20_000, 60_000):
            with pytest.raises(UnreadableImage, match="decompression bomb"):
                decode(bomb(side, side))
        assert before == (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    assert 10_500**2 > MAX_PIXELS
    with pytest.raises(UnreadableImage, match=r"limit of 11 \(max_pixels\)"):
        decode(encoded(Image.new("L", (4, 3))), max_pixels=11)
    assert decode(encoded(Image.new("L", (4, 3))), max_pixels=12).shape == (3, 3, 4)


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("why", "a.png")))
    assert (error.reason, error.name, "a.png" in str(error)) == ("why", "a.png", True)
    several = pickle.loads(pickle.dumps(DataError(["one", "two"])))
    assert several.problems == ("one", "two")
    assert str(several).splitlines()[1:] == ["- one", "- two"]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (33, 33), (7, 9)])
def test_a_frame_is_the_antialiased_centre(height: int, width: int, interpolation: str) -> None:
    image = torch.from_numpy(noise(height, width)).permute(2, 0, 1)
    frame = to_frame(image, 24, interpolation)
    mode = InterpolationMode(interpolation)
    expected = functional.resize(image.contiguous(), [24], interpolation=mode, antialias=True)
    assert torch.equal(frame, functional.center_crop(expected, [24, 24]))
    assert frame.shape == (3, 24, 24)
    assert frame.is_contiguous()


@pytest.mark.parametrize("size", [8, 28, 33, 96])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (32, 20), (64, 64)])
def test_a_batch_and_one_channel_give_the_same_bits(height: int, width: int, size: int) -> None:
    images = torch.stack([torch.from_numpy(noise(height, width, seed=s)).permute(2, 0, 1) for s in range(4)])
    for interpolation in ("bilinear", "bicubic"):
        frames = to_frame(images, size, interpolation)
        alone = torch.stack([to_frame(image, size, interpolation) for image in images])
        assert torch.equal(frames, alone)
        grey = images[:, :1]
        assert torch.equal(
            to_frame(grey, size, interpolation).expand(-1, 3, -1, -1),
            to_frame(grey.expand(-1, 3, -1, -1), size, interpolation),
        )


def test_tiny_long_and_large_images() -> None:
    assert to_frame(decode(encoded(Image.new("RGB", (1, 1), "red"))), 16, "bicubic").shape[-1] == 16
    assert to_frame(torch.zeros(3, 1, 200_000, dtype=torch.uint8), 64, "bilinear").shape[-1] == 64
    large = decode(encoded(Image.new("RGB", (3000, 2000), "blue"), "JPEG"))
    assert to_frame(large, 32, "bilinear").shape == (3, 32, 32)


def test_frames_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="nearest"):
        to_frame(torch.zeros(3, 4, 4, dtype=torch.uint8), 4, "nearest")
    with pytest.raises(ValueError, match="size 0"):
        to_frame(torch.zeros(3, 4, 4, dtype=torch.uint8), 0, "bilinear")


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImage, match="no regular file"):
        decode(tmp_path / "pipe.png")
