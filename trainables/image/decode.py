"""One image file to one image tensor, and one image to one frame."""

from __future__ import annotations

import errno
import importlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from trainables.errors import DataError
from trainables.image.endings import EXTENSIONS

__all__ = [
    "EXTENSIONS",
    "INTERPOLATIONS",
    "MAX_PIXELS",
    "Decoded",
    "UnreadableImage",
    "decode",
    "pixels",
    "read",
    "to_frame",
]

MAX_PIXELS = 100_000_000
"""More pixels than this in one image are taken for a decompression bomb."""

INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}

# Only these of Pillow's formats are tried: a file decides by its first bytes which parser reads it,
# and some parsers (EPS) start other programs.
_PLUGINS = ("Jpeg", "Png", "Gif", "WebP", "Tiff", "Bmp", "Ppm", "Jpeg2K", "Avif")
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")

# A value of 65535 becomes 255: v * 255 / 65535, rounded.
_SIXTEEN_TO_EIGHT = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)

# What undoes each value of the EXIF tag Orientation.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A wider image is cut before it is resized: 1 x 50,000 pixels would else pass through gigabytes.
WIDEST = 16


class UnreadableImage(DataError):
    """A file that is no image, is cut short, or is not safe to decode.

    Attributes:
        reason: why, in a few words.
    """

    def __init__(self, reason: str, name: str = "the given bytes") -> None:
        super().__init__(
            f"{name} cannot be read as an image: {reason}; "
            f"give a whole file in one of the formats {', '.join(_FORMATS)}"
        )
        self.reason = reason
        self.name = name

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return type(self), (self.reason, self.name)


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """An image and how its file held it.

    Attributes:
        image: uint8 [3, H, W].
        mode: Pillow's name of the file's pixel format, such as `RGB`, `L` or `I;16`.
    """

    image: Tensor
    mode: str


def decode(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The first picture of an image file, upright, in colour and on white: uint8 [3, H, W].

    Raises:
        UnreadableImage: for anything but a whole image of at most `max_pixels` pixels.
    """
    return read(source, max_pixels).image


def _bytes(path: Path) -> bytes:
    """What a file holds; nobody waits for who might write into a pipe.

    Raises:
        OSError: if it cannot be read, or is no regular file.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read()


def read(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Decoded:
    """As `decode`, with the pixel format that the file has."""
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else _bytes(source)
    except FileNotFoundError:
        raise UnreadableImage("there is no such file", name) from None
    except OSError as exc:
        raise UnreadableImage(exc.strerror or str(exc), name) from exc
    try:
        with _opened(data, max_pixels) as image:
            mode = image.mode
            image.load()
            pixels = _rgb(_upright(image))
    except _Refused as exc:
        raise UnreadableImage(str(exc), name) from None
    except MemoryError:
        raise
    except Exception as exc:
        # Parsers of untrusted bytes raise whatever they stumble on: OSError, SyntaxError,
        # struct.error, EOFError, and others. All of them mean the same to the user.
        raise UnreadableImage(_one_line(exc), name) from exc
    return Decoded(image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), mode=mode)


def pixels(image: Image.Image) -> Tensor:
    """A picture that is decoded already, upright, in colour and on white: uint8 [3, H, W].

    Raises:
        UnreadableImage: where its pixels have no known range.
    """
    try:
        found = _rgb(_upright(image))
    except _Refused as exc:
        raise UnreadableImage(str(exc), "the given picture") from None
    return torch.from_numpy(found).permute(2, 0, 1).contiguous()


def to_frame(image: Tensor, size: int, interpolation: str) -> Tensor:
    """The centre square of an image, antialiased: uint8 [..., 3, H, W] -> [..., 3, size, size].

    The shorter side is resized to `size`, then the longer one is cut to it. Works on a batch too,
    with the same bits as image by image.

    Raises:
        ValueError: for an interpolation other than `bilinear` and `bicubic`, or a size below 1.
    """
    if interpolation not in INTERPOLATIONS or size < 1:
        raise ValueError(
            f"a frame of size {size} with interpolation {interpolation!r} was asked for, but the "
            f"size must be at least 1 and the interpolation one of {', '.join(INTERPOLATIONS)}"
        )
    height, width = image.shape[-2:]
    longest = WIDEST * min(height, width)
    if max(height, width) > longest:
        image = functional.center_crop(image, [min(height, longest), min(width, longest)])
    # Strides choose the kernel that resizes; one layout, one result.
    image = functional.resize(
        image.contiguous(), [size], interpolation=INTERPOLATIONS[interpolation], antialias=True
    )
    frame: Tensor = functional.center_crop(image, [size, size]).contiguous()
    return frame


class _Refused(Exception):
    """A file that is refused by a rule of ours; the message is the reason."""


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    """The image with its header read and no pixel decoded.

    `Image.open` is not used: its limit of pixels, and whether that is a warning or an error, are
    global to the process. Here the limit is an argument.
    """
    if not data:
        raise _Refused("the file is empty (0 bytes)")
    reasons = []
    for name in _formats():
        factory, accept = Image.OPEN[name]
        accepted = accept(data[:16]) if accept else True
        if isinstance(accepted, str):
            reasons.append(accepted)
        elif accepted:
            image: Image.Image = factory(io.BytesIO(data), "")
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise _Refused(
                    f"{image.width} x {image.height} = {pixels:,} pixels are more than the limit "
                    f"of {max_pixels:,} (max_pixels), as in a decompression bomb; if it is none, raise "
                    "it with --set data.max_pixels=N"
                )
            return image
    raise _Refused("; ".join(["its first bytes are not those of a known image format", *reasons]))


def _formats() -> list[str]:
    """The formats that this Pillow was built with."""
    return [name for name in _FORMATS if name in Image.OPEN]


def _register() -> None:
    for name in _PLUGINS:
        try:
            importlib.import_module(f"PIL.{name}ImagePlugin")
        except ImportError:  # older Pillows have no AVIF
            continue


_register()


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be seen."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels are whole; a broken EXIF block only means that no turn is known
        orientation = 1
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3]: 16 bits scaled to 8, transparency composited on white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = _SIXTEEN_TO_EIGHT[np.clip(np.asarray(image), 0, 65535)]
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise _Refused(
            f"its 32-bit pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return np.array(image.convert("RGB"))


def _one_line(exc: Exception) -> str:
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
