"""A sheet of pictures of what an inspection of data doubts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from search.errors import BadInput, TransferSearchError
from search.run.inspecting import Inspection
from search.spec.search_spec import SearchSpec
from trainables.modality import Backbone, Data

__all__ = ["write_sheet"]

_TILE, _TEXT, _GAP, _COLUMNS = 96, 28, 8, 8
_MOST = 40
"""Labels, and pairs, that are shown."""


def write_sheet(path: Path, spec: SearchSpec, found: Inspection, data: Data, backbone: Backbone) -> int:
    """Draws the most doubtful labels and pairs into an image file; returns how many it shows.

    Raises:
        BadInput: where there is nothing to look at.
        TransferSearchError: where the file cannot be written.
    """
    tiles = list(_tiles(found))
    if not tiles:
        raise BadInput("nothing is doubtful, so there is no sheet to draw")
    lines = -(-len(tiles) // _COLUMNS)
    width, height = _COLUMNS * (_TILE + _GAP) + _GAP, lines * (_TILE + _TEXT + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    examples = data.examples(backbone.preprocessing)
    for number, (place, above, below) in enumerate(tiles):
        left = _GAP + number % _COLUMNS * (_TILE + _GAP)
        top = _GAP + number // _COLUMNS * (_TILE + _TEXT + _GAP)
        picture = spec.modality.picture(examples[torch.tensor([place])][0])
        if picture is None:
            raise BadInput(f"there is nothing to look at in data of the kind {spec.data.modality}")
        sheet.paste(Image.open(io.BytesIO(picture)).resize((_TILE, _TILE)), (left, top))
        pen.text((left, top + _TILE + 1), above[:16], fill="black")
        pen.text((left, top + _TILE + 13), below[:16], fill="red")
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise TransferSearchError(f"cannot write {path}: {error}; give a file such as sheet.png") from error
    return len(tiles)


def _tiles(found: Inspection) -> Iterator[tuple[int, str, str]]:
    """The examples that are shown, with what is said below each."""
    for suspect in found.suspects[:_MOST]:
        yield suspect.place, suspect.label, f"? {suspect.likely}"
    pairs = sorted(found.twins or (), key=lambda each: (not each.leak, -each.likeness))
    for pair in pairs[:_MOST]:
        for place, label, split in zip(pair.places, pair.labels, pair.splits, strict=True):
            yield place, label, f"= {split}"
