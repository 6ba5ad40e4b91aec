"""Folders as people have them: nothing in them vanishes silently."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

from tests.trainables.image.drawn import draw, draw_classes, loaded, refusal, told


def test_class_folders_that_are_links_out_of_the_folder_are_named_or_followed(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "images", {"cat": 6, "fish": 6})
    pool = draw_classes(tmp_path / "pool", {"bird": 6}, first=5000)
    (root / "bird").symlink_to(pool / "bird")
    said = refusal(root)
    assert f"bird -> {pool}/bird" in said
    assert "--set data.links=anywhere" in said
    assert loaded(root, links="anywhere").classes == ("bird", "cat", "fish")


def test_a_class_folder_that_is_a_link_inside_is_followed(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "images", {"train/cat": 6, "train/fish": 6, "train/.store/dog": 6})
    (root / "train" / "dog").symlink_to(root / "train" / ".store" / "dog")
    (root / "train" / "up").symlink_to(root / "train")
    data = loaded(root)
    assert data.classes == ("cat", "dog", "fish")
    assert "links to folders that hold them are not followed: train/up" in told(data)


def test_a_class_that_is_another_ones_images_is_told_so(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "images", {"cat": 6, "old/dog": 6})
    (root / "dog").symlink_to(root / "old" / "dog")
    assert "'old' has 0 different images (some are identical to images of 'dog')" in refusal(root)


def test_only_links_and_none_followed(tmp_path: Path) -> None:
    pool = draw_classes(tmp_path / "pool", {"bird": 6, "cat": 6})
    (tmp_path / "images").mkdir()
    for name in ("bird", "cat"):
        (tmp_path / "images" / name).symlink_to(pool / name)
    assert "holds 2 links to folders elsewhere: bird -> " in refusal(tmp_path / "images")


def test_a_split_that_is_a_link_is_named_or_followed(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "data" / "train", {"cat": 9, "dog": 9}).parent
    (root / "val").symlink_to(draw_classes(tmp_path / "shared", {"cat": 4, "dog": 4}, first=5000))
    assert f"val -> {tmp_path}/shared" in refusal(root)
    data = loaded(root, links="anywhere")
    assert data.report.counts["validation"] == {"cat": 4, "dog": 4}


def test_a_split_that_is_a_link_to_nothing_is_no_split_to_be_drawn(tmp_path: Path) -> None:
    draw_classes(tmp_path / "images" / "train", {"cat": 5, "dog": 5})
    (tmp_path / "images" / "val").symlink_to("../shared")
    assert "images/val is a link to nothing; put back what it leads to" in refusal(tmp_path / "images")


def test_links_to_images_are_told_class_by_class(tmp_path: Path) -> None:
    pool = draw_classes(tmp_path / "pool", {"cat": 4, "dog": 4})
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "images" / name / f"{i:03}.png").symlink_to(pool / name / f"{i:03}.png")
    first, second = refusal(tmp_path / "images").split("\n- ")[1:]
    assert "cat/000.png, cat/001.png, cat/002.png, cat/003.png)" in first
    assert "cat/" not in second.partition("holds")[2]
    assert "--set data.links=anywhere" in first
    assert "cp -rL" in first
    assert len(loaded(tmp_path / "images", links="anywhere")) == 8


def test_links_that_lead_to_nothing_and_hidden_images_are_counted(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "images", {"cat": 5, "dog": 5})
    (root / "cat" / "dead.png").symlink_to(root / "absent.png")
    draw(root / "cat" / ".hidden.png", 9)
    draw(root / ".trash" / "x.png", 10)
    draw(root / "cat" / "._macos.png", 11)
    (root / "cat" / "phone.HEIC").write_bytes(b"heic")
    data = loaded(root)
    assert len(data) == 10
    said = told(data)
    assert "links to nothing are left out: cat/dead.png" in said
    assert "2 hidden files and folders are ignored: .trash, cat/.hidden.png" in said
    assert "WARNING: pictures that are not read here: 1 x .heic; convert them" in said


def test_what_comes_beside_the_images_later_is_told_too(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "images", {"cat": 5, "dog": 5})
    assert "lie beside" not in told(loaded(root))
    draw(root / "loose.png", 9)
    assert "1 images lie beside the class folders, ignored: loose.png" in told(loaded(root))


@pytest.mark.parametrize("outer", [["seg_train", "seg_test"], ["images", "masks"]])
def test_classes_that_all_hold_the_same_folders_are_in_question(
    tmp_path: Path, outer: tuple[str, ...]
) -> None:
    for place, name in enumerate(outer):
        inner = f"{name}/{name}" if name.startswith("seg") else name
        draw_classes(tmp_path / "data" / inner, {"cat": 5, "dog": 5}, first=5000 * place)
    names = ", ".join(sorted(outer))
    said = told(loaded(tmp_path / "data"))
    assert f"WARNING: each of the classes {names} holds the same folders (cat, dog)" in said


def test_classes_with_folders_of_their_own_are_in_no_question(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "data", {"cat/tabby": 5, "cat/manx": 5, "dog/collie": 5, "dog/pug": 5})
    assert "WARNING" not in told(loaded(root))


@pytest.mark.parametrize(
    ("name", "meant"), [("dev", "validation"), ("eval", "validation"), ("Hold-Out", "test"), ("extra", None)]
)
def test_a_folder_beside_splits_may_be_a_split(tmp_path: Path, name: str, meant: str | None) -> None:
    for split in ("train", name):
        draw_classes(tmp_path / "data" / split, {"cat": 5, "dog": 5})
    said = refusal(tmp_path / "data")
    assert "Splits are called train, validation (or val, valid) and test" in said
    assert (f"call {name} {meant} if it is that split" in said) == (meant is not None)


def test_a_test_set_without_labels(tmp_path: Path) -> None:
    draw_classes(tmp_path / "data" / "train", {"cat": 5, "dog": 5})
    draw_classes(tmp_path / "data", {"test": 3}, first=9000)
    said = refusal(tmp_path / "data")
    assert "test holds no class folders; the labels of its 3 images are not known" in said
    assert "give the train folder alone as data.source" in said


def test_a_split_that_is_a_copy_of_another_is_called_that(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "data" / "train", {"cat": 9, "dog": 9}).parent
    draw_classes(root / "val", {"cat": 4, "dog": 4}, first=5000)
    shutil.copytree(root / "val", root / "test")
    said = refusal(root)
    assert "the validation split has no image of classes 'cat', 'dog'" in said
    assert "8 images of them are identical to images of test, where they are kept" in said


def test_one_name_in_two_normal_forms_is_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    draw_classes(tmp_path / "data" / "train", {composed: 8, "tea": 8})
    draw_classes(tmp_path / "data" / "val", {decomposed: 4, "tea": 4}, first=5000)
    data = loaded(tmp_path / "data")
    assert data.classes == (composed, "tea")
    assert data.report.counts["validation"] == {composed: 4, "tea": 4}
    assert f"are one class: {composed}" in told(data)


def test_names_that_differ_in_case_are_asked_about(tmp_path: Path) -> None:
    draw_classes(tmp_path / "data" / "train", {"cat": 8, "dog": 8})
    draw_classes(tmp_path / "data" / "val", {"Cat": 4, "dog": 4}, first=5000)
    said = refusal(tmp_path / "data")
    assert "class 'Cat' has 0 different images to draw from (there are 4 in validation)" in said
    assert "did you mean 'cat'?" in said
    draw_classes(tmp_path / "twins", {"sea_lion": 8, "Sea lion": 8})
    assert "WARNING: classes whose names look alike: 'Sea lion' and 'sea_lion'" in told(
        loaded(tmp_path / "twins")
    )


def test_many_small_classes_are_ten_and_a_count(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "data", {f"person{i:02}": 2 for i in range(30)})
    said = refusal(root)
    assert "30 of 30 classes have too few different images" in said
    assert said.count("person") == 10
    assert "and 20 more" in said
    assert "--set data.splits.test=0), where 2 suffice" in said
    assert len(said) < 800
    assert len(loaded(root, test=0.0)) == 60


def test_many_empty_classes_are_ten_and_a_count(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / "data" / f"empty{i:02}").mkdir(parents=True)
    said = refusal(tmp_path / "data")
    assert said.count("holds no images") == 10
    assert "and 30 more" in said
