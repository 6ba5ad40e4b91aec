"""Tables as people's programs write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.trainables.image.drawn import draw, draw_classes, loaded, refusal, told
from trainables.errors import DataError

HEADER = "path,label"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with `img/cat` and `img/dog`, eight images each."""
    draw_classes(tmp_path / "work" / "img", {"cat": 8, "dog": 8})
    return tmp_path / "work"


def rows(project: Path) -> list[tuple[str, str]]:
    files = sorted((project / "img").rglob("*.png"))
    return [(file.relative_to(project).as_posix(), file.parent.name) for file in files]


def lines(project: Path, separator: str = ",", header: str = HEADER) -> list[str]:
    return [header.replace(",", separator), *(separator.join(row) for row in rows(project))]


def write(project: Path, text: str | Sequence[str], name: str = "m.csv", encoding: str = "utf-8") -> Path:
    path = project / name
    path.write_text(text if isinstance(text, str) else "\n".join(text) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("separator", "header", "name", "encoding", "note"),
    [
        (";", HEADER, "m.csv", "utf-8", "cells are separated by semicolons"),
        ("\t", HEADER, "m.tsv", "utf-8", "cells are separated by tabs"),
        (",", HEADER, "m.csv", "utf-16", "it is read as UTF-16"),
        (",", HEADER, "m.csv", "utf-8-sig", ""),
        (",", "file_name,label", "m.csv", "utf-8", "the column file_name is taken for path"),
        (",", "Image,Class", "m.csv", "utf-8", "the column Class is taken for label"),
    ],
)
def test_forms_of_csv(
    project: Path, separator: str, header: str, name: str, encoding: str, note: str
) -> None:
    data = loaded(write(project, lines(project, separator, header), name, encoding))
    assert (data.classes, len(data)) == (("cat", "dog"), 16)
    assert note in told(data)


def test_lines_of_comment_at_the_top(project: Path) -> None:
    data = loaded(write(project, ["# by me, 2024", *lines(project)]))
    assert len(data) == 16
    assert "1 lines at the top that begin with # are left out" in told(data)


def changed(change: Callable[[str], str]) -> Callable[[Path], list[str]]:
    return lambda project: [HEADER, *(f"{change(path)},{label}" for path, label in rows(project))]


def test_absolute_paths_below_the_manifest(project: Path) -> None:
    data = loaded(write(project, changed(lambda path: f"{project}/{path}")(project)))
    assert data.names[0].startswith("img/")


def test_absolute_paths_below_the_root_or_anywhere(project: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "work", changed(lambda path: f"{project}/{path}")(project))
    (tmp_path / "other").mkdir()
    table = table.rename(tmp_path / "other" / "m.csv")
    said = refusal(table)
    assert "not below its own folder" in said
    assert "data.root" in said
    assert len(loaded(table, root=project)) == 16
    assert len(loaded(table, links="anywhere")) == 16


def test_backslashes_of_windows(project: Path) -> None:
    data = loaded(write(project, changed(lambda path: path.replace("/", "\\"))(project)))
    assert "backslashes in paths are read as slashes" in told(data)
    assert data.names[0] == "img/cat/000.png"


def test_text_that_is_not_utf8_is_named_with_its_line(project: Path) -> None:
    table = write(project, [*lines(project)[:3], "img/cat/001.png,gató"], encoding="latin-1")
    said = refusal(table)
    assert "line 4 has the byte 0xf3, as Latin-1 or Windows-1252 would" in said
    assert "CSV UTF-8" in said


@pytest.mark.parametrize(
    "labels",
    [["cat|pet", "dog|pet"], ["cat|pet", "pet"], ["cat;pet", "dog;pet", "dog"]],
)
def test_several_labels_in_a_cell_are_refused_by_name(project: Path, labels: list[str]) -> None:
    table = [HEADER, *(f"{path},{labels[i % len(labels)]}" for i, (path, _) in enumerate(rows(project)))]
    said = refusal(write(project, table))
    joined = sorted(label for label in labels if not label.isalpha())
    assert f"several labels in one cell ({', '.join(joined)})" in said
    assert "an image has one class here" in said


def test_a_bar_in_a_name_is_no_second_label(project: Path) -> None:
    table = [HEADER, *(f"{path},{label}|{label}s" for path, label in rows(project))]
    assert loaded(write(project, table)).classes == ("cat|cats", "dog|dogs")


def test_a_file_with_two_labels_is_refused(project: Path) -> None:
    said = refusal(write(project, [*lines(project), "./img/cat/001.png,dog"]))
    assert "gives files more than one label: img/cat/001.png (cat and dog)" in said
    assert len(loaded(write(project, [*lines(project), "img/cat/001.png,cat"]))) == 17


def test_a_split_that_may_mean_another(project: Path) -> None:
    table = ["path,label,split", *(f"{path},{label},dev" for path, label in rows(project))]
    assert "call dev validation if it is that split" in refusal(write(project, table))


# Hugging Face's forms


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_images_with_a_table(tmp_path: Path, kind: str) -> None:
    named = []
    for seed in range(16):
        draw(tmp_path / "flat" / f"{seed}.png", seed)
        named.append({"file_name": f"{seed}.png", "label": "cat" if seed % 2 else "dog"})
    draw(tmp_path / "flat" / "unnamed.png", 99)
    if kind == "csv":
        text = "file_name,label\n" + "".join(f"{row['file_name']},{row['label']}\n" for row in named)
    else:
        text = "".join(json.dumps(row) + "\n" for row in named)
    (tmp_path / "flat" / f"metadata.{kind}").write_text(text)
    data = loaded(tmp_path / "flat")
    assert (data.classes, len(data)) == (("cat", "dog"), 16)
    assert "1 images are not in the table, ignored: unnamed.png" in told(data)
    assert len(loaded(tmp_path / "flat" / f"metadata.{kind}")) == 16


def test_a_table_in_each_split(tmp_path: Path) -> None:
    for place, split in enumerate(("train", "test")):
        text = "file_name,label\n"
        for seed in range(8):
            draw(tmp_path / "data" / split / f"{seed}.png", 100 * place + seed)
            text += f"{seed}.png,{seed % 2}\n"
        (tmp_path / "data" / split / "metadata.csv").write_text(text)
    data = loaded(tmp_path / "data", validation=0.25)
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [6, 2, 8]


def test_a_table_beside_class_folders_is_about_something_else(project: Path) -> None:
    (project / "img" / "metadata.csv").write_text("file_name,camera\ncat/000.png,a\n")
    assert loaded(project / "img").classes == ("cat", "dog")


def parquet(project: Path, images: Any, labels: Any, metadata: Any = None) -> Path:
    table = pyarrow.table({"image": images, "label": labels})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pyarrow.parquet.write_table(table, project / "m.parquet")
    return project / "m.parquet"


def test_parquet_that_holds_the_images(project: Path) -> None:
    cells = [{"bytes": (project / path).read_bytes(), "path": path} for path, _ in rows(project)]
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "image": {"_type": "Image"}}
    numbers = [int(label == "dog") for _, label in rows(project)]
    table = parquet(project, cells, numbers, {"info": {"features": features}})
    data, folder = loaded(table), loaded(project / "img")
    assert (data.classes, len(data)) == (("cat", "dog"), 16)
    assert data.fingerprint == folder.fingerprint
    frames = data.frames(8, "bilinear")
    assert (frames[data.splits["test"]] == folder.frames(8, "bilinear")[folder.splits["test"]]).all()


def test_parquet_with_a_broken_image_names_its_row(project: Path) -> None:
    cells = [(project / path).read_bytes() for path, _ in rows(project)]
    cells[3] = b"no image"
    said = refusal(parquet(project, cells, [label for _, label in rows(project)]))
    assert "row-0000004: its first bytes are not those of a known image" in said


def test_parquet_with_lists_of_labels(project: Path) -> None:
    table = pyarrow.table({"path": [path for path, _ in rows(project)], "label": [["cat", "pet"]] * 16})
    pyarrow.parquet.write_table(table, project / "m.parquet")
    assert "lists of labels in row 1, row 2" in refusal(project / "m.parquet")


def test_a_label_that_is_no_number_is_empty(project: Path) -> None:
    labels = [0.0, float("nan"), *[1.0] * 14]
    table = pyarrow.table({"path": [path for path, _ in rows(project)], "label": labels})
    pyarrow.parquet.write_table(table, project / "m.parquet")
    assert "an empty path or label in row 2" in refusal(project / "m.parquet")


@pytest.mark.parametrize("row", [("\0", "cat"), ("cat/0.png", "c\0t"), ("a\0b/../cat/0.png", "cat")])
def test_a_character_of_code_zero_is_refused_by_row(project: Path, row: tuple[str, str]) -> None:
    text = [*lines(project), ",".join(row)]
    for refused, name in (
        (write(project, text, encoding="utf-16"), "m.csv"),
        (write(project, [json.dumps({"path": row[0], "label": row[1]})], "m.jsonl"), "m.jsonl"),
    ):
        with pytest.raises(DataError, match=rf"{name} has a character of code zero.* in row \d+"):
            loaded(refused)
