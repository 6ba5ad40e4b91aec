"""Augmentation policies in words and in pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from search.errors import BadInput
from trainables.errors import DataError
from trainables.image.augment import build, operations, preview
from trainables.image.decode import decode, to_frame
from trainables.training.hparams import HParams, knobs

__all__ = ["draw_policies", "policy_lines"]

_SIZE = 128
_FRAME = 146


def _policies() -> dict[str, HParams]:
    """Every policy with its defaults; the sampled one with an example of what it samples."""
    example = tuple(
        ((first, 0.6, 12), (second, 0.4, 18))
        for first, second in zip(operations(False)[::2], operations(False)[1::2], strict=False)
    )[:3]
    names = knobs()["policy"].choices or ()
    return {name: HParams(policy=name, sub_policies=example if name == "sampled" else ()) for name in names}


def policy_lines() -> dict[str, list[str]]:
    """What each policy does, as built with its defaults."""
    return {name: build(hparams, image_size=_SIZE).describe() for name, hparams in _policies().items()}


def draw_policies(image: Path, to: Path) -> None:
    """Draws the image under every policy, one row each, into a PNG file.

    Raises:
        BadInput: if `image` is no readable image, or `to` cannot be written.
    """
    try:
        frames = to_frame(decode(image), _FRAME, "bicubic").unsqueeze(0)
    except DataError as error:
        raise BadInput(str(error)) from error
    rows = [
        (name, preview(build(hparams, image_size=_SIZE), frames, seed=0, rows=1))
        for name, hparams in _policies().items()
    ]
    margin, height = 120, rows[0][1].height + 4
    sheet = Image.new("RGB", (margin + rows[0][1].width, height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (name, row) in enumerate(rows):
        pen.text((6, index * height + height // 2 - 6), name, fill="black")
        sheet.paste(row, (margin, index * height))
    try:
        sheet.save(to, format="PNG")
    except OSError as error:
        raise BadInput(f"cannot write {to}: {error.strerror}") from error
