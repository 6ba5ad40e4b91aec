"""Resize and crop as part of a graph: decoded pixels of any size in, a network's pixels out.

What `decode.to_frame` and a centre crop do, written as two products with matrices that follow from the
image's height and width. Nothing in it depends on the size but the matrices' lengths, so `torch.export` and
ONNX keep the sizes open. Each product is rounded to whole pixel values, and its shares to 15 bits, as torch's
kernels of uint8 have them; so the pixels are those that the network was trained on, but for few that
differ by one.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from trainables.image.decode import WIDEST

__all__ = ["Resizing"]

_BORDER: Final = 4


class Resizing(nn.Module):
    """The centre of images, antialiased: uint8 [B, H, W, 3] -> float [B, 3, s, s], whole values in 0..255.

    Args:
        frame_size: what the shorter side is resized to.
        image_size: s, the side of the centre square that is kept.
        interpolation: `bilinear` or `bicubic`.
    """

    def __init__(self, frame_size: int, image_size: int, interpolation: str) -> None:
        super().__init__()
        self.frame_size: Final = frame_size
        self.image_size: Final = image_size
        self.is_cubic: Final = interpolation == "bicubic"

    def forward(self, images: Tensor) -> Tensor:
        height, width = _length(images[0, :, 0, 0]), _length(images[0, 0, :, 0])
        shorter = torch.minimum(height, width)
        columns = self._weights(images[0, 0, :, 0], width, shorter)  # [s, W]
        rows = self._weights(images[0, :, 0, 0], height, shorter)  # [s, H]
        pixels = images.permute(0, 3, 1, 2).to(torch.float32)
        narrow = _whole(torch.matmul(pixels, columns.transpose(0, 1)))  # [B, 3, H, s]
        return _whole(torch.matmul(rows, narrow))

    def _weights(self, line: Tensor, length: Tensor, shorter: Tensor) -> Tensor:
        """The shares that the pixels of a side have in each pixel that is kept of it, [s, length].

        Args:
            line: any one line of the side, for the number of its pixels.
            length: that number, an int64 scalar.
            shorter: of the image's two sides, an int64 scalar.
        """
        # A much longer side is cut first; both cuts are centred, the odd pixel as torchvision has it.
        used = torch.minimum(length, shorter * WIDEST)
        first = _middle(length - used)
        resized = used * self.frame_size // shorter
        start = _middle(resized - self.frame_size) + (self.frame_size - self.image_size) // 2
        # The first ones are there for the largest share alone, which is often at the border.
        kept = torch.cat([torch.arange(self.image_size) + start, torch.arange(_BORDER)]).to(torch.float64)
        scale = used.to(torch.float64) / resized.to(torch.float64)
        stretch = torch.clamp(scale, min=1.0)  # antialiasing: what is made smaller is read wider
        center = (kept + 0.5) * scale
        reach = stretch * (2.0 if self.is_cubic else 1.0)
        low = torch.clamp(torch.floor(center - reach + 0.5), min=0.0).unsqueeze(1)
        high = torch.minimum(torch.floor(center + reach + 0.5), used.to(torch.float64)).unsqueeze(1)
        place = (torch.cumsum(torch.ones_like(line, dtype=torch.int64), 0) - 1 - first).to(torch.float64)
        distance = (place - center.unsqueeze(1) + 0.5) / stretch
        shares = _cubic(distance) if self.is_cubic else torch.clamp(1 - distance.abs(), min=0.0)
        shares = torch.where((place >= low) & (place < high), shares, torch.zeros_like(shares))
        shares = shares / shares.sum(1, keepdim=True)
        unit = _unit(shares.max())
        shares = torch.where(shares < 0, torch.ceil(shares / unit - 0.5), torch.floor(shares / unit + 0.5))
        return (shares * unit)[: self.image_size].to(torch.float32)


def _length(line: Tensor) -> Tensor:
    """How many elements a line has, as a tensor, so that a graph computes it anew for each image."""
    return torch.ones_like(line, dtype=torch.int64).sum()


def _unit(largest: Tensor) -> Tensor:
    """What shares are whole multiples of in kernels of uint8: the power of two that 15 bits allow."""
    bits = torch.clamp(torch.ceil(torch.log2((2.0**15 - 0.5) / largest)) - 1, 0.0, 22.0)
    return torch.exp2(-bits)


def _middle(excess: Tensor) -> Tensor:
    """Where a centred cut begins: half of what is cut off, halves to the even number."""
    half = excess // 2
    return half + (excess % 2) * (half % 2)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2, as Pillow has it (Keys, 1981)."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _whole(values: Tensor) -> Tensor:
    """Rounded, halves up, and kept within what a pixel can be."""
    return torch.clamp(torch.floor(values + 0.5), 0.0, 255.0)
