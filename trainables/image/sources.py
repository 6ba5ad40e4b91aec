"""What a source of labelled images is, and what all kinds of sources share."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainables.training.splits import alike

__all__ = [
    "Listing",
    "Source",
    "class_names",
    "enumeration",
    "identity",
    "likely_split",
    "named_split",
    "numbered_labels",
    "printable",
    "state",
]

_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_LIKELY = {
    "dev": "validation",
    "development": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "held_out": "test",
    "heldout": "test",
    "hold_out": "test",
    "holdout": "test",
    "learn": "train",
    "learning": "train",
    "fit": "train",
}
_SHOWN = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Labelled images, not yet decoded.

    Attributes:
        classes: the names of the labels.
        labels: int64 [N].
        given: int64 [N], each one's position in `SPLITS`, or `UNSPLIT`.
        names: what to call each image to a person.
        paths: the files, or None where `pixels` holds the images.
        pixels: uint8 [N, 1 or 3, h, w].
        notes: what a person should know of what was found.
    """

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    given: npt.NDArray[np.int64]
    names: list[str]
    paths: list[str] | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Images that can be listed.

    Attributes:
        identity: hex; changes when a file changes size, time or mode, or comes or goes.
        listing: reads what there is, which may take a while.
    """

    identity: str
    listing: Callable[[], Listing]


def identity(kind: str, parts: Iterable[str]) -> str:
    """The hex digest of a kind of source and what tells its state."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in parts:
        digest.update(b"\0" + os.fsencode(part))
    return digest.hexdigest()


def state(path: str | Path | os.DirEntry[str]) -> str:
    """Size, time of change and mode of a file, as text; `missing` where there is none."""
    try:
        found = path.stat() if isinstance(path, os.DirEntry) else os.stat(path)
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_mode}"


def enumeration(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more


def printable(text: str) -> str:
    """The text in one line, with whatever cannot be written as UTF-8 replaced."""
    one_line = re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], text)
    return one_line.encode("utf-8", "replace").decode()


def named_split(name: str) -> str | None:
    """The split that a folder or a cell of a manifest means, if it means one."""
    return _ALIASES.get(name.strip().lower())


def likely_split(name: str) -> str | None:
    """The split that a name means to some people, but does not say for sure."""
    return _LIKELY.get(name.strip().lower().replace("-", "_").replace(" ", "_"))


def class_names(names: Iterable[str]) -> tuple[tuple[str, ...], dict[str, str], list[str]]:
    """The classes that labels name, each label's class, and what a person should know of them.

    A name that is written in two ways in Unicode, as macOS and Linux do, is one class.
    """
    given = sorted(set(names))
    of = {name: unicodedata.normalize("NFC", name) for name in given}
    classes = tuple(sorted(set(of.values())))
    notes = []
    if len(classes) < len(given):
        merged = sorted({name for name in classes if list(of.values()).count(name) > 1})
        notes.append(f"names that are written in two ways in Unicode are one class: {enumeration(merged)}")
    looks = defaultdict(list)
    for name in classes:
        looks[alike(name)].append(name)
    twins = [" and ".join(map(repr, several)) for several in looks.values() if len(several) > 1]
    if twins:
        notes.append(
            f"WARNING: classes whose names look alike: {enumeration(twins)}; is each pair one class?"
        )
    return classes, of, notes


def numbered_labels(of: Mapping[str, str], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64 [N]: the number of each name's class, as `class_names` gives them."""
    number = {name: label for label, name in enumerate(sorted(set(of.values())))}
    return np.array([number[of[name]] for name in names], dtype=np.int64)
