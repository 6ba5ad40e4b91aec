"""How far image operations go: the magnitude of each at each strength."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from trainables.image.operations import SIGNED

__all__ = ["Ranges", "magnitudes"]

UPRIGHT_DEGREES = 15.0
UPRIGHT_TRANSLATE = 0.2


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """How far each operation may go, in the unit of its magnitude.

    The defaults are those of AutoAugment and RandAugment.

    Attributes:
        shear: largest slope.
        translate: largest shift, as a share of the side.
        translate_pixels: largest shift in pixels; the smaller of the two holds.
        rotate: largest angle in degrees.
        enhance: largest distance from 1 of the factor of a colour or sharpness operation.
        bits: what Posterize keeps at the weakest and at the strongest.
    """

    shear: float = 0.3
    translate: float = 150 / 331
    translate_pixels: float = math.inf
    rotate: float = 30.0
    enhance: float = 0.9
    bits: tuple[int, int] = (8, 4)

    def upright(self, chain: int) -> Ranges:
        """Narrower ranges: `chain` operations together turn no line by more than 15 degrees."""
        share = UPRIGHT_DEGREES / chain
        # A shear of slope m turns some line by 2 atan(m / 2), and none by more.
        return replace(
            self,
            shear=min(self.shear, 2 * math.tan(math.radians(share) / 2)),
            translate=min(self.translate, UPRIGHT_TRANSLATE),
            rotate=min(self.rotate, share),
        )

    def magnitude(self, name: str, strength: float, side: int) -> float:
        """What `strength` from 0 to 1 means to the operation `name` on images of that side."""
        if name.startswith("Shear"):
            return strength * self.shear
        if name.startswith("Translate"):
            return float(int(strength * min(self.translate * side, self.translate_pixels)))
        if name == "Rotate":
            return strength * self.rotate
        if name == "Posterize":
            weakest, strongest = self.bits
            return float(round(weakest - strength * (weakest - strongest)))
        if name == "Solarize":
            return 1 - strength
        return strength * self.enhance if name in SIGNED else 0.0

    def text(self, name: str) -> str:
        """The operation `name` with its range, for a person."""
        if name.startswith("Shear"):
            return f"{name} slope ±{self.shear:.3g}"
        if name.startswith("Translate"):
            pixels = math.isfinite(self.translate_pixels)
            most = f" but ±{self.translate_pixels:g} px at most" if pixels else ""
            return f"{name} ±{self.translate:.3g} of the side{most}"
        if name == "Rotate":
            return f"Rotate ±{self.rotate:.3g}°"
        if name == "Posterize":
            return f"Posterize {self.bits[0]} to {self.bits[1]} bits"
        if name == "Solarize":
            return "Solarize from 255 to 0"
        return f"{name} factor 1±{self.enhance:.3g}" if name in SIGNED else name


@lru_cache(maxsize=256)
def magnitudes(ranges: Ranges, names: tuple[str, ...], bins: int, side: int) -> Tensor:
    """Unsigned magnitudes, float32 [operations, bins], from the weakest bin to the strongest."""
    strengths = [each / (bins - 1) for each in range(bins)]
    return torch.tensor([[ranges.magnitude(name, s, side) for s in strengths] for name in names])
