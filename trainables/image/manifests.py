"""Tables of image paths and labels."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from trainables.errors import DataError, enumeration
from trainables.image.sources import Listing, Source, identity, state
from trainables.image.tables import Table, read_table
from trainables.image.tree import Tree
from trainables.training.labels import class_names, named_split, numbered_labels, split_problems
from trainables.training.splits import SPLITS, UNSPLIT

__all__ = ["image_folder", "listed", "manifest", "paths_in"]

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_MARKS = ("|", ";")


def manifest(path: Path, *, root: Path | None = None, links: str = "inside") -> Source:
    """A table with the columns `path`, `label` and perhaps `split`: CSV, TSV, JSON Lines or Parquet.

    Args:
        path: the table; its paths are relative to its folder, or absolute and below that or `root`.
        root: another folder that paths may lead to.
        links: which symbolic links are followed: those that stay `inside`, or to `anywhere`.

    Raises:
        DataError: for every row that cannot be used, all at once.
    """
    base = path.resolve().parent
    return listed(path, base, read_table(path), root=root, links=links)


def image_folder(path: Path, *, links: str = "inside") -> Source | None:
    """A folder of images with a table `metadata.csv` beside them, as Hugging Face's data sets have it.

    The table may lie in the folders of splits too; None where there is none.

    Raises:
        DataError: for every row that cannot be used, all at once.
    """
    tree = Tree(path.resolve(), anywhere=links == "anywhere")
    splits = [name for name in tree.folders(tree.base) if named_split(name)]
    classes = [name for name in tree.folders(tree.base) if not named_split(name)]
    if len(classes) + sum(len(tree.folders(tree.base / name)) for name in splits) > 1:
        return None  # class folders; a table beside them is about something else
    found = [("", file) for file in _tables(tree.base)]
    found = found or [(name, file) for name in splits for file in _tables(tree.base / name)]
    if not found:
        return None
    tables = [(folder, read_table(file)) for folder, file in found]
    is_split = found[0][0] != ""
    joined = Table(
        paths=[os.path.join(folder, name) if name else "" for folder, each in tables for name in each.paths],
        labels=[label for _, each in tables for label in each.labels],
        splits=[folder for folder, each in tables for _ in each.paths] if is_split else tables[0][1].splits,
        several=tuple(row for _, each in tables for row in each.several),
        notes=tuple(dict.fromkeys(note for _, each in tables for note in each.notes)),
        columns={
            name: [cell for _, each in tables for cell in each.columns[name]]
            for name in tables[0][1].columns
            if all(name in each.columns for _, each in tables)
        },
    )
    unnamed = {image.name for image in tree.walk(tree.base).images} - set(map(os.path.normpath, joined.paths))
    if unnamed:
        note = f"{len(unnamed)} images are not in the table, ignored: {enumeration(sorted(unnamed))}"
        joined = replace(joined, notes=(*joined.notes, note))
    return listed(path if is_split else found[0][1], tree.base, joined, links=links)


def _tables(folder: Path) -> list[Path]:
    """The first of the tables that lie in a folder."""
    return [folder / name for name in _METADATA if (folder / name).is_file()][:1]


def paths_in(path: Path) -> set[str]:
    """The relative paths of the files that a manifest names.

    Raises:
        DataError: if it cannot be read.
    """
    return {os.path.normpath(name) for name in read_table(path).paths}


def listed(
    path: Path, base: Path, table: Table, *, root: Path | None = None, links: str = "inside"
) -> Source:
    """The source that a table names, whose paths are relative to `base`.

    Raises:
        DataError: for every row that cannot be used, all at once.
    """
    names, notes = _slashed(base, table.paths)
    allowed = [base] if root is None else [base, root.resolve()]
    problems = _row_problems(path, base, names, table.labels, allowed if links == "inside" else None)
    problems += _label_problems(path, names, table)
    splits = [named_split(cell) if cell else None for cell in table.splits or ()]
    problems += split_problems(path, table.splits or ())
    if problems:
        raise DataError(problems)
    source = _source(path, base, names, table.labels, splits, (*table.notes, *notes))
    columns = {name: dict(zip(names, cells, strict=True)) for name, cells in table.columns.items()}
    return replace(source, columns=columns)


def _source(
    path: Path,
    base: Path,
    names: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str | None],
    notes: Sequence[str],
) -> Source:
    order = sorted(range(len(names)), key=lambda row: (names[row], labels[row], row))
    classes, label, alike = class_names(labels)
    paths = [os.path.join(base, names[row]) for row in order]
    given = [splits[row] if splits else None for row in order]
    listing = Listing(
        classes=classes,
        labels=numbered_labels(label, [labels[row] for row in order]),
        given=np.array([UNSPLIT if s is None else SPLITS.index(s) for s in given], dtype=np.int64),
        names=[names[row] for row in order],
        paths=paths,
        notes=(*alike, *notes),
    )
    told = (
        f"{names[row]}\0{labels[row]}\0{split}\0{state(file)}"
        for row, split, file in zip(order, given, paths, strict=True)
    )
    return Source(identity=identity(f"manifest {base}", [*told, *listing.notes]), listing=lambda: listing)


def _slashed(base: Path, paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The paths relative to `base` where they lie below it, with slashes where Windows wrote backslashes."""
    if any("\\" in name for name in paths) and not any(
        (base / name).exists() for name in paths if "\\" in name
    ):
        slashed = [name.replace("\\", "/") for name in paths]
        note = ["backslashes in paths are read as slashes"]
    else:
        slashed, note = list(paths), []
    return [_below(base, name) for name in slashed], note


def _below(base: Path, name: str) -> str:
    if not os.path.isabs(name):
        return name
    for folder in (str(base), os.path.abspath(base)):
        if name.startswith(folder + os.sep):
            return os.path.relpath(name, folder)
    parent = os.path.realpath(os.path.dirname(name))
    if parent == str(base) or parent.startswith(str(base) + os.sep):
        return os.path.relpath(os.path.join(parent, os.path.basename(name)), base)
    return name


def _row_problems(
    path: Path, base: Path, names: Sequence[str], labels: Sequence[str], allowed: Sequence[Path] | None
) -> list[str]:
    """Rows that are empty, or lead to where they may not; anywhere is `allowed` for None."""

    @cache
    def inside(place: str) -> bool:
        found = Path(os.path.realpath(place))
        return allowed is None or any(found.is_relative_to(folder) for folder in allowed)

    if not names:
        return [f"{path} has no rows; it needs one for each image, with its path and its label"]
    blank, impossible, escaping = [], [], []
    for row, (name, label) in enumerate(zip(names, labels, strict=True), 1):
        if not name or not label:
            blank.append(f"row {row}")
            continue
        if "\0" in name or "\0" in label:
            impossible.append(f"row {row}")
            continue
        file = base / name
        leads_out = file.is_symlink() and not inside(str(file))
        if leads_out or not inside(str(file.parent)) or file.name in ("", ".."):
            escaping.append(f"{name} (row {row})")
    problems = []
    if blank:
        problems.append(
            f"{path} has an empty path or label in {enumeration(blank)}; fill them in, or remove the rows"
        )
    if impossible:
        problems.append(
            f"{path} has a character of code zero, which no name can have, in {enumeration(impossible)}; "
            "write it again as text"
        )
    if escaping:
        problems.append(
            f"{path} names files that are not below its own folder {base}: {enumeration(escaping)}"
            "; move the manifest or the images, give the images' folder as data.root, or set data.links: "
            "anywhere"
        )
    return problems


def _label_problems(path: Path, names: Sequence[str], table: Table) -> list[str]:
    """Manifests in which an image has several labels."""
    advice = "an image has one class here; data with several labels an image cannot be used"
    if table.several:
        rows = [f"row {row}" for row in table.several]
        return [f"{path} has lists of labels in {enumeration(rows)}, but {advice}"]
    kinds = set(table.labels)
    for mark in _MARKS:
        joined = {label: [part.strip() for part in label.split(mark)] for label in kinds if mark in label}
        parts = [part for each in joined.values() for part in each]
        if joined and any(part in kinds or parts.count(part) > 1 for part in parts):
            return [f"{path} has several labels in one cell ({enumeration(sorted(joined))}), but {advice}"]
    of: dict[str, set[str]] = defaultdict(set)
    for name, label in zip(names, table.labels, strict=True):
        of[os.path.normpath(name)].add(label)
    several = {name: sorted(labels - {""}) for name, labels in of.items() if name != "."}
    twice = [f"{name} ({' and '.join(labels)})" for name, labels in several.items() if len(labels) > 1]
    if twice:
        return [f"{path} gives files more than one label: {enumeration(twice)}; {advice}: keep one row"]
    return []
