"""Tables of paths and labels: CSV, JSON Lines and Parquet, read alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.errors import DataError, enumeration
from trainables.files.tables import (
    SUFFIXES,
    cell_text,
    named_column,
    parquet_columns,
    parquet_schema,
    read_columns,
)

__all__ = ["SUFFIXES", "Table", "image_column", "read_table"]

_PATHS = ("path", "file_name", "filename", "file", "filepath", "image_path", "image", "img")
_LABELS = ("label", "class", "class_name", "category", "labels")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A manifest as it was read.

    Attributes:
        paths, labels: [N]; "" for an empty cell.
        splits: [N], or None without such a column.
        several: rows whose label is a list.
        notes: what was taken for what.
        columns: what else there is, each [N].
    """

    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    several: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_table(path: Path) -> Table:
    """The table in a file.

    Raises:
        DataError: if it cannot be read, or lacks a column.
    """
    notes: list[str] = []
    if path.suffix.lower() == ".parquet":
        columns = _parquet(path)
    else:
        columns = read_columns(path, (_PATHS, _LABELS), notes)
    return _table(path, columns, notes)


def _table(path: Path, columns: dict[str, list[Any]], notes: list[str]) -> Table:
    named = {role: named_column(columns, names) for role, names in (("path", _PATHS), ("label", _LABELS))}
    missing = [role for role, name in named.items() if name is None]
    if missing:
        raise DataError(
            f"{path} has the columns {enumeration(list(columns)) or '(none)'}, but not "
            f"{' and '.join(missing)}; it needs path (or file_name, filename, image) and label (or class), "
            "and may have split"
        )
    for role, name in named.items():
        if name != role:
            notes.append(f"the column {name} is taken for {role}")
    split = named_column(columns, ("split",))
    labels = columns[str(named["label"])]
    return Table(
        paths=[cell_text(cell) for cell in columns[str(named["path"])]],
        labels=[cell_text(cell) for cell in labels],
        splits=None if split is None else [cell_text(cell) for cell in columns[split]],
        several=tuple(row for row, cell in enumerate(labels, 1) if isinstance(cell, list | tuple)),
        notes=tuple(notes),
        columns={
            name: [cell_text(cell) for cell in cells]
            for name, cells in columns.items()
            if name not in (*named.values(), split) and len(cells) == len(labels)
        },
    )


def _parquet(path: Path) -> dict[str, list[Any]]:
    """The columns of a Parquet file; the images that one holds are named by their rows."""
    schema = parquet_schema(path)
    images = _image_column(schema)
    known = (*_PATHS, *_LABELS, "split")
    wanted = [
        name
        for name in schema.names
        if name != images and (named_column([name], known) or _is_plain(schema, name))
    ]
    columns = parquet_columns(path, wanted)
    if images is not None:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_metadata(path).num_rows
        columns[images] = [f"row {row + 1}" for row in range(rows)]
    return columns


def image_column(path: Path) -> str | None:
    """The column of a Parquet table that holds images as bytes, if it has one.

    Raises:
        DataError: if it cannot be read.
    """
    return _image_column(parquet_schema(path))


def _image_column(schema: Any) -> str | None:
    import pyarrow

    for each in schema:
        kind = each.type
        holds_bytes = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if holds_bytes or (named_column([each.name], _PATHS) and pyarrow.types.is_binary(kind)):
            return str(each.name)
    return None


def _is_plain(schema: Any, name: str) -> bool:
    """Whether a column has a text or a whole number in each row."""
    import pyarrow

    kind = schema.field(name).type
    tests = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_integer)
    return any(test(kind) for test in tests)
