"""Tables of image paths and labels: CSV and Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trainables.errors import DataError
from trainables.image.sources import Listing, Source, enumeration, identity, named_split, state
from trainables.training.splits import SPLITS, UNSPLIT

__all__ = ["manifest", "paths_in"]


def manifest(path: Path) -> Source:
    """A CSV or Parquet table with the columns `path`, `label` and perhaps `split`.

    Raises:
        DataError: for every row that cannot be used, all at once.
    """
    base = path.resolve().parent
    columns = _columns(path)
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(columns) or '(none)'}, but not "
            f"{' and '.join(missing)}; it needs path and label, and may have split"
        )
    rows = list(zip(columns["path"], columns["label"], strict=True))
    cells = columns.get("split")
    splits = [named_split(cell) if cell else None for cell in cells] if cells else []
    problems = _row_problems(path, base, rows)
    if cells and any(cells):
        wrong = [f"{cell or 'empty'} (row {row})" for row, cell in _numbered(cells) if not named_split(cell)]
        if wrong:
            problems.append(
                f"the column split of {path} has {enumeration(wrong)}, but must be train, "
                "validation or test in every row, or be left out"
            )
    if problems:
        raise DataError(problems)
    return _manifest_source(path, base, rows, splits)


def paths_in(path: Path) -> set[str]:
    """The relative paths of the files that a manifest names.

    Raises:
        DataError: if it cannot be read.
    """
    return {os.path.normpath(name) for name in _columns(path).get("path", ())}


def _columns(path: Path) -> dict[str, list[str]]:
    return _csv(path) if path.suffix.lower() == ".csv" else _parquet(path)


def _manifest_source(
    path: Path, base: Path, rows: Sequence[tuple[str, str]], splits: Sequence[str | None]
) -> Source:
    order = sorted(range(len(rows)), key=lambda row: (rows[row], row))
    classes = tuple(sorted({label for _, label in rows}))
    number = {name: label for label, name in enumerate(classes)}
    paths = [os.path.join(base, rows[row][0]) for row in order]
    given = [splits[row] if splits else None for row in order]
    listing = Listing(
        classes=classes,
        labels=np.array([number[rows[row][1]] for row in order], dtype=np.int64),
        given=np.array([UNSPLIT if s is None else SPLITS.index(s) for s in given], dtype=np.int64),
        names=[rows[row][0] for row in order],
        paths=paths,
    )
    told = (
        f"{rows[row][0]}\0{rows[row][1]}\0{split}\0{state(file)}"
        for row, split, file in zip(order, given, paths, strict=True)
    )
    return Source(identity=identity(f"manifest {base}", told), listing=lambda: listing)


def _numbered(cells: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    return enumerate(cells, 1)


def _row_problems(path: Path, base: Path, rows: Sequence[tuple[str, str]]) -> list[str]:
    @cache
    def inside(parent: str) -> bool:
        return Path(parent).resolve().is_relative_to(base)

    if not rows:
        return [f"{path} has no rows; it needs one for each image, with its path and its label"]
    blank, escaping = [], []
    for row, (name, label) in _numbered(rows):
        if not name or not label:
            blank.append(f"row {row}")
            continue
        file = base / name
        is_inside = inside(str(file.parent)) and file.name not in ("", "..")
        if (
            os.path.isabs(name)
            or not is_inside
            or (file.is_symlink() and not file.resolve().is_relative_to(base))
        ):
            escaping.append(f"{name} (row {row})")
    problems = []
    if blank:
        problems.append(
            f"{path} has an empty path or label in {enumeration(blank)}; fill them in, or remove the rows"
        )
    if escaping:
        problems.append(
            f"{path} names files that are not below its own folder {base}: {enumeration(escaping)}"
            "; paths must be relative to the manifest and stay below its folder: move the manifest "
            "or the images"
        )
    return problems


def _csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            names = [str(name) for name in reader.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {exc}") from exc
    uneven = [f"row {row}" for row, each in _numbered(rows) if None in each or None in each.values()]
    if uneven:
        raise DataError(
            f"{path} has more or fewer cells than its header in {enumeration(uneven)}; "
            'put a cell that holds a comma into "quotes"'
        )
    return {name.strip(): [row[name].strip() for row in rows] for name in names}


def _parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as exc:
        raise DataError(f"{path} cannot be read as Parquet: {exc}") from exc
    return {
        name: ["" if cell is None else str(cell).strip() for cell in table.column(name).to_pylist()]
        if name in ("path", "label", "split")
        else []
        for name in table.column_names
    }
