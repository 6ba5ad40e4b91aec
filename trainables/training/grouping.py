"""Which examples belong together beside their class: of one patient, one video, one author."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from trainables.errors import DataError, did_you_mean, enumeration, first_lines

__all__ = ["group_lines", "group_names", "joined", "numbered"]

Ints = npt.NDArray[np.int64]


def group_names(group: str, names: Sequence[str], columns: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The group of each example; an empty cell is a group of its own.

    Args:
        group: a column, or else a pattern with one group in brackets, such as `patient(\\d+)_`.
        names: of the examples, as the source has them: in a folder the path below it.
        columns: of the source's table, by example.

    Raises:
        DataError: where there is no such column, or the pattern does not fit.
    """
    if group not in columns and "(" in group:
        return _by_pattern(group, names)
    if group not in columns:
        known = f"it has {', '.join(columns)}" if columns else "it has none: a folder has file names alone"
        raise DataError(
            f"data.group is {group!r}, which is no column of the source; {known}; give a column, or a "
            "pattern of the file name with one group in brackets, such as 'patient([0-9]+)_'"
            + did_you_mean(group, columns)
        )
    cells = columns[group]
    return [cells.get(name) or f"{name} alone" for name in names]


def _by_pattern(group: str, names: Sequence[str]) -> list[str]:
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise DataError(f"data.group is {group!r}, but must be a regular expression: {error}") from error
    if pattern.groups != 1:
        raise DataError(
            f"data.group is {group!r}, but must have one group in brackets; it has {pattern.groups}"
        )
    found = [pattern.search(name) for name in names]
    without = [name for name, match in zip(names, found, strict=True) if match is None or match[1] is None]
    if without:
        raise DataError(
            f"data.group is {group!r}, which {len(without):,} of {len(names):,} file names do not fit: "
            f"{enumeration(without)}; change the pattern so that it fits all"
        )
    return [str(match[1]) for match in found if match is not None]


def group_lines(groups: int | None, leaks: Sequence[Sequence[str]], items: str) -> Iterator[str]:
    """What a person is told of groups, if there are any.

    Args:
        groups: how many the examples in use are of.
        leaks: (group, example left out, its split, example of the group that stays, its split).
        items: what examples are called.
    """
    if groups is not None:
        yield f"groups (data.group): {groups:,}, none of them in two splits"
    if leaks:
        leaking = len({group for group, *_ in leaks})
        yield (
            f"WARNING: {leaking:,} groups leak: they are in several splits of the source; "
            f"{len(leaks):,} of their {items} are left out, so that each is in its last split alone"
        )
        yield from first_lines(
            f"group {group}: {out} ({split}) left out, {kept} ({kept_split}) stays"
            for group, out, split, kept, kept_split in leaks
        )


def numbered(names: Sequence[str]) -> Ints:
    """int64 [N]: a number for each name."""
    return np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def joined(one: Ints, other: Ints) -> Ints:
    """Groups that hold together whatever one of two groupings holds together, each int64 [N]."""
    label = np.arange(len(one))
    while True:
        before = label
        for groups in (one, other):
            least = np.full(int(groups.max(initial=0)) + 1, len(one))
            np.minimum.at(least, groups, label)
            label = least[groups]
        if (label == before).all():
            return np.unique(label, return_inverse=True)[1].astype(np.int64)
