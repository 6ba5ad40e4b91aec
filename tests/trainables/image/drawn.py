"""Images that tests draw, and what loading them says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainables.errors import DataError
from trainables.image.data import DataConfig, ImageData, load


def draw(path: Path, seed: int) -> Path:
    """An image file of its own for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_classes(root: Path, counts: dict[str, int], first: int = 0) -> Path:
    """A folder of class folders."""
    for place, (name, count) in enumerate(counts.items()):
        for i in range(count):
            draw(root / name / f"{i:03}.png", first + 1000 * place + i)
    return root


def loaded(source: Path | str, **options: Any) -> ImageData:
    cache = Path(source).absolute().parent / ".cache"
    return load(DataConfig(source=str(source), **options), cache_dir=cache)


def refusal(source: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        loaded(source, **options)
    return str(caught.value)


def told(data: ImageData) -> str:
    return "\n".join(data.report.lines())
