"""Labelled texts for a trial: where they come from, checked, split, and cut into tokens once a process."""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.errors import DataError, enumeration
from trainables.modality import Progress
from trainables.text.data_config import TextConfig
from trainables.text.inventory import TextReport, reported, shortened
from trainables.text.preprocessing import Preprocessing
from trainables.text.sources import Listing, Row, by_label, listing_of
from trainables.text.tokens import tokenizer_of
from trainables.training.ahead import placed
from trainables.training.grouping import group_names, joined, numbered
from trainables.training.labels import class_names, numbered_labels
from trainables.training.splits import SPLITS, UNSPLIT, Assignment, assign, limited

__all__ = ["TextData", "TokenRows", "load"]

_NAME = 200

Ints = npt.NDArray[np.int64]


class TokenRows:
    """All texts of a `TextData` as tokens: int64 [B, 3, L] of ids, their mask, and their words' numbers.

    Attributes:
        lengths: of each text, in tokens, int64 [N].
    """

    def __init__(self, rows: npt.NDArray[np.int32]) -> None:
        self._rows = rows
        self.lengths = torch.from_numpy(rows[:, 1].sum(1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The texts at int64 indices [B].

        Raises:
            IndexError: for an index below 0 or not below the length.
        """
        wanted = indices.detach().cpu().numpy()
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(
                f"indices from {wanted.min()} to {wanted.max()} were asked for, but there are {len(self)} "
                "texts"
            )
        return torch.from_numpy(self._rows[wanted].astype(np.int64))

    def on(self, device: torch.device, indices: Tensor) -> Tensor:
        """The same on a device."""
        return placed(self[indices], device)


@dataclass(frozen=True, kw_only=True, eq=False)
class TextData:
    """Labelled texts, split and ready to be trained on.

    Attributes:
        classes: the names of the labels.
        labels: int64 [N].
        splits: ascending int64 indices of `train`, `validation` and `test`; every one is in one.
        fingerprint: hex; changes if and only if texts, labels, classes or splits change.
        groups: int64 [N]: what belongs together and shares a split; None: nothing but the same text does.
        names: of each text where it stands, and its beginning.
        texts: as they were written.
        report: what was found.
        negations_matter: as `TextConfig` has it.
    """

    classes: tuple[str, ...]
    labels: Tensor
    splits: dict[str, Tensor]
    fingerprint: str
    names: tuple[str, ...]
    report: TextReport
    negations_matter: bool = False
    groups: Tensor | None = None
    texts: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    def examples(self, preprocessing: Preprocessing) -> TokenRows:
        """The texts as tokens."""
        return _tokens(self, preprocessing)


@functools.lru_cache(maxsize=8)
def _tokens(data: TextData, preprocessing: Preprocessing) -> TokenRows:
    """Cut once for every trial of a process."""
    return TokenRows(tokenizer_of(preprocessing).rows(data.texts, preprocessing.max_length))


def load(config: TextConfig, *, progress: Progress | None = None) -> TextData:
    """The texts that `config` names, checked and split.

    Raises:
        DataError: naming everything that keeps the data from being used.
    """
    listing = listing_of(config)
    rows, empty, notes = _used(config, listing)
    classes, of, alike = class_names(row.label for row in rows)
    labels = numbered_labels(of, [row.label for row in rows])
    contents = [_content(row.text) for row in rows]
    ids = np.frombuffer(b"".join(each[:8] for each in contents), dtype="<u8").astype(np.uint64)
    groups = np.unique(np.array(contents, dtype="V16"), return_inverse=True)[1].astype(np.int64)
    given = np.array(
        [UNSPLIT if row.split is None else SPLITS.index(row.split) for row in rows], dtype=np.int64
    )
    owners = None
    if config.group is not None:
        owners = group_names(config.group, [row.place for row in rows], listing.columns)
    kin = None if owners is None else joined(groups, numbered(owners))
    assigned = assign(
        labels=labels,
        groups=groups,
        ids=ids,
        given=given,
        classes=classes,
        shares={"validation": config.validation, "test": config.test},
        seed=config.seed,
        kin=kin,
        item="text",
    )
    problems = [*assigned.problems, *_limit_problems(config, assigned, classes)]
    if problems:
        raise DataError(problems)
    codes = np.full(len(labels), UNSPLIT, dtype=np.int64)
    for code, split in enumerate(SPLITS):
        own = np.flatnonzero(assigned.codes == code)
        limit = getattr(config, f"{split}_limit")
        codes[limited(own, labels=labels[own], ids=ids[own], limit=limit, seed=config.seed)] = code
    used = np.flatnonzero(codes != UNSPLIT)
    return TextData(
        classes=classes,
        labels=torch.from_numpy(labels[used]),
        splits={
            split: torch.from_numpy(np.flatnonzero(codes[used] == code)) for code, split in enumerate(SPLITS)
        },
        fingerprint=_fingerprint(classes, codes[used], labels[used], [contents[place] for place in used]),
        names=tuple(f"{rows[place].place}: {shortened(rows[place].text, _NAME)}" for place in used),
        report=reported(
            str(config.source),
            rows,
            classes,
            labels,
            groups,
            assigned,
            codes,
            owners,
            found=len(listing.rows),
            empty=empty,
            notes=(*listing.notes, *notes, *alike),
        ),
        negations_matter=config.negations_matter,
        groups=None if kin is None else torch.from_numpy(kin[used]),
        texts=tuple(rows[place].text for place in used),
    )


def _used(config: TextConfig, listing: Listing) -> tuple[list[Row], list[str], list[str]]:
    """The rows that can be used, where the empty ones stand, and notes.

    Raises:
        DataError: where texts are none, too long, or of one class.
    """
    long = [
        f"{row.place} ({len(row.text):,} characters)"
        for row in listing.rows
        if len(row.text) > config.longest
    ]
    empty = [row.place for row in listing.rows if not row.text.strip()]
    rows = [row for row in listing.rows if row.text.strip()]
    problems = []
    if long:
        problems.append(
            f"data.source {config.source} has texts of more than {config.longest:,} characters: "
            f"{enumeration(long)}; is a quotation mark left open? split them, take them out, or set "
            "data.options.longest"
        )
    if empty and config.empty == "refuse":
        problems.append(
            f"{len(empty):,} of {len(listing.rows):,} texts in {config.source} are empty: "
            f"{enumeration(empty)}; fill them in, take them out, or set data.options.empty to skip"
        )
    if not rows:
        problems.append(f"data.source {config.source} holds no texts; give one that does")
    if problems:
        raise DataError(problems)
    notes = []
    small = [
        label
        for label, places in by_label(rows).items()
        if len({_content(rows[place].text) for place in places}) < config.at_least
    ]
    if small:
        notes.append(
            f"{len(small):,} classes with fewer than {config.at_least:,} different texts are left out: "
            f"{enumeration(sorted(small))}"
        )
        rows = [row for row in rows if row.label not in set(small)]
    labels = {row.label for row in rows}
    if len(labels) < 2:
        what = f"only the class {next(iter(labels))!r}" if labels else "no class"
        fewer = f" with at least {config.at_least:,} texts" if small else ""
        raise DataError(
            f"data.source {config.source} holds {what}{fewer}, but needs at least two; add a class, or "
            "check that you gave the right column, or the folder above the class folders"
        )
    return rows, empty, notes


def _content(text: str) -> bytes:
    """What texts have in common that differ in spaces and in the spelling of Unicode alone."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _limit_problems(config: TextConfig, assigned: Assignment, classes: Sequence[str]) -> list[str]:
    return [
        f"data.limit.{split} is {limit}, but must be at least {len(classes)}, one text for each class"
        for code, split in enumerate(SPLITS)
        if (limit := getattr(config, f"{split}_limit")) is not None
        and (assigned.codes == code).any()
        and limit < len(classes)
    ]


def _fingerprint(classes: Sequence[str], codes: Ints, labels: Ints, contents: Sequence[bytes]) -> str:
    digest = hashlib.blake2b(json.dumps(list(classes)).encode(), digest_size=16)
    digest.update(codes.astype("<i8").tobytes())
    digest.update(labels.astype("<i8").tobytes())
    digest.update(b"".join(contents))
    return digest.hexdigest()
