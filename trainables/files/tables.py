"""Tables in files: CSV however people's programs write it, JSON Lines and Parquet, all as columns."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainables.errors import DataError, enumeration

__all__ = ["SUFFIXES", "cell_text", "named_column", "parquet_columns", "parquet_schema", "read_columns"]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of the files that are read as tables."""

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LONGEST_CELL = 2**31 - 1

Columns = dict[str, list[Any]]
Roles = Sequence[Sequence[str]]
"""Of each column that a table must have the names that it may have."""


def read_columns(path: Path, roles: Roles, notes: list[str]) -> Columns:
    """The columns of a table by name; of a Parquet file those that it has of `roles` and `split`.

    Args:
        path: its ending says what it is; any other than `SUFFIXES` is read as CSV.
        roles: a CSV file's header is cut where it then has them all.
        notes: what was taken for what is added here.

    Raises:
        DataError: if it cannot be read.
    """
    match path.suffix.lower():
        case ".parquet":
            known = [name for names in roles for name in names]
            wanted = [n for n in parquet_schema(path).names if named_column([n], [*known, "split"])]
            return parquet_columns(path, wanted)
        case ".jsonl":
            return _json_lines(path)
        case _:
            return _csv(path, roles, notes)


def named_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column that is called by the first of the names that one has, in any case."""
    lowered = {column.strip().lower(): column for column in reversed(list(columns))}
    return next((lowered[name] for name in names if name in lowered), None)


def cell_text(cell: Any) -> str:
    """A cell as text; empty for nothing, and for what is no number."""
    if cell is None or cell != cell:
        return ""
    return str(cell).strip()


# CSV


def _csv(path: Path, roles: Roles, notes: list[str]) -> Columns:
    text = _decoded(path, notes)
    lines = text.splitlines(keepends=True)
    comments = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if comments:
        notes.append(f"{comments} lines at the top that begin with # are left out")
    header = lines[comments] if comments < len(lines) else ""
    separator = _separator(header, roles)
    if separator != ",":
        notes.append(f"cells are separated by {_SEPARATORS[separator]}")
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.DictReader(
            io.StringIO("".join(lines[comments:]), newline=""), delimiter=separator, strict=True
        )
        rows = list(reader)
        names = [str(name) for name in reader.fieldnames or ()]
    except csv.Error as exc:
        raise DataError(f"{path} cannot be read as CSV: {exc}") from exc
    finally:
        csv.field_size_limit(before)
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
    elif b"\0" in data:
        raise DataError(f"{path} is no text: it has zero bytes, as archives, spreadsheets and programs have")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        line = data[: exc.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not text in UTF-8: line {line} has the byte {data[exc.start]:#04x}, as Latin-1 or "
            "Windows-1252 would; save it as 'CSV UTF-8', or convert it with "
            "`iconv -f WINDOWS-1252 -t UTF-8`"
        ) from exc


def _separator(header: str, roles: Roles) -> str:
    """The separator under which the header has every column; a comma where none has."""
    for separator in _SEPARATORS:
        cells = [cell.strip().strip('"') for cell in header.split(separator)]
        if all(named_column(cells, names) for names in roles):
            return separator
    return ","


# JSON Lines and Parquet


def _json_lines(path: Path) -> Columns:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
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
            raise DataError(f'{path} has no JSON object in line {number}, such as {{"label": "a"}}')
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def parquet_schema(path: Path) -> Any:
    """The schema of a Parquet file.

    Raises:
        DataError: if it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as exc:
        raise DataError(f"{path} cannot be read as Parquet: {exc}") from exc


def parquet_columns(path: Path, wanted: Sequence[str]) -> Columns:
    """All columns of a Parquet file, those that are not wanted without a row.

    Raises:
        DataError: if it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    schema = parquet_schema(path)
    try:
        table = pyarrow.parquet.read_table(path, columns=list(wanted))
        columns = {name: table.column(name).to_pylist() for name in wanted}
    except (OSError, pyarrow.ArrowException) as exc:
        raise DataError(f"{path} cannot be read as Parquet: {exc}") from exc
    for column, of in _class_labels(schema):
        if column in columns:
            columns[column] = [_named(cell, of) for cell in columns[column]]
    return {name: columns.get(name, []) for name in schema.names}


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
