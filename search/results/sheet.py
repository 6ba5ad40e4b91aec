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
_FEW = 8
"""Outliers, and pairs of classes."""


def write_sheet(path: Path, spec: SearchSpec, found: Inspection, data: Data, backbone: Backbone) -> int:
    """Draws what is most doubtful into an image file, if anything is; returns how many images it shows.

    Raises:
        BadInput: where the data has nothing to look at.
        TransferSearchError: where the file cannot be written.
    """
    tiles = list(_tiles(found))
    if not tiles:
        return 0
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
    for outlier in found.outliers[:_FEW]:
        yield outlier.place, outlier.label, f"{outlier.times:.1f} x as far"
    for confused in found.confused[:_FEW]:
        for place in confused.surest:
            yield place, *confused.classes
