"""What was found in the data, for a person to read before a search starts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.errors import first_lines, printable
from trainables.image.store import Scan
from trainables.training.grouping import group_lines
from trainables.training.splits import SPLITS, UNSPLIT, Assignment

__all__ = ["DataReport", "reported"]

_SHOWN = 10
_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "P": "palette",
    "RGB": "colour",
    "RGBA": "colour with transparency",
    "CMYK": "print colours",
}

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found in a source and what became of it.

    Attributes:
        source: as it was given.
        counts: images in use by split and class.
        found: images in the source.
        sizes: `WIDTHxHEIGHT` and how many images have it, the commonest first.
        modes: Pillow's pixel formats and how many images have each.
        unreadable: (file, reason) of each that cannot be decoded, and is not in use.
        duplicates: (image left out, its split, identical image that stays, its split).
        identical: groups of identical images, each group within one split.
        conflicts: groups of identical images with different labels, as (image, class).
        unused: images left out by a limit.
        imbalance: images of the commonest class over those of the rarest, in train.
        notes: what else a person should know.
        groups: how many groups the images in use are of; None where nothing says what belongs together.
        leaks: (group, image left out, its split, image of the group that stays, its split).
    """

    source: str
    counts: dict[str, dict[str, int]]
    found: int
    sizes: dict[str, int]
    modes: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
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
        classes = len(self.counts["train"])
        yield f"{self.source}: {self.found:,} images in {classes} classes"
        yield "splits: " + ", ".join(f"{split} {total:,}" for split, total in totals.items())
        if self.unused:
            yield f"left out by limits: {self.unused:,}"
        yield from self._class_lines()
        yield f"sizes: {_tally(self.sizes)}"
        told = {f"{m} ({_MODES[m]})" if m in _MODES else m: n for m, n in self.modes.items()}
        yield f"pixel formats: {_tally(told)}"
        if self.unreadable:
            yield f"unreadable, skipped: {len(self.unreadable):,}"
            yield from first_lines([f"{name}: {reason}" for name, reason in self.unreadable])
        if self.duplicates:
            yield f"identical images in several splits, kept in the last: {len(self.duplicates):,}"
            yield from first_lines(
                [
                    f"{out} ({split}) left out, same as {kept} ({kept_split})"
                    for out, split, kept, kept_split in self.duplicates
                ]
            )
        if self.identical:
            yield f"groups of identical images, each kept within one split: {len(self.identical):,}"
            yield from first_lines([" = ".join(_first(group)) for group in self.identical])
        if self.conflicts:
            yield f"WARNING: identical images with different labels: {len(self.conflicts):,} groups"
            yield from first_lines(
                [
                    ", ".join(_first([f"{name} is {label!r}" for name, label in group]))
                    for group in self.conflicts
                ]
            )
        yield from group_lines(self.groups, self.leaks, "images")
        yield from self.notes

    def _class_lines(self) -> Iterator[str]:
        train = sorted(self.counts["train"].items(), key=lambda each: -each[1])
        if len(train) <= 2 * _SHOWN:
            yield "train images by class: " + ", ".join(f"{_quoted(name)} {count:,}" for name, count in train)
        else:
            yield "commonest classes in train: " + ", ".join(f"{_quoted(n)} {c:,}" for n, c in train[:5])
            yield "rarest classes in train: " + ", ".join(f"{_quoted(n)} {c:,}" for n, c in train[-5:])
        if self.imbalance >= 3:
            yield (
                f"WARNING: the commonest class has {self.imbalance:.1f} times the images of the "
                "rarest; look at macro F1 besides accuracy, or try class_weights"
            )


def _first(names: Sequence[str]) -> list[str]:
    return [*names[:4], *(["..."] * (len(names) > 4))]


def _tally(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name} x {count:,}" for name, count in list(counts.items())[:5])
    return shown + f" and {len(counts) - 5:,} others" * (len(counts) > 5)


def reported(
    source: str,
    scan: Scan,
    readable: Ints,
    groups: Ints,
    assigned: Assignment,
    codes: Ints,
    owners: Sequence[str] | None = None,
) -> DataReport:
    """The report on a source: its readable items as assigned, and with `codes` after the limits.

    `owners` names the group that each readable item belongs to.
    """
    items = scan.items[readable]
    names = [scan.names[place] for place in readable]
    labels = items["label"].astype(np.int64)
    counts = {
        split: dict(
            zip(
                scan.classes,
                np.bincount(labels[codes == code], minlength=len(scan.classes)).tolist(),
                strict=True,
            )
        )
        for code, split in enumerate(SPLITS)
    }
    given = items["given"]
    identical, conflicts = _repeated(names, labels, groups, assigned.codes, scan.classes)
    sizes, amounts = np.unique(np.stack([items["width"], items["height"]]), axis=1, return_counts=True)
    order = np.argsort(-amounts, kind="stable")
    return DataReport(
        source=str(source),
        counts=counts,
        found=len(scan.items),
        sizes={f"{sizes[0, i]}x{sizes[1, i]}": int(amounts[i]) for i in order},
        modes=dict(Counter(scan.modes[mode] for mode in items["mode"]).most_common()),
        unreadable=tuple((scan.names[item], reason) for item, reason in scan.reasons.items()),
        duplicates=tuple(
            (names[out], SPLITS[given[out]], names[kept], SPLITS[given[kept]])
            for out, kept in assigned.dropped
        ),
        identical=identical,
        conflicts=conflicts,
        unused=int(((codes == UNSPLIT) & (assigned.codes != UNSPLIT)).sum()),
        imbalance=max(counts["train"].values()) / max(1, min(counts["train"].values())),
        notes=scan.notes,
        groups=None
        if owners is None
        else len({owners[item] for item in np.flatnonzero(codes != UNSPLIT).tolist()}),
        leaks=tuple(
            ((owners or names)[out], names[out], SPLITS[given[out]], names[kept], SPLITS[given[kept]])
            for out, kept in assigned.leaks
        ),
    )


def _repeated(
    names: Sequence[str], labels: Ints, groups: Ints, codes: Ints, classes: Sequence[str]
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[tuple[str, str], ...], ...]]:
    """Groups of identical images that stay, and groups whose images have different labels."""
    repeated = np.flatnonzero(np.bincount(groups)[groups] > 1)
    members: dict[int, list[int]] = defaultdict(list)
    for item in repeated.tolist():
        members[int(groups[item])].append(item)
    staying = [[item for item in group if codes[item] != UNSPLIT] for group in members.values()]
    identical = tuple(tuple(names[item] for item in group) for group in staying if len(group) > 1)
    conflicts = tuple(
        tuple((names[item], classes[labels[item]]) for item in group)
        for group in members.values()
        if len(set(labels[group].tolist())) > 1
    )
    return identical, conflicts


def _quoted(name: str) -> str:
    """A class as one item of a list: in quotes where it has a comma of its own."""
    return f'"{name}"' if "," in name else name
