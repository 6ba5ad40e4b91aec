"""What was found in labelled texts, for a person to read before a search starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.errors import enumeration, first_lines, printable
from trainables.text.sources import Row
from trainables.training.grouping import group_lines
from trainables.training.splits import SPLITS, UNSPLIT, Assignment

__all__ = ["TextReport", "reported", "shortened"]

_SHOWN = 10
_NAMED = 4
_LENGTH = 60

Ints = npt.NDArray[np.int64]


def shortened(text: str, length: int = _LENGTH) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return printable(line if len(line) <= length else line[: length - 1].rstrip() + "…")


@dataclass(frozen=True, kw_only=True)
class TextReport:
    """What was found in a source and what became of it.

    Attributes:
        source: as it was given.
        counts: texts in use by split and class.
        found: texts in the source.
        words: of a text, the median and the most.
        empty: where the texts without a word stand, which are not in use.
        duplicates: (text left out, its split, the same text that stays, its split).
        identical: groups of the same text, each group within one split.
        conflicts: groups of the same text with different labels, as (text, class).
        unused: texts left out by a limit.
        imbalance: texts of the commonest class over those of the rarest, in train.
        notes: what else a person should know.
        groups: how many groups the texts in use are of; None where nothing says what belongs together.
        leaks: (group, text left out, its split, text of the group that stays, its split).
    """

    source: str
    counts: dict[str, dict[str, int]]
    found: int
    words: tuple[int, int]
    empty: tuple[str, ...]
    duplicates: tuple[tuple[str, str, str, str], ...]
    identical: tuple[tuple[str, ...], ...]
    conflicts: tuple[tuple[tuple[str, str], ...], ...]
    unused: int
    imbalance: float
    notes: tuple[str, ...]
    groups: int | None = None
    leaks: tuple[tuple[str, str, str, str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report for a person, a line each."""
        return [printable(line) for line in self._lines()]

    def _lines(self) -> Iterator[str]:
        totals = {split: sum(of.values()) for split, of in self.counts.items()}
        yield f"{self.source}: {self.found:,} texts in {len(self.counts['train'])} classes"
        yield "splits: " + ", ".join(f"{split} {total:,}" for split, total in totals.items())
        if self.unused:
            yield f"left out by limits: {self.unused:,}"
        train = sorted(self.counts["train"].items(), key=lambda each: -each[1])
        told = [f'"{name}" {count:,}' if "," in name else f"{name} {count:,}" for name, count in train]
        if len(train) <= 2 * _SHOWN:
            yield "train texts by class: " + ", ".join(told)
        else:
            yield "commonest classes in train: " + ", ".join(told[:5])
            yield "rarest classes in train: " + ", ".join(told[-5:])
        if self.imbalance >= 3:
            yield (
                f"WARNING: the commonest class has {self.imbalance:.1f} times the texts of the rarest; "
                "look at macro F1 besides accuracy, or try class_weights"
            )
        yield f"words of a text: {self.words[0]:,} in the middle, {self.words[1]:,} at most"
        if self.empty:
            yield f"empty texts, skipped: {len(self.empty):,} ({enumeration(self.empty)})"
        if self.duplicates:
            yield f"the same text in several splits, kept in the last: {len(self.duplicates):,}"
            yield from first_lines(
                f"{out} ({split}) left out, same as {kept} ({kept_split})"
                for out, split, kept, kept_split in self.duplicates
            )
        if self.identical:
            yield f"groups of the same text, each kept within one split: {len(self.identical):,}"
            yield from first_lines(" = ".join(_first(group)) for group in self.identical)
        if self.conflicts:
            yield f"WARNING: the same text with different labels: {len(self.conflicts):,} groups"
            yield from first_lines(
                ", ".join(_first([f"{name} is {label!r}" for name, label in group]))
                for group in self.conflicts
            )
        yield from group_lines(self.groups, self.leaks, "texts")
        yield from self.notes


def _first(names: Sequence[str]) -> list[str]:
    return [*names[:_NAMED], *(["..."] * (len(names) > _NAMED))]


def reported(
    source: str,
    rows: Sequence[Row],
    classes: Sequence[str],
    labels: Ints,
    groups: Ints,
    assigned: Assignment,
    codes: Ints,
    owners: Sequence[str] | None,
    *,
    found: int,
    empty: Sequence[str],
    notes: Sequence[str],
) -> TextReport:
    """The report on rows as assigned, and with `codes` after the limits.

    Args:
        source: as it was given.
        rows: those that may be used, with `labels` among `classes` and `groups` of the same text.
        assigned: their splits.
        codes: the same after the limits.
        owners: the group of each row; None where nothing says what belongs together.
        found: how many texts the source has.
        empty: where those without a word stand.
        notes: what else a person should know.
    """
    counts = {
        split: dict(
            zip(classes, np.bincount(labels[codes == code], minlength=len(classes)).tolist(), strict=True)
        )
        for code, split in enumerate(SPLITS)
    }
    lengths = [len(row.text.split()) for row in rows]
    members: dict[int, list[int]] = defaultdict(list)
    for place in np.flatnonzero(np.bincount(groups)[groups] > 1).tolist():
        members[int(groups[place])].append(place)
    staying = [[place for place in group if assigned.codes[place] != UNSPLIT] for group in members.values()]
    return TextReport(
        source=source,
        counts=counts,
        found=found,
        words=(int(np.median(lengths)), max(lengths)),
        empty=tuple(empty),
        duplicates=tuple(
            (_called(rows[out]), _split(rows[out]), _called(rows[kept]), _split(rows[kept]))
            for out, kept in assigned.dropped
        ),
        identical=tuple(
            tuple(_called(rows[place]) for place in group) for group in staying if len(group) > 1
        ),
        conflicts=tuple(
            tuple((_called(rows[place]), classes[labels[place]]) for place in group)
            for group in members.values()
            if len(set(labels[group].tolist())) > 1
        ),
        unused=int(((codes == UNSPLIT) & (assigned.codes != UNSPLIT)).sum()),
        imbalance=max(counts["train"].values()) / max(1, min(counts["train"].values())),
        notes=tuple(notes),
        groups=None
        if owners is None
        else len({owners[place] for place in np.flatnonzero(codes != UNSPLIT).tolist()}),
        leaks=tuple(
            (
                (owners or ())[out],
                _called(rows[out]),
                _split(rows[out]),
                _called(rows[kept]),
                _split(rows[kept]),
            )
            for out, kept in assigned.leaks
        ),
    )


def _called(row: Row) -> str:
    return f"{row.place} ({shortened(row.text, _LENGTH // 2)})"


def _split(row: Row) -> str:
    return row.split or "no split"
