"""Image operations on batches in which every image has its own parameters and random numbers.

torchvision's transforms draw one set of parameters for a whole batch, and calling them image by
image costs more than the arithmetic. Here a batch takes a parameter per image, and the random
numbers are hashed from a seed per image: what becomes of an image depends on neither the rest of
its batch, nor the device's generator, nor any global state.

Two rules keep that promise bit for bit. Sums over an image are sums of whole numbers, so their
order does not matter. Floating-point arithmetic is elementwise and one rounding at a time (no
`addcmul`, `lerp` or `matmul`), because fused kernels round the vectorised middle of a batch and its
tail differently. Between kinds of device nothing is promised to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "GEOMETRY",
    "KERNELS",
    "SIGNED",
    "applied",
    "cropped",
    "derived_seeds",
    "erased",
    "flipped",
    "uniform",
    "warped",
]

Kernel = Callable[[Tensor, Tensor], Tensor]


# Random numbers


def _signed(value: int) -> int:
    """The int64 with the same bits as the unsigned 64-bit `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mixed(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014) on int64 bits, wrapping around."""
    # `>>` keeps the sign, so the copies of it are masked away.
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _FIRST
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _SECOND
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def derived_seeds(root: int, *parts: int | Tensor) -> Tensor:
    """Seeds that depend on `root` and on every part, in order: int64, of the parts' joint shape.

    Usual parts are a trial's seed, an epoch, and the indices of a batch's images.
    """
    seeds = torch.tensor(_signed(root))
    for part in (0, *parts):
        # Hashed between the parts, so that (1, 0) and (0, 1) differ.
        seeds = _mixed((seeds if isinstance(part, int) else seeds.to(part.device)) + _GOLDEN) + part
    return _mixed(seeds)


def uniform(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Numbers in [0, 1), float32 [B, count], from int64 `seeds` [B] and the number of a stream."""
    counters = torch.arange(1, count + 1, device=seeds.device) + (stream << 20)
    bits = _mixed(_mixed(seeds + _GOLDEN)[:, None] + counters * _GOLDEN)
    return ((bits >> 40) & ((1 << 24) - 1)).to(torch.float32) * 2.0**-24


# Geometry


def _coordinates(matrices: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each pixel of [height, width] outputs is read, x and y, each [n, height, width]."""
    x = torch.arange(width, device=matrices.device) - (width - 1) / 2
    y = torch.arange(height, device=matrices.device)[:, None] - (height - 1) / 2
    m = matrices[:, :, :, None, None]
    return (
        m[:, 0, 0] * x + (m[:, 0, 1] * y + m[:, 0, 2]),
        m[:, 1, 0] * x + (m[:, 1, 1] * y + m[:, 1, 2]),
    )


def _nearest(images: Tensor, matrices: Tensor) -> Tensor:
    """`images` uint8 [n, 3, H, W] read at the nearest pixel, black where there is none."""
    n, _, height, width = images.shape
    x, y = _coordinates(matrices, height, width)
    # A black frame of one pixel takes what falls outside, so no mask is needed; the three channels
    # travel in one integer, so there is one gather instead of three.
    x = x.add_((width + 1) / 2).round_().clamp_(0, width + 1)
    y = y.add_((height + 1) / 2).round_().clamp_(0, height + 1)
    index = y.mul_(width + 2).add_(x).to(torch.int32)
    framed = (height + 2) * (width + 2)
    index += torch.arange(0, n * framed, framed, device=images.device, dtype=torch.int32)[:, None, None]
    packed = images.new_zeros((n, height + 2, width + 2), dtype=torch.int32)
    packed[:, 1:-1, 1:-1] = images[:, 0].int() | (images[:, 1].int() << 8) | (images[:, 2].int() << 16)
    read = packed.view(-1).index_select(0, index.view(-1)).view(n, height, width)
    return torch.stack([(read >> shift).to(torch.uint8) for shift in (0, 8, 16)], dim=1)


def warped(images: Tensor, matrices: Tensor, size: int, padding: str = "zeros") -> Tensor:
    """Bilinear readings of `images` uint8 [n, 3, H, W] as uint8 [n, 3, size, size].

    Args:
        matrices: float32 [n, 2, 3] from an output's (x, y, 1) to its input's (x, y), in pixels,
            both counted from the image's centre.
        padding: what lies outside: `zeros`, `border` or `reflection`.
    """
    height, width = images.shape[-2:]
    # In pieces that stay in a processor's cache; a GPU would rather have one large launch.
    piece = 16 if images.device.type == "cpu" else len(images)
    parts = []
    for start in range(0, len(images), piece):
        x, y = _coordinates(matrices[start : start + piece], size, size)
        grid = torch.stack([x * (2 / width), y * (2 / height)], dim=-1)
        floats = images[start : start + piece].float()
        read = functional.grid_sample(
            floats, grid, mode="bilinear", padding_mode=padding, align_corners=False
        )
        parts.append(_bytes(read.round_()))
    return torch.cat(parts)


def _matrices(n: int, like: Tensor) -> Tensor:
    """Unit matrices, float32 [n, 2, 3]."""
    return torch.eye(2, 3, device=like.device).repeat(n, 1, 1)


def rotations(degrees: Tensor) -> Tensor:
    """Matrices [n, 2, 3] that turn images counter-clockwise by `degrees` [n]."""
    # In double precision, because the last bit of a sine may depend on its place in the batch.
    radians = degrees.double() * (math.pi / 180)
    cosine, sine = radians.cos().float(), radians.sin().float()
    nought = torch.zeros_like(cosine)
    return torch.stack([cosine, -sine, nought, sine, cosine, nought], dim=1).view(-1, 2, 3)


def _rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    return _nearest(images, rotations(magnitude))


def _shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    # Like the reference, about the corner rather than the centre.
    matrices = _matrices(len(images), magnitude)
    matrices[:, 0, 1] = magnitude
    matrices[:, 0, 2] = magnitude * (images.shape[-2] / 2)
    return _nearest(images, matrices)


def _shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    matrices = _matrices(len(images), magnitude)
    matrices[:, 1, 0] = magnitude
    matrices[:, 1, 2] = magnitude * (images.shape[-1] / 2)
    return _nearest(images, matrices)


def _translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    matrices = _matrices(len(images), magnitude)
    matrices[:, 0, 2] = -magnitude.trunc()
    return _nearest(images, matrices)


def _translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    matrices = _matrices(len(images), magnitude)
    matrices[:, 1, 2] = -magnitude.trunc()
    return _nearest(images, matrices)


def cropped(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """The squares [n, C, size, size] of `images` at each one's `top` and `left` (int64 [n])."""
    windows = images.unfold(2, size, 1).unfold(3, size, 1)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, top, left]


def flipped(images: Tensor, chosen: Tensor) -> Tensor:
    """`images`, mirrored left to right where `chosen` (bool [n])."""
    places = torch.arange(len(images), device=images.device) + chosen * len(images)
    return torch.cat([images, images.flip(-1)]).index_select(0, places)


def erased(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """`images` with a rectangle of each (int64 [n]) filled with the image's own mean colour."""
    rows, columns = images.shape[-2:]
    y = torch.arange(rows, device=images.device)
    x = torch.arange(columns, device=images.device)
    inside_y = (y >= top[:, None]) & (y < (top + height)[:, None])
    inside_x = (x >= left[:, None]) & (x < (left + width)[:, None])
    mean = images.sum(dim=(2, 3)) // (rows * columns)
    inside = (inside_y[:, None, :, None] & inside_x[:, None, None, :]).to(torch.uint8).neg()
    # Bits of the mean where all of `inside` are set: quicker than a choice.
    return images ^ ((images ^ mean[:, :, None, None].to(torch.uint8)) & inside)


# Colour


def _bytes(values: Tensor) -> Tensor:
    """`values`, a float tensor of its own, cut to 0..255 and to whole numbers."""
    # The detour is two vectorised conversions in place of one that is not.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _each(values: Tensor) -> Tensor:
    """`values` [n] in a shape that meets images."""
    return values.view(-1, 1, 1, 1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`images` times `factor` plus `other` times the rest, cut to bytes."""
    mixed = images.float().mul_(_each(factor)).add_(other * _each(1 - factor))
    return _bytes(mixed)


def _grey(images: Tensor) -> Tensor:
    """The whole-numbered luma (ITU-R 601-2) of `images`, float32 [n, 1, H, W]."""
    red, green, blue = images.float().unbind(1)
    grey = (red * 0.2989).add_(green * 0.587).add_(blue * 0.114)
    return grey.floor_().unsqueeze(1)


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """`images` times 1 + `magnitude` [n]."""
    return _bytes(images.float().mul_(_each(1 + magnitude)))


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """`images` moved away from their own grey (-1: grey, 0: as they are) by `magnitude` [n]."""
    return _blend(images, _grey(images), 1 + magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """`images` moved away from their mean grey level by `magnitude` [n]."""
    # Sums of whole numbers are exact whatever their order: a row's in float32, the rest in double.
    total = _grey(images).sum(dim=3).double().sum(dim=(1, 2))
    mean = (total / (images.shape[-2] * images.shape[-1])).float()
    return _blend(images, _each(mean), 1 + magnitude)


def _sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    if height < 3 or width < 3:
        return images.clone()
    exact = images.to(torch.int16)
    rows = exact[:, :, :-2] + exact[:, :, 1:-1] + exact[:, :, 2:]
    centre = exact[:, :, 1:-1, 1:-1]
    # The smoothing kernel has weight 5 in the middle, 1 around it, and sums to 13; no multiple of
    # 1/13 lies half-way between whole numbers, so rounding has no ties.
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * centre
    smooth = (total.float() * (1 / 13)).round_()
    out = images.clone()
    # x + (1 - factor) * (smooth - x), where the factor is 1 + magnitude; the edge stays as it is.
    sharp = smooth.sub_(centre).mul_(_each(-magnitude)).add_(centre)
    out[:, :, 1:-1, 1:-1] = _bytes(sharp)
    return out


def _posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    mask = (255 << (8 - magnitude.long())) & 255
    return images & _each(mask.to(torch.uint8))


def _solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    # A byte reaches a threshold when it reaches the next whole number.
    threshold = (magnitude * 255).ceil().to(torch.int16)
    # All bits set where the difference is negative: quicker than a comparison and a choice.
    reached = (_each(threshold - 1) - images.to(torch.int16)) >> 15
    return images ^ reached.to(torch.uint8)


def _auto_contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    low = images.amin(dim=(2, 3), keepdim=True).float()
    high = images.amax(dim=(2, 3), keepdim=True).float()
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    shifted = images.float().sub_(torch.where(flat, 0.0, low))
    return _bytes(shifted.div_(scale))


def _equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    n, channels, height, width = images.shape
    planes, pixels = n * channels, height * width
    offsets = torch.arange(planes, device=images.device, dtype=torch.int32)[:, None] * 256
    index = images.view(planes, pixels) + offsets
    counts = torch.bincount(index.view(-1), minlength=planes * 256).view(planes, 256)
    # Pillow's rule: each of 255 steps takes as many pixels, those of the brightest level aside.
    brightest = images.view(planes, pixels).amax(dim=1, keepdim=True).long()
    step = (pixels - counts.gather(1, brightest)) // 255
    below = counts.cumsum(dim=1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.to(torch.uint8).view(-1).index_select(0, index.view(-1)).view_as(images)


def _invert(images: Tensor, magnitude: Tensor) -> Tensor:
    return images.bitwise_not()


KERNELS: Mapping[str, Kernel] = {
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
}
"""From an operation's name to the function of images uint8 [n, 3, H, W] and magnitudes float32 [n].

The names and the meaning of a magnitude are those of torchvision's automatic augmentation: a slope
for shears, pixels for translations, degrees counter-clockwise for Rotate, a factor less 1 for
Brightness, Color, Contrast and Sharpness, bits for Posterize, a share of 255 for Solarize.
"""

GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
SIGNED = frozenset((*GEOMETRY, "Brightness", "Color", "Contrast", "Sharpness"))
"""Operations whose magnitude goes both ways."""


def applied(images: Tensor, names: Sequence[str], choice: Tensor, magnitude: Tensor) -> Tensor:
    """`images` after the operation that each one chose.

    Args:
        images: uint8 [n, 3, H, W].
        names: operations of `KERNELS`, or `Identity`.
        choice: int64 [n], a place in `names`, or -1 for none.
        magnitude: float32 [n], in the operation's own unit.
    """
    # Grouped by operation; one transfer of counts to the host, instead of one for each.
    counts = torch.bincount(choice + 1, minlength=len(names) + 1).tolist()
    order = choice.argsort(stable=True)
    groups = images.index_select(0, order).split_with_sizes(counts)
    strengths = magnitude.index_select(0, order).split_with_sizes(counts)
    done = [
        KERNELS[name](group, strength) if len(group) and name in KERNELS else group
        for name, group, strength in zip(("Identity", *names), groups, strengths, strict=True)
    ]
    return torch.cat(done).index_select(0, order.argsort())
