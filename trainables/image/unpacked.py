"""Parquet tables that hold the images themselves, as Hugging Face's data sets have them.

Each image becomes a file in the node's cache, once; then the table is a manifest like others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.files.cache import FETCHED
from trainables.files.locked import locked, unwritable
from trainables.files.rows import touch
from trainables.image.manifests import listed
from trainables.image.sources import Listing, Source, identity, state
from trainables.image.tables import image_column, read_table

__all__ = ["unpacked"]

_BATCH = 256
_WHOLE = "whole"

Progress = Callable[[str, int, int], None]


def unpacked(path: Path, cache_dir: Path, progress: Progress | None = None) -> Source | None:
    """The source in a Parquet table with a column of images; None where it has none.

    Raises:
        DataError: if it cannot be read, or the cache cannot be written.
    """
    column = image_column(path)
    if column is None:
        return None
    folder = cache_dir / FETCHED / identity(f"unpacked {path.resolve()}", [state(path)])
    _complete(path, column, folder, progress)
    table = read_table(path)
    source = listed(path, folder, replace(table, paths=[_name(row) for row in range(len(table.labels))]))

    def listing() -> Listing:
        _complete(path, column, folder, progress)  # the cache may have let go of it since
        return source.listing()

    return replace(source, listing=listing)


def _name(row: int) -> str:
    return f"row-{row + 1:07}"


def _complete(path: Path, column: str, folder: Path, progress: Progress | None) -> None:
    show = progress or (lambda stage, done, total: None)
    try:
        with locked(folder, lambda: show("waiting for another process that unpacks the same images", 0, 1)):
            if not (folder / _WHOLE).exists():
                _unpack(path, column, folder, show)
                (folder / _WHOLE).touch()
        touch(folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def _unpack(path: Path, column: str, folder: Path, show: Progress) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        total, row = file.metadata.num_rows, 0
        modified = os.stat(path).st_mtime_ns
        for batch in file.iter_batches(_BATCH, columns=[column]):
            for cell in batch.column(0).to_pylist():
                target = folder / _name(row)
                target.write_bytes(_bytes(cell))
                os.utime(target, ns=(modified, modified))  # unpacked again, it is the same as before
                row += 1
            show("unpacking images", row, total)
    except pyarrow.ArrowException as exc:
        raise DataError(f"{path} cannot be read as Parquet: {exc}") from exc


def _bytes(cell: Any) -> bytes:
    """An image's bytes; none where the table only names a file, which is then told as empty."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    return found if isinstance(found, bytes) else b""
