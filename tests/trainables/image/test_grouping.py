"""Images of one patient, video or camera are in one split, and what leaks in given splits is named."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainables.image.drawn import draw, loaded, refusal, told
from trainables.image.data import ImageData
from trainables.training.folds import folds_of
from trainables.training.grouping import joined

PATTERN = "patient([0-9]+)_"


def patients(root: Path, count: int = 20, images: int = 4) -> Path:
    """A folder of two classes with some images of each patient, every fifth of whom has both."""
    for patient in range(count):
        for image in range(images):
            label = "ill" if (patient + (patient % 5 == 0) * image) % 2 else "well"
            draw(root / label / f"patient{patient}_{image}.png", 100 * patient + image)
    return root


def straddling(data: ImageData, of: dict[str, str]) -> set[str]:
    """The groups that are in several splits."""
    splits: dict[str, set[str]] = {}
    for split, places in data.splits.items():
        for place in places.tolist():
            splits.setdefault(of[data.names[place]], set()).add(split)
    return {group for group, where in splits.items() if len(where) > 1}


def by_name(data: ImageData) -> dict[str, str]:
    return {name: name.rpartition("patient")[2].partition("_")[0] for name in data.names}


def test_no_group_is_in_two_splits(tmp_path: Path) -> None:
    root = patients(tmp_path / "images")
    alone, grouped = loaded(root), loaded(root, group=PATTERN)
    assert straddling(alone, by_name(alone)), "else the pattern shows nothing"
    assert not straddling(grouped, by_name(grouped))
    assert len(grouped) == 80, "none is left out"
    assert "groups (data.group): 20, none of them in two splits" in told(grouped)
    assert all(10 <= len(grouped.splits[split]) <= 22 for split in ("validation", "test"))
    assert grouped.groups is not None
    assert len(grouped.groups.unique()) == 20
    assert grouped.fingerprint != alone.fingerprint


def table(tmp_path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    for place, (name, *_) in enumerate(rows):
        draw(tmp_path / name, place)
    path = tmp_path / "images.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("path", "label", "split", "camera"), *rows])
    return path


def test_a_leak_in_given_splits_is_named_and_mended(tmp_path: Path) -> None:
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    rows = [
        (f"{place}-{label}.png", label, split, f"c{place}{label}")
        for label in ("a", "b")
        for place, split in enumerate(splits)
    ]
    rows += [("leak0.png", "a", "train", "c9a"), ("leak1.png", "b", "validation", "c9a")]
    data = loaded(table(tmp_path, rows), group="camera")
    assert "leak0.png" not in data.names
    assert "leak1.png" not in data.names
    text = told(data)
    assert "WARNING: 1 groups leak" in text
    assert "group c9a: leak0.png (train) left out, 9-a.png (test) stays" in text
    assert not straddling(data, {name: camera for name, _, _, camera in rows})
    assert len(loaded(table(tmp_path, rows))) == 22, "without data.group all stay"


def test_an_empty_cell_is_a_group_of_its_own(tmp_path: Path) -> None:
    rows = [(f"{place}{label}.png", label, "", "") for label in "ab" for place in range(6)]
    data = loaded(table(tmp_path, rows), group="camera")
    assert data.groups is not None
    assert len(data.groups.unique()) == 12


def test_identical_images_hold_groups_together() -> None:
    pixels, owners = np.array([0, 1, 1, 2, 3]), np.array([0, 0, 1, 1, 2])
    assert joined(pixels, owners).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("kamera", ("which is no column of the source; it has", "camera", "did you mean camera?")),
        ("([0-9]+", ("must be a regular expression",)),
        ("([0-9])(.*)", ("must have one group in brackets; it has 2",)),
        ("cam([0-9]+)", ("which 12 of 12 file names do not fit: 0a.png",)),
    ],
)
def test_what_names_no_group_is_told(tmp_path: Path, group: str, words: tuple[str, ...]) -> None:
    rows = [(f"{place}{label}.png", label, "", "c1") for label in "ab" for place in range(6)]
    said = refusal(table(tmp_path, rows), group=group)
    assert all(word in said for word in words), said


def test_too_few_groups_are_told(tmp_path: Path) -> None:
    rows = [(f"{place}{label}.png", label, "", f"{label}{place % 2}") for label in "ab" for place in range(6)]
    said = refusal(table(tmp_path, rows), group="camera")
    assert "class 'a' has 2 different groups, but needs at least 3" in said


def test_folds_keep_groups_whole_and_classes_even() -> None:
    numbers = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 60, (600,), generator=numbers)
    labels = (groups % 3 + (torch.rand(600, generator=numbers) < 0.2).long()) % 3
    folds = folds_of(labels, 5, groups=groups)
    assert all(len(folds[groups == group].unique()) == 1 for group in groups.unique())
    table = torch.bincount(folds * 3 + labels, minlength=15).view(5, 3)
    assert (table - table.float().mean(0)).abs().max() < 12
    assert not torch.equal(folds, folds_of(labels, 5, groups=groups, repeat=1))
