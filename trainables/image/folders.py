"""Directories of class folders."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainables.errors import DataError
from trainables.image.decode import EXTENSIONS
from trainables.image.sources import Listing, Source, enumeration, identity, named_split, printable, state
from trainables.training.splits import SPLITS, UNSPLIT

__all__ = ["folder"]


@dataclass
class _Walk:
    """The images below one folder and what was passed over on the way."""

    images: list[tuple[str, os.DirEntry[str]]]
    others: Counter[str]
    escaping: list[str]
    linked: list[str]


def folder(root: Path) -> Source:
    """A directory of class folders, or of train, validation and test folders of class folders.

    Raises:
        DataError: when it holds no class folders, or not what its layout promises.
    """
    base = root.resolve()
    roots, problems = _class_roots(base)
    if problems:
        raise DataError(problems)
    found: list[tuple[str, str, str, os.DirEntry[str]]] = []
    passed = _Walk([], Counter(), [], [])
    for split, parent in roots:
        for name in _subfolders(parent):
            walk = _Walk([], Counter(), passed.escaping, passed.linked)
            _descend(parent / name, base, walk)
            passed.others.update(walk.others)
            if not walk.images:
                problems.append(_empty_class(parent / name, walk))
            found.extend((split, name, relative, entry) for relative, entry in walk.images)
    if problems:
        raise DataError(problems)
    found.sort(key=lambda each: each[2])
    classes = tuple(sorted({name for _, name, _, _ in found}))
    number = {name: label for label, name in enumerate(classes)}
    code = {**{name: place for place, name in enumerate(SPLITS)}, "": UNSPLIT}
    listing = Listing(
        classes=classes,
        labels=np.array([number[name] for _, name, _, _ in found], dtype=np.int64),
        given=np.array([code[split] for split, _, _, _ in found], dtype=np.int64),
        names=[relative for _, _, relative, _ in found],
        paths=[entry.path for _, _, _, entry in found],
        notes=tuple(_notes(passed, roots)),
    )
    told = (f"{relative}\0{state(entry)}" for _, _, relative, entry in found)
    return Source(identity=identity(f"folder {base}", told), listing=lambda: listing)


def _subfolders(parent: Path) -> list[str]:
    with os.scandir(parent) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith((".", "__MACOSX")) and entry.is_dir(follow_symlinks=False)
        )


def _loose_images(parent: Path) -> list[str]:
    with os.scandir(parent) as entries:
        return [entry.name for entry in entries if _is_image(entry.name) and entry.is_file()]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _class_roots(base: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """The folders whose subfolders are classes, each with its split (empty: none), and problems."""
    names = _subfolders(base)
    allowed = (
        "give a folder with one folder of images for each class, or with train, validation and "
        "test folders that hold these class folders"
    )
    if not names:
        loose = len(_loose_images(base))
        held = f"{loose} images but no class folders" if loose else "no class folders"
        return [], [f"data.source is {base}, which holds {held}; {allowed}"]
    splits = [name for name in names if named_split(name)]
    others = [name for name in names if not named_split(name)]
    if not splits or (others and not any(_subfolders(base / name) for name in splits)):
        return [("", base)], []
    problems = []
    if others:
        problems.append(
            f"data.source is {base}, which holds {enumeration(splits)} and beside them "
            f"{enumeration(others)}; is it split or not? Move {enumeration(others)} away if it is, "
            f"rename {enumeration(splits)} if these are classes"
        )
    meanings = Counter(named_split(name) for name in splits)
    for split, count in meanings.items():
        if count > 1:
            several = [name for name in splits if named_split(name) == split]
            problems.append(
                f"{base} holds {' and '.join(several)}, which all mean the {split} split; keep one"
            )
    if "train" not in meanings:
        problems.append(
            f"{base} holds {enumeration(splits)} but no train folder; {allowed}; "
            "only validation and test may be left out"
        )
    problems += [
        f"{base / name} holds no class folders; {allowed}" for name in splits if not _subfolders(base / name)
    ]
    return [(str(named_split(name)), base / name) for name in splits], problems


def _descend(parent: Path, base: Path, walk: _Walk) -> None:
    """Collects the images at any depth; links are followed to files inside `base` alone."""
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir(follow_symlinks=False):
                _descend(Path(entry.path), base, walk)
            elif entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(base):
                walk.escaping.append(entry.name)
            elif entry.is_symlink() and entry.is_dir():
                walk.linked.append(entry.name)
            elif _is_image(entry.name) and _is_regular(entry):
                walk.images.append((entry.path[len(str(base)) + 1 :].replace(os.sep, "/"), entry))
            else:
                walk.others[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False  # a link to nothing


def _empty_class(path: Path, walk: _Walk) -> str:
    held = "; ".join(
        [
            *(f"{count} x {ending}" for ending, count in sorted(walk.others.items())),
            *([f"links that lead out of the folder: {enumeration(walk.escaping)}"] * bool(walk.escaping)),
        ]
    )
    return (
        f"class folder {printable(str(path))} holds no images ({held or 'it is empty'}); put files "
        f"ending in {' '.join(sorted(EXTENSIONS))} into it, or remove it"
    )


def _notes(passed: _Walk, roots: Sequence[tuple[str, Path]]) -> Iterator[str]:
    loose = [name for _, parent in roots for name in _loose_images(parent)]
    if loose:
        yield f"{len(loose)} images lie beside the class folders, ignored: {enumeration(loose)}"
    if passed.escaping:
        yield (
            f"{len(passed.escaping)} links lead out of the folder and are not followed: "
            f"{enumeration(sorted(passed.escaping))}"
        )
    if passed.linked:
        yield f"links to folders are not followed: {enumeration(sorted(passed.linked))}"
    if passed.others:
        kinds = ", ".join(f"{count} x {ending}" for ending, count in sorted(passed.others.items()))
        yield f"files that are no images are ignored: {kinds}"
