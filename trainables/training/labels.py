"""What people call classes and splits, and what is meant."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainables.errors import enumeration
from trainables.training.splits import alike

__all__ = ["class_names", "likely_split", "named_split", "numbered_labels", "split_problems"]

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


def split_problems(path: Path, cells: Sequence[str]) -> list[str]:
    """What is wrong with the cells of a column `split` of the table at `path`."""
    wrong = [f"{cell or 'empty'} (row {row})" for row, cell in enumerate(cells, 1) if not named_split(cell)]
    if not any(cells) or not wrong:
        return []
    meant = {cell: split for cell in dict.fromkeys(cells) if (split := likely_split(cell))}
    told = "".join(f"; call {cell} {split} if it is that split" for cell, split in meant.items())
    return [
        f"the column split of {path} has {enumeration(wrong)}, but must be train, validation or test in "
        f"every row, or be left out{told}"
    ]
