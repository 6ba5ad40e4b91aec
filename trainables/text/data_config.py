"""Which texts a search is of, and how they are split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainables.errors import DataError, did_you_mean
from trainables.training.splits import SPLITS

__all__ = ["ALLOWED_SOURCES", "TextConfig"]

ALLOWED_SOURCES = (
    "a table (FILE.csv, .tsv, .jsonl or .parquet) with a text and a label column, a folder of class "
    "folders of .txt files, `fortunes`, or a folder of files of quotations that are separated by lines of %"
)
_OPTIONS = ("text", "label", "empty", "longest", "at_least", "negations_matter")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which texts, and how they are split.

    Attributes:
        source: as `ALLOWED_SOURCES` says.
        root: the folder that a relative `source` starts from.
        validation, test: shares, used for a split that the source does not bring itself.
        seed: of the splits and the limits.
        train_limit, validation_limit, test_limit: at most so many texts, stratified; None: all.
        text, label: the names of a table's columns; None: the usual ones.
        empty: `refuse` data with empty texts, or `skip` these.
        longest: a text of more characters is refused.
        at_least: classes with fewer texts are left out.
        group: a column of the table, or a pattern of a file's path with one group in brackets: texts of one
            group are never in two splits.
        negations_matter: whether a text without its negations may be of another class; policies then leave
            them as they are.

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
    text: str | None = None
    label: str | None = None
    empty: str = "refuse"
    longest: int = 1_000_000
    at_least: int = 1
    negations_matter: bool = False
    group: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"data.{f'options.{name}' if name in _OPTIONS else name} is {getattr(self, name)!r}, but must be "
            f"{allowed}"
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
            ("validation", _is_number(validation) and 0 < validation < 1, "a share above 0 and below 1"),
            ("test", _is_number(test) and 0 <= test < 1, "a share from 0 to below 1"),
            ("seed", _is_whole(self.seed, 0), "a whole number of at least 0"),
            ("text", self.text is None or isinstance(self.text, str), "the name of a column, or null"),
            ("label", self.label is None or isinstance(self.label, str), "the name of a column, or null"),
            ("empty", self.empty in ("refuse", "skip"), "refuse or skip"),
            ("longest", _is_whole(self.longest, 1), "a whole number above 0"),
            ("at_least", _is_whole(self.at_least, 1), "a whole number above 0"),
            ("group", self.group is None or bool(self.group), "a column, or a pattern with one group"),
            ("negations_matter", isinstance(self.negations_matter, bool), "true or false"),
        ]
        for split in SPLITS:
            limit = getattr(self, f"{split}_limit")
            rules.append(
                (f"{split}_limit", limit is None or _is_whole(limit, 1), "a whole number above 0, or null")
            )
        if all(is_good for _, is_good, _ in rules) and validation + test >= 1:
            what = f"so small that with data.test {test} something is left to train on"
            rules.append(("validation", False, what))
        return rules

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextConfig:
        """The value of a spec's `data` section.

        Raises:
            DataError: for an unknown or missing name, or a value that is not allowed.
        """
        known = [each.name for each in fields(cls)]
        problems = [
            f"data.options.{name} is not known, but must be one of {', '.join(_OPTIONS)}"
            f"{did_you_mean(str(name), _OPTIONS)}"
            for name in values
            if name not in known
        ]
        if "source" not in values:
            problems.append(f"data.source is not given, but must be {ALLOWED_SOURCES}")
        if problems:
            raise DataError(problems)
        return cls(**values)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
