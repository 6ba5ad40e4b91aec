"""Where labelled texts come from: tables, folders of class folders, files of quotations."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainables.errors import DataError, did_you_mean, enumeration
from trainables.files.remote import is_uri
from trainables.files.tables import SUFFIXES, cell_text, named_column, read_columns
from trainables.text.data_config import ALLOWED_SOURCES, TextConfig
from trainables.training.labels import named_split, split_problems

__all__ = ["FORTUNES", "Listing", "Row", "listing_of", "read_text"]

FORTUNES = Path("/usr/share/games/fortunes")
"""Where Debian's package of quotations puts them."""

_TEXTS = ("text", "sentence", "content", "body", "review", "comment", "message", "quote", "utterance")
_LABELS = ("label", "class", "class_name", "category", "labels", "intent", "topic", "sentiment")
_COMPILED = (".dat", ".u8")
_SEPARATOR = "%"
_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """A labelled text.

    Attributes:
        place: where it stands, for a person.
        text: as it is written there.
        label: name of its class.
        split: the split that its source gives it to, if it does.
    """

    place: str
    text: str
    label: str
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The texts of a source, and what a person should know of what was found.

    Attributes:
        rows: the texts.
        columns: of a table, those by which texts may be grouped: cells by column and by place of the row.
        notes: what a person should know.
    """

    rows: Sequence[Row]
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def listing_of(config: TextConfig) -> Listing:
    """The texts that a configuration names.

    Raises:
        DataError: for a source that there is not, or that cannot be read.
    """
    root = None if config.root is None else Path(config.root).expanduser().absolute()
    text = str(config.source)
    if root is not None and not root.is_dir():
        raise DataError(f"data.root is {root}, which is no folder; give one that exists, or leave it out")
    if is_uri(text):
        raise DataError(
            f"data.source is {text}, but texts are read from this machine: give {ALLOWED_SOURCES}"
        )
    if text == "fortunes":
        folder = FORTUNES if root is None else root
        if not folder.is_dir():
            raise DataError(
                f"data.source is fortunes, but there is no folder {folder}; install Debian's package "
                "`fortunes`, or give the folder of its files as data.root"
            )
        return _quotations(folder)
    path = Path(root or "", Path(text).expanduser()).absolute()
    if path.is_dir():
        return _folder(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _table(path, config)
    what = "is a file of another kind" if path.is_file() else "does not exist"
    raise DataError(
        f"data.source is {text}, but {path} {what}; give {ALLOWED_SOURCES}{did_you_mean(text, ['fortunes'])}"
    )


def read_text(path: Path) -> str:
    """The text in a file of UTF-8.

    Raises:
        DataError: if it cannot be read, or holds anything else.
    """
    try:
        if path.stat().st_size > _BYTES:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, but a file may have {_BYTES:,}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if b"\0" in data:
        raise DataError(f"{path} is no text: it has zero bytes, as archives and programs have")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not text in UTF-8: line {line} has the byte {data[error.start]:#04x}; convert it "
            "with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error


# Tables


def _table(path: Path, config: TextConfig) -> Listing:
    notes: list[str] = []
    texts = (config.text.lower(),) if config.text else _TEXTS
    labels = (config.label.lower(),) if config.label else _LABELS
    grouped = (config.group.lower(),) if config.group else ()
    columns = read_columns(path, (texts, labels, grouped) if grouped else (texts, labels), notes)
    named = {role: named_column(columns, of) for role, of in (("text", texts), ("label", labels))}
    missing = [role for role, name in named.items() if name is None]
    if missing:
        asked = [
            f"data.options.{role} {getattr(config, role)!r}" for role in missing if getattr(config, role)
        ]
        raise DataError(
            f"{path} has the columns {enumeration(list(columns)) or '(none)'}, but none for "
            f"{' and '.join(missing)}{f' ({enumeration(asked)})' if asked else ''}; name them with "
            "data.options: {text: COLUMN, label: COLUMN}"
        )
    notes += [f"the column {name} is taken for {role}" for role, name in named.items() if name != role]
    split = named_column(columns, ("split",))
    cells = columns[str(named["label"])]
    several = [f"row {row}" for row, cell in enumerate(cells, 1) if isinstance(cell, list | tuple)]
    if several:
        raise DataError(
            f"{path} has lists of labels in {enumeration(several)}, but a text has one class here; data with "
            "several labels a text cannot be used"
        )
    splits = [cell_text(cell) for cell in columns[split]] if split is not None else []
    problems = split_problems(path, splits)
    given = [named_split(cell) for cell in splits] if any(splits) else []
    bodies = [cell_text(cell) for cell in columns[str(named["text"])]]
    names = [cell_text(cell) for cell in cells]
    unlabelled = [f"row {row}" for row, name in enumerate(names, 1) if not name]
    if unlabelled:
        problems.append(
            f"{path} has an empty label in {enumeration(unlabelled)}; fill them in, or remove the rows"
        )
    if problems:
        raise DataError(problems)
    rows = [
        Row(f"row {row}", body, name, given[row - 1] if given else None)
        for row, (body, name) in enumerate(zip(bodies, names, strict=True), 1)
    ]
    others: dict[str, dict[str, str]] = {name: {} for name in columns if name not in named.values()}
    if config.group in others:
        grouping = zip(rows, columns[config.group], strict=True)
        others[config.group] = {row.place: cell_text(cell) for row, cell in grouping}
    return Listing(rows=rows, columns=others, notes=tuple(notes))


# Folders


def _folder(path: Path) -> Listing:
    """A folder of class folders, of splits of them, or of files of quotations."""
    base = path.resolve()
    folders = [each for each in _entries(base) if each.is_dir()]
    splits = {each: split for each in folders if (split := named_split(each.name))}
    classes: list[tuple[Path, str | None]]
    if splits and len(splits) == len(folders):
        classes = [(each, split) for own, split in splits.items() for each in _entries(own) if each.is_dir()]
    elif splits:
        others = [each.name for each in folders if each not in splits]
        raise DataError(
            f"{path} has folders of splits ({enumeration([each.name for each in splits])}) and others "
            f"({enumeration(others)}); give a folder of class folders, or of train, validation and test "
            "folders that hold them"
        )
    else:
        classes = [(each, None) for each in folders]
    if classes:
        return _class_folders(base, classes)
    return _quotations(path)


def _class_folders(base: Path, classes: Sequence[tuple[Path, str | None]]) -> Listing:
    rows: list[Row] = []
    problems, others = [], Counter[str]()
    for folder, split in classes:
        count = len(rows)
        for file in _files(folder, base):
            if file.suffix.lower() != ".txt":
                others[file.suffix.lower() or "no ending"] += 1
                continue
            try:
                rows.append(Row(str(file.relative_to(base)), read_text(file), folder.name, split))
            except DataError as error:
                problems.append(str(error))
                count -= 1
        if len(rows) == count:
            problems.append(f"{folder} holds no .txt file, but every class needs some; remove it, or fill it")
    if problems:
        raise DataError(problems)
    told = ", ".join(f"{count:,} of {suffix}" for suffix, count in others.most_common(5))
    notes = (f"{sum(others.values()):,} files do not end in .txt, ignored: {told}",) if others else ()
    return Listing(rows=rows, notes=notes)


def _quotations(folder: Path) -> Listing:
    """Files that are each a class of texts, separated by lines of `%`, as the program fortune reads them."""
    base = folder.resolve()
    files = [each for each in _entries(base) if each.is_file() and each.suffix not in _COMPILED]
    rows: list[Row] = []
    left_out, problems = [], []
    for file in files:
        try:
            text = read_text(file)
        except DataError as error:
            problems.append(str(error))
            continue
        parts = list(_parted(text))
        if len(parts) < 2:
            left_out.append(file.name)
            continue
        rows += [Row(f"{file.name}, line {line}", part, file.stem) for line, part in parts]
    if not rows:
        raise DataError([*problems, f"data.source {folder} holds no texts; give {ALLOWED_SOURCES}"])
    if problems:
        raise DataError(problems)
    notes = (f"files without a line of % are left out: {enumeration(left_out)}",) if left_out else ()
    return Listing(rows=rows, notes=notes)


def _parted(text: str) -> Iterator[tuple[int, str]]:
    """The texts between lines of `%`, each with the number of its first line."""
    own: list[str] = []
    first = 1
    for number, line in enumerate([*text.split("\n"), _SEPARATOR], 1):
        if line.strip() != _SEPARATOR:
            own.append(line)
            continue
        if part := "\n".join(own).strip():
            yield first, part
        own, first = [], number + 1


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; without what is hidden."""
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _files(folder: Path, base: Path) -> Iterator[Path]:
    """The files below a folder; links that lead out of `base` are not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(place, name)
            if not name.startswith(".") and file.is_file() and file.resolve().is_relative_to(base):
                yield file


def by_label(rows: Sequence[Row]) -> dict[str, list[int]]:
    """The places of the rows of each label."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        found[row.label].append(place)
    return found
