"""Texts as people have them: read, checked, told, split."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.trainables.text.tiny import sentences, write_table
from trainables.errors import DataError
from trainables.text.data import TextData, load
from trainables.text.data_config import TextConfig

ROWS = sentences(12)


def loaded(source: Path | str, **options: Any) -> TextData:
    return load(TextConfig.from_dict({"source": str(source), **options}))


def as_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("Review", "Sentiment"), *ROWS])


def as_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in ROWS))


def as_parquet(path: Path) -> None:
    pd.DataFrame(ROWS, columns=["sentence", "label"]).to_parquet(path)


def as_semicolons(path: Path) -> None:
    lines = ["text;label", *(f'"{text}, and so on";{label}' for text, label in ROWS)]
    path.write_bytes("\r\n".join(lines).encode("utf-16"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", as_csv),
        ("b.jsonl", as_jsonl),
        ("c.parquet", as_parquet),
        ("d.csv", as_semicolons),
    ],
)
def test_tables_are_read_alike(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    data = loaded(tmp_path / name)
    assert data.classes == ("animals", "weather")
    assert len(data) == 24
    assert {split: len(places) for split, places in data.splits.items()} == {
        "train": 14,
        "validation": 5,
        "test": 5,
    }
    assert any(ROWS[0][0] in text for text in data.texts)
    assert data.names[0].startswith("row 1: ")


def test_texts_may_have_lines_commas_and_quotes(tmp_path: Path) -> None:
    odd = [('He said "so",\nand\u2028went.', "animals"), ("é, ü: ß — 漢字", "weather")]
    with (tmp_path / "odd.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS, *odd])
    assert {text for text, _ in odd} <= set(loaded(tmp_path / "odd.csv").texts)


def test_class_folders_with_splits(tmp_path: Path) -> None:
    for place, (text, label) in enumerate(ROWS):
        split = ("train", "train", "val", "test")[place % 4]
        file = tmp_path / split / label / "more" / f"{place}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "train" / "animals" / "notes.md").write_text("no text")
    outside = tmp_path.parent / f"{tmp_path.name}.txt"
    outside.write_text("the secret of another folder")
    (tmp_path / "train" / "animals" / "link.txt").symlink_to(outside)
    data = loaded(tmp_path)
    assert {split: len(places) for split, places in data.splits.items()} == {
        "train": 12,
        "validation": 6,
        "test": 6,
    }
    assert not any("secret" in text for text in data.texts)
    assert any("1 files do not end in .txt" in line for line in data.report.lines())


def test_quotations_are_files_with_lines_of_percent(tmp_path: Path) -> None:
    for label in ("animals", "weather"):
        own = [text for text, of in ROWS if of == label]
        (tmp_path / label).write_text("\n%\n".join(own) + "\n%\n")
        (tmp_path / f"{label}.dat").write_bytes(b"\0\1")
    (tmp_path / "few").write_text("the one\n%\nthe other\n%\n")
    data = loaded("fortunes", root=tmp_path, at_least=5)
    assert data.classes == ("animals", "weather")
    assert len(data) == 24
    assert any("fewer than 5 different texts are left out: few" in line for line in data.report.lines())


def test_what_was_found_is_told(tmp_path: Path) -> None:
    rows = [
        *[(text, label, "train") for text, label in ROWS],
        *[(text, label, "val") for text, label in sentences(6, seed=9)],
        *[(text, label, "test") for text, label in sentences(6, seed=8)],
        (f"  {ROWS[0][0].replace(' ', '   ')}", ROWS[0][1], "test"),
        (ROWS[1][0], "weather", "train"),
        ("  ", "weather", "train"),
    ]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    with pytest.raises(DataError, match=r"1 of 51 texts .* are empty: row 51"):
        loaded(tmp_path / "t.csv")
    data = loaded(tmp_path / "t.csv", empty="skip")
    told = "\n".join(data.report.lines())
    assert "the same text in several splits, kept in the last: 1\n  row 1 (" in told
    assert "(train) left out, same as row 49 (" in told
    assert "WARNING: the same text with different labels: 1 groups" in told
    assert "empty texts, skipped: 1 (row 51)" in told
    assert ROWS[0][0] not in {data.texts[place] for place in data.splits["train"].tolist()}
    json.dumps(data.report.to_dict())


def test_the_fingerprint_tells_texts_labels_and_splits(tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.jsonl", ROWS)
    first = loaded(table)
    assert loaded(write_table(tmp_path / "b.jsonl", ROWS)).fingerprint == first.fingerprint
    assert loaded(table, seed=1).fingerprint != first.fingerprint
    changed = write_table(tmp_path / "c.jsonl", [(ROWS[0][0] + " x", ROWS[0][1]), *ROWS[1:]])
    assert loaded(changed).fingerprint != first.fingerprint


def test_splits_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    one = loaded(write_table(tmp_path / "a.jsonl", ROWS))
    other = loaded(write_table(tmp_path / "b.jsonl", ROWS[::-1]))
    tests = [{each.texts[place] for place in each.splits["test"].tolist()} for each in (one, other)]
    assert tests[0] == tests[1]


REFUSED: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "wrong column": (
        "a.csv",
        b"phrase,label\nx,a\ny,b\n",
        {},
        r"a\.csv has the columns phrase, label, but none for text; name them with data\.options",
    ),
    "a named column": (
        "b.csv",
        b"text,label\nx,a\n",
        {"text": "words"},
        r"data\.options\.text 'words'",
    ),
    "binary": ("c.csv", b"\x7fELF\0\0\1text,label", {}, r"c\.csv is no text: it has zero bytes"),
    "latin-1": ("d.csv", "text,label\nMünch,a\n".encode("latin-1"), {}, r"line 2 has the byte 0xfc"),
    "ten megabytes": (
        "e.csv",
        b"text,label\n" + b"word " * 2_000_000 + b",a\nshort,b\n",
        {},
        r"more than 1,000,000 characters: row 1 \(9,999,999 characters\)",
    ),
    "one class": (
        "f.csv",
        b"text,label\nx,a\ny,a\n",
        {},
        r"holds only the class 'a', but needs at least two",
    ),
    "no rows": ("g.csv", b"text,label\n", {}, r"holds no texts"),
    "two of a class": ("h.csv", b"text,label\nx,a\ny,a\nz,b\nw,b\n", {}, r"class 'a' has 2 different texts"),
    "no label": ("i.csv", b"text,label\nx,\n", {}, r"has an empty label in row 1"),
    "no split": ("j.csv", b"text,label,split\nx,a,dev\n", {}, r"call dev validation"),
    "no JSON": ("k.jsonl", b'{"text": "x"\n', {}, r"has no JSON in line 1"),
    "an option": (
        "l.csv",
        b"text,label\nx,a\n",
        {"at_last": 3},
        r"data\.options\.at_last .* did you mean at_least",
    ),
}


@pytest.mark.parametrize(("name", "content", "options", "message"), REFUSED.values(), ids=list(REFUSED))
def test_broken_data_is_refused_in_one_message(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        loaded(tmp_path / name, **options)


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="install Debian's package `fortunes`"):
        load(TextConfig(source="fortunes", root=None)) if not Path(
            "/usr/share/games/fortunes"
        ).is_dir() else (loaded(tmp_path / "fortunes, install Debian's package `fortunes`"))
    with pytest.raises(DataError, match=r"nothing\.csv does not exist"):
        loaded(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="texts are read from this machine"):
        loaded("s3://bucket/texts.csv")


def test_texts_of_one_group_share_a_split_and_a_leak_is_named(tmp_path: Path) -> None:
    rows = [(f"text {n} of it", "ab"[n % 2], f"author {n // 4}", "") for n in range(80)]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "Author"), *(row[:3] for row in rows)])
    data = loaded(tmp_path / "t.csv", group="Author")
    assert data.groups is not None
    splits = [set(data.groups[places].tolist()) for places in data.splits.values()]
    assert all(splits)
    assert sum(map(len, splits)) == len(set.union(*splits)) == 20
    assert "groups (data.group): 20, none of them in two splits" in data.report.lines()
    given = [(*row[:3], "test" if n % 40 > 37 else "train") for n, row in enumerate(rows)]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "author", "split"), *given])
    leaking = loaded(tmp_path / "t.csv", group="author", at_least=1)
    assert {group for group, *_ in leaking.report.leaks} == {"author 9", "author 19"}
    assert len(leaking.report.leaks) == 4
    with pytest.raises(DataError, match=r"data\.group is 'writer', which is no column of the source; it has"):
        loaded(tmp_path / "t.csv", group="writer")
