"""Which images a search is of, and how they are split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trainables.errors import DataError, did_you_mean
from trainables.image.decode import MAX_PIXELS
from trainables.training.splits import SPLITS

__all__ = ["ALLOWED_SOURCES", "DataConfig"]

ALLOWED_SOURCES = (
    "digits, fashion-mnist, torchvision:NAME, a directory of class folders, "
    "a manifest (FILE.csv, .tsv, .jsonl or .parquet), or the address of either, such as s3://bucket/folder"
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split.

    Attributes:
        source: `digits`, `fashion-mnist`, `torchvision:NAME`, a directory, a table (.csv, .tsv, .jsonl,
            .parquet), or the address of one of the last two, from where it comes into the cache.
        root: where the published sets lie; the folder that a relative `source` starts from.
        validation, test: shares, used for a split that the source does not bring itself.
        seed: of the splits and the limits.
        train_limit, validation_limit, test_limit: at most so many images, stratified; None: all.
        unreadable: `refuse` data with files that cannot be decoded, or `skip` these files.
        max_pixels: an image with more is taken for a decompression bomb.
        links: `inside`: symbolic links are followed where they stay in the source's folder; or `anywhere`.
        group: a column of the table, or a pattern of a file's path with one group in brackets: images of one
            group are never in two splits.
        orientation_matters: whether a mirrored or turned image may be of another class; policies then keep
            images upright.

    Raises:
        DataError: on construction, naming every value that is not allowed.
    """

    source: str
    root: str | Path | None = None
    validation: float = 0.2
    test: float = 0.2
    seed: int = 0
    train_limit: int | None = None
    validation_limit: int | None = None
    test_limit: int | None = None
    unreadable: str = "refuse"
    max_pixels: int = MAX_PIXELS
    links: str = "inside"
    orientation_matters: bool = False
    group: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"data.{name} is {getattr(self, name)!r}, but must be {allowed}"
            for name, is_good, allowed in self._rules()
            if not is_good
        ]
        if problems:
            raise DataError(problems)

    def _rules(self) -> list[tuple[str, bool, str]]:
        validation, test = self.validation, self.test
        rules = [
            ("source", isinstance(self.source, str | Path) and str(self.source) != "", ALLOWED_SOURCES),
            ("root", self.root is None or isinstance(self.root, str | Path), "a folder, or null"),
            (
                "validation",
                _is_number(validation) and 0 < validation < 1,
                "a share above 0 and below 1",
            ),
            ("test", _is_number(test) and 0 <= test < 1, "a share from 0 to below 1"),
            ("seed", _is_whole(self.seed) and self.seed >= 0, "a whole number of at least 0"),
            ("unreadable", self.unreadable in ("refuse", "skip"), "refuse or skip"),
            (
                "max_pixels",
                _is_whole(self.max_pixels) and self.max_pixels > 0,
                "a whole number above 0",
            ),
            ("links", self.links in ("inside", "anywhere"), "inside or anywhere"),
            ("group", self.group is None or bool(self.group), "a column, or a pattern with one group"),
            ("orientation_matters", isinstance(self.orientation_matters, bool), "true or false"),
        ]
        for split in SPLITS:
            limit = getattr(self, f"{split}_limit")
            is_good = limit is None or (_is_whole(limit) and limit > 0)
            rules.append((f"{split}_limit", is_good, "a whole number above 0, or null"))
        if all(is_good for _, is_good, _ in rules) and validation + test >= 1:
            rules.append(
                (
                    "validation",
                    False,
                    f"so small that with data.test {test} something is left to train on",
                )
            )
        return rules

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON, for `from_dict`."""
        paths = {"source": str(self.source), "root": None if self.root is None else str(self.root)}
        return {**asdict(self), **paths}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """The value that `to_dict` described.

        Raises:
            DataError: for an unknown or missing name, or a value that is not allowed.
        """
        known = [each.name for each in fields(cls)]
        problems = [
            f"data.{name} is not known, but must be one of {', '.join(known)}{did_you_mean(str(name), known)}"
            for name in values
            if name not in known
        ]
        if "source" not in values:
            problems.append(f"data.source is not given, but must be {ALLOWED_SOURCES}")
        if problems:
            raise DataError(problems)
        return cls(**values)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
