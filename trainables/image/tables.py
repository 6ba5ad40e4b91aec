"""Tables of text: CSV however people's programs write it, JSON Lines and Parquet, read alike."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.image.sources import enumeration

__all__ = ["SUFFIXES", "Table", "image_column", "read_table"]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of the files that are read as tables."""

_PATHS = ("path", "file_name", "filename", "file", "filepath", "image_path", "image", "img")
_LABELS = ("label", "class", "class_name", "category", "labels")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A manifest as it was read.

    Attributes:
        paths, labels: [N]; "" for an empty cell.
        splits: [N], or None without such a column.
        several: rows whose label is a list.
        notes: what was taken for what.
    """

    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    several: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """The table in a file.

    Raises:
        DataError: if it cannot be read, or lacks a column.
    """
    notes: list[str] = []
    match path.suffix.lower():
        case ".parquet":
            columns = _parquet(path)
        case ".jsonl":
            columns = _json_lines(path)
        case _:
            columns = _csv(path, notes)
    return _table(path, columns, notes)


def _table(path: Path, columns: dict[str, list[Any]], notes: list[str]) -> Table:
    named = {role: _column(columns, names) for role, names in (("path", _PATHS), ("label", _LABELS))}
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
    split = _column(columns, ("split",))
    labels = columns[str(named["label"])]
    return Table(
        paths=[_text(cell) for cell in columns[str(named["path"])]],
        labels=[_text(cell) for cell in labels],
        splits=None if split is None else [_text(cell) for cell in columns[split]],
        several=tuple(row for row, cell in enumerate(labels, 1) if isinstance(cell, list | tuple)),
        notes=tuple(notes),
    )


def _column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column that is called by the first of the names that one has, in any case."""
    lowered = {column.strip().lower(): column for column in reversed(list(columns))}
    return next((lowered[name] for name in names if name in lowered), None)


def _text(cell: Any) -> str:
    if cell is None or cell != cell:  # not a number
        return ""
    return str(cell).strip()


# CSV


def _csv(path: Path, notes: list[str]) -> dict[str, list[Any]]:
    text = _decoded(path, notes)
    lines = text.splitlines(keepends=True)
    comments = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if comments:
        notes.append(f"{comments} lines at the top that begin with # are left out")
    header = lines[comments] if comments < len(lines) else ""
    separator = _separator(header)
    if separator != ",":
        notes.append(f"cells are separated by {_SEPARATORS[separator]}")
    try:
        reader = csv.DictReader(
            io.StringIO("".join(lines[comments:]), newline=""), delimiter=separator, strict=True
        )
        rows = list(reader)
        names = [str(name) for name in reader.fieldnames or ()]
    except csv.Error as exc:
        raise DataError(f"{path} cannot be read as CSV: {exc}") from exc
    uneven = [f"row {row}" for row, each in enumerate(rows, 1) if None in each or None in each.values()]
    if uneven:
        raise DataError(
            f"{path} has more or fewer cells than its header in {enumeration(uneven)}; "
            f'put a cell that holds a {"comma" if separator == "," else repr(separator)} into "quotes"'
        )
    return {name.strip(): [row[name] for row in rows] for name in names}


def _decoded(path: Path, notes: list[str]) -> str:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
        notes.append("it is read as UTF-16")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        line = data[: exc.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not text in UTF-8: line {line} has the byte {data[exc.start]:#04x}, as Latin-1 or "
            "Windows-1252 would; save it as 'CSV UTF-8', or convert it with "
            "`iconv -f WINDOWS-1252 -t UTF-8`"
        ) from exc


def _separator(header: str) -> str:
    """The separator under which the header has both columns; a comma where none has."""
    for separator in _SEPARATORS:
        cells = [cell.strip().strip('"') for cell in header.split(separator)]
        if _column(cells, _PATHS) and _column(cells, _LABELS):
            return separator
    return ","


# JSON Lines and Parquet


def _json_lines(path: Path) -> dict[str, list[Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path} cannot be read as UTF-8: {exc}") from exc
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{path} has no JSON in line {number}: {exc}") from exc
        if not isinstance(row, dict):
            raise DataError(f'{path} has no JSON object in line {number}, such as {{"file_name": "a.png"}}')
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
        images = _image_column(schema)
        known = (*_PATHS, *_LABELS, "split")
        wanted = [name for name in schema.names if _column([name], known) and name != images]
        table = pyarrow.parquet.read_table(path, columns=wanted)
        columns = {name: table.column(name).to_pylist() for name in wanted}
        if images is not None:
            columns[images] = [f"row {row + 1}" for row in range(table.num_rows)]
    except (OSError, pyarrow.ArrowException) as exc:
        raise DataError(f"{path} cannot be read as Parquet: {exc}") from exc
    for column, of in _class_labels(schema):
        if column in columns:
            columns[column] = [_named(cell, of) for cell in columns[column]]
    return {name: columns.get(name, []) for name in schema.names}


def image_column(path: Path) -> str | None:
    """The column of a Parquet table that holds images as bytes, if it has one.

    Raises:
        DataError: if it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return _image_column(pyarrow.parquet.read_schema(path))
    except (OSError, pyarrow.ArrowException) as exc:
        raise DataError(f"{path} cannot be read as Parquet: {exc}") from exc


def _image_column(schema: Any) -> str | None:
    import pyarrow

    for field in schema:
        kind = field.type
        holds_bytes = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if holds_bytes or (_column([field.name], _PATHS) and pyarrow.types.is_binary(kind)):
            return str(field.name)
    return None


def _named(cell: Any, names: Sequence[str]) -> Any:
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell


def _class_labels(schema: Any) -> Iterator[tuple[str, list[str]]]:
    """The names of the classes behind numbers, as Hugging Face's data sets keep them in a file's schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        for column, feature in features.items():
            if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
                yield column, [str(name) for name in feature["names"]]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return
