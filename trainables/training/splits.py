"""Which image trains, validates and tests: seeded, stratified, identical images together."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SPLITS", "UNSPLIT", "Assignment", "alike", "assign", "limited"]

SPLITS = ("train", "validation", "test")
"""The splits, each one's code its position; a higher one keeps an image that two of them hold."""

UNSPLIT = -1
"""The code of an image whose source says nothing about splits."""

_TRAIN, _VALIDATION, _TEST = range(3)
_SHOWN = 10

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Assignment:
    """Where every item goes.

    Attributes:
        codes: int64 [N], the position in `SPLITS`, or `UNSPLIT` for an item that is left out.
        dropped: pairs (item left out, identical item of another split that stays).
        problems: what keeps the splits from being used, each for a person to act on.
        leaks: pairs (item left out, item of its kin in another split that stays).
    """

    codes: Ints
    dropped: tuple[tuple[int, int], ...]
    problems: tuple[str, ...]
    leaks: tuple[tuple[int, int], ...] = ()


def assign(
    *,
    labels: Ints,
    groups: Ints,
    ids: npt.NDArray[np.uint64],
    given: Ints,
    classes: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    kin: Ints | None = None,
    item: str = "image",
) -> Assignment:
    """The split of every item.

    Items of one group (identical pixels) share a split. A split that the source gives stays as it
    is, except that an image that stands in several is kept in the last of train, validation and
    test alone. A split that it does not give is drawn from the images that it leaves open or calls
    train, `shares` of them, stratified by class; what is drawn depends on the pixels and the seed,
    never on names or the order of files.

    Args:
        labels, groups, given: [N] class, group of identical pixels, and code of the given split.
        ids: [N] a number that the pixels determine.
        shares: of `validation` and `test`, each 0 <= share < 1.
        kin: [N] larger groups, each of which holds whole groups: items of one share a split too.
        item: what one is called in a message.
    """
    codes = given.copy()
    dropped = _straddling(codes, groups)
    codes[[item for item, _ in dropped]] = UNSPLIT
    together = groups if kin is None else kin
    leaks = [] if kin is None else _straddling(codes, kin)
    codes[[item for item, _ in leaks]] = UNSPLIT
    is_pool = (given == UNSPLIT) | (codes == _TRAIN)
    wanted = [
        (code, shares[SPLITS[code]])
        for code in (_TEST, _VALIDATION)
        if shares[SPLITS[code]] > 0 and not (given == code).any()
    ]
    problems: list[str] = []
    whereabouts = _Whereabouts(labels, groups, given, dropped, classes, item)
    pool = np.flatnonzero(is_pool)
    if wanted and len(pool):
        codes[pool], problems = _carved(
            labels[pool],
            together[pool],
            _order(ids[pool], seed, "splits"),
            whereabouts,
            wanted,
            of_kin=kin is not None,
        )
    else:
        codes[pool] = _TRAIN
    if not problems:
        in_use = [
            split
            for code, split in enumerate(SPLITS)
            if split == "train" or shares[split] > 0 or (given == code).any()
        ]
        problems = _absences(codes, whereabouts, in_use)
    return Assignment(codes=codes, dropped=tuple(dropped), problems=tuple(problems), leaks=tuple(leaks))


def limited(items: Ints, *, labels: Ints, ids: npt.NDArray[np.uint64], limit: int | None, seed: int) -> Ints:
    """At most `limit` of one split's items, stratified; a smaller limit's are among a larger one's.

    Args:
        items: the split's items, ascending; `labels` and `ids` are theirs.
    """
    if limit is None or limit >= len(items):
        return items
    order = np.lexsort((np.arange(len(items)), _order(ids, seed, "limits"), labels))
    return np.sort(items[order[_first(labels[order], limit)]])


def alike(name: str) -> str:
    """What names that a person may take for the same have in common."""
    plain = unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ")
    return " ".join(plain.split())


def _order(ids: npt.NDArray[np.uint64], seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    """Random sort keys that only the ids, the seed and the purpose determine.

    The mixing is that of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    salt = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    keys = ids + np.frombuffer(salt, dtype="<u8")[0]
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = keys ^ (keys >> np.uint64(31))
    return mixed


def _straddling(codes: Ints, groups: Ints) -> list[tuple[int, int]]:
    """Pairs (item, the identical item that stays) of images that stand in more than one split."""
    split = np.flatnonzero(codes != UNSPLIT)
    if not len(split):
        return []
    last = np.full(int(groups.max()) + 1, UNSPLIT, dtype=np.int64)
    np.maximum.at(last, groups[split], codes[split])
    losing = split[codes[split] < last[groups[split]]]
    if not len(losing):
        return []
    winning = split[codes[split] == last[groups[split]]]
    keeper = {int(groups[item]): int(item) for item in winning[::-1]}
    return [(int(item), keeper[int(groups[item])]) for item in losing]


def _first(labels: Ints, total: int) -> npt.NDArray[np.bool_]:
    """Which `total` of the items, best first within each class, keep the classes' shares.

    Seats are handed out by Webster's method: the k-th item of a class of n comes at (k - 1/2) / n.
    It is monotone, so that a smaller total's items are a subset. The first item of every class
    comes before all others.
    """
    counts = np.bincount(labels)
    starts = np.zeros(len(counts), dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    starts[1:] = np.cumsum(counts)[:-1]
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    priority = np.where(rank == 0, 0.0, (rank + 0.5) / counts[labels])
    taken = np.zeros(len(labels), dtype=np.bool_)
    taken[np.lexsort((labels, priority))[:total]] = True
    return taken


def _quotas(counts: Ints, share: float) -> Ints:
    """How many of each class make `share` of all, at least one of each class that there is."""
    total = max(round(share * int(counts.sum())), int((counts > 0).sum()))
    labels = np.repeat(np.arange(len(counts)), counts)
    quotas: Ints = np.bincount(labels[_first(labels, total)], minlength=len(counts))
    return quotas


def _carved(
    labels: Ints,
    groups: Ints,
    keys: npt.NDArray[np.uint64],
    whereabouts: _Whereabouts,
    wanted: Sequence[tuple[int, float]],
    *,
    of_kin: bool = False,
) -> tuple[Ints, list[str]]:
    """Codes of the items with the wanted splits drawn from them, and problems."""
    _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    label_of = labels[first]
    for mixed in np.unique(group[labels != label_of[group]]):  # identical images, different labels
        label_of[mixed] = np.bincount(labels[group == mixed]).argmax()
    classes = len(whereabouts.classes)
    counts = np.bincount(label_of, weights=sizes, minlength=classes).astype(np.int64)
    quotas = {code: _quotas(counts, share) for code, share in wanted}
    order = np.lexsort((keys[first], label_of))
    ends = np.searchsorted(label_of[order], np.arange(classes), side="right")
    of_group = np.full(len(first), _TRAIN, dtype=np.int64)
    small: dict[int, int] = {}
    for label, members in enumerate(np.split(order, ends[:-1])):
        if len(members) <= len(wanted):
            # Kin of several classes count as that which most of them have.
            holding = len(np.unique(group[labels == label])) if of_kin else len(members)
            if holding <= len(wanted):
                small[label] = holding
            continue
        for place, (code, _) in enumerate(wanted):
            spare = len(wanted) - place
            chosen = _filling(members, sizes, int(quotas[code][label]), spare)
            of_group[chosen] = code
            members = members[of_group[members] == _TRAIN]
    codes: Ints = of_group[group]
    drawn = [SPLITS[code] for code, _ in reversed(wanted)]
    return codes, list(_too_small(small, whereabouts, drawn, "group" if of_kin else whereabouts.item))


def _too_small(
    small: Mapping[int, int], whereabouts: _Whereabouts, drawn: Sequence[str], noun: str
) -> Iterator[str]:
    """The classes that have fewer different images, or groups, than there are splits; ten and a count."""
    needed, names = len(drawn) + 1, " and ".join([", ".join(["train", *drawn[:-1]]), drawn[-1]])
    fix = f"add {noun}s, or take the class out"
    if len(drawn) > 1 and any(count == needed - 1 for count in small.values()):
        fix += f", or do without a test split (--set data.splits.test=0), where {needed - 1} suffice"
    if len(small) > _SHOWN:
        shown = [f"{whereabouts.classes[label]!r} ({count})" for label, count in list(small.items())[:_SHOWN]]
        yield (
            f"{len(small):,} of {len(whereabouts.classes):,} classes have too few different {noun}s, where "
            f"each needs at least {needed}, one for each of {names}: {', '.join(shown)} and "
            f"{len(small) - _SHOWN:,} more; {fix.replace('the class', 'these classes')}"
        )
        return
    for label, count in small.items():
        yield (
            f"class {whereabouts.classes[label]!r} has {count} different "
            f"{noun}{'s' * (count != 1)}{whereabouts.elsewhere(label)}, but needs at least {needed}, one for "
            f"each of {names}; {fix}{whereabouts.twin(label)}"
        )


def _filling(members: Ints, sizes: Ints, quota: int, spare: int) -> Ints:
    """The first groups that fit into a quota of items, at least one; `spare` groups are left."""
    most = max(1, len(members) - spare)
    if (sizes[members] == 1).all():
        return members[: min(max(quota, 1), most)]
    chosen: list[int] = []
    filled = 0
    for member in members:
        if len(chosen) < most and filled + sizes[member] <= quota:
            chosen.append(int(member))
            filled += int(sizes[member])
    if not chosen:
        chosen = [int(members[np.argmin(sizes[members])])]
    return np.array(chosen, dtype=np.int64)


def _absences(codes: Ints, whereabouts: _Whereabouts, in_use: Sequence[str]) -> list[str]:
    """The classes that a split in use has no image of, or no image that it may keep."""
    problems = []
    classes, labels = whereabouts.classes, whereabouts.labels
    for split in in_use:
        is_here = codes == SPLITS.index(split)
        present = np.bincount(labels[is_here], minlength=len(classes))
        missing = np.flatnonzero(present == 0).tolist()
        if missing:
            names = ", ".join(repr(classes[label]) for label in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
            twins = "".join(whereabouts.twin(label) for label in missing[:1])
            problems.append(
                f"the {split} split has no {whereabouts.item} of "
                f"{'class' if len(missing) == 1 else 'classes'} {names}{more}"
                f"{whereabouts.dropped_from(split, missing)}, but every class must be in every split; "
                f"add {whereabouts.items} of it, or take the class out of all splits{twins}"
            )
    return problems


class _Whereabouts:
    """Where the images of a class are that a split lacks, in words.

    Args:
        labels, groups, given: [N] as `assign` takes them.
        dropped: pairs (item left out, identical item of another split that stays).
        classes: their names.
        item: what one is called.
    """

    def __init__(
        self,
        labels: Ints,
        groups: Ints,
        given: Ints,
        dropped: Sequence[tuple[int, int]],
        classes: Sequence[str],
        item: str,
    ) -> None:
        self.labels, self.classes = labels, classes
        self.item, self.items = item, f"{item}s"
        self._groups, self._given, self._dropped = groups, given, dropped

    def dropped_from(self, split: str, missing: Sequence[int]) -> str:
        """How many of a split's images of these classes were left out as copies of another split's."""
        code, wanted = SPLITS.index(split), set(missing)
        kept = [
            SPLITS[self._given[stays]]
            for out, stays in self._dropped
            if self._given[out] == code and int(self.labels[out]) in wanted
        ]
        if not kept:
            return ""
        return (
            f": {len(kept):,} {self.items} of {'it' if len(wanted) == 1 else 'them'} are identical to "
            f"{self.items} of {' and '.join(sorted(set(kept)))}, where they are kept"
        )

    def elsewhere(self, label: int) -> str:
        """Which splits a class's images were given to, and which classes have the same images."""
        own = self.labels == label
        counts = sorted(Counter(self._given[own & (self._given > _TRAIN)].tolist()).items())
        told = [f"{count:,} in {SPLITS[code]}" for code, count in counts]
        text = f" to draw from (there are {' and '.join(told)})" if told else ""
        sharing = np.isin(self._groups, self._groups[own]) & ~own
        others = [self.classes[other] for other in np.unique(self.labels[sharing]).tolist()]
        if others:
            text += f" (some are identical to {self.items} of {', '.join(map(repr, others[:_SHOWN]))})"
        return text

    def twin(self, label: int) -> str:
        """A question for another class whose name looks the same."""
        own = alike(self.classes[label])
        twins = [name for name in self.classes if name != self.classes[label] and alike(name) == own]
        return f"; did you mean {twins[0]!r}?" if twins else ""
