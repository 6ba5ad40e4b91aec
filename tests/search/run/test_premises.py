"""A search goes on with the data and the space that it was launched on, wherever they are now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from search.errors import BadInput
from search.home import Home
from search.run.launch import resume
from search.run.preflight import planned
from search.run.premises import Premises, check_movable
from search.spec.search_spec import SearchSpec, read_spec
from search.study.search_study import SearchStudy
from tests.search.commands import transfer_search
from tests.trainables.image.drawn import draw, draw_classes

SPEC = """
name: t
data: {source: ./images, image_size: 32}
search: {trials: 2, max_epochs: 1}
space:
  backbone: efficientnet_lite0
  strategy: probe
  lr: {low: 1.0e-3, high: 1.0e-1, log: true}
  policy: [none, classic]
resources: {cpu: 1}
"""


@pytest.fixture
def home(folder: Path) -> Home:
    """A search that was launched and has done nothing yet."""
    draw_classes(folder / "images", {"cat": 8, "dog": 8})
    spec, home = read_spec(SPEC), Home.of("t")
    with home.beginning():
        study = SearchStudy.create(spec, home)
        premises(spec).keep(study)
        home.keep(spec.to_yaml())
    return home


def premises(spec: SearchSpec) -> Premises:
    return Premises.of(spec, planned(spec, Home.of("t"), None))


def check(home: Home, *overrides: str) -> None:
    spec = read_spec(home.spec, overrides)
    premises(spec).check(SearchStudy.open(spec, home))


def test_the_same_data_under_another_name_is_the_same(home: Home, folder: Path) -> None:
    check(home)
    (folder / "images").rename(folder / "photos")
    check(home, f"data.source={folder}/photos")


def test_data_that_has_grown_is_refused_with_the_difference(home: Home, folder: Path) -> None:
    for seed in range(4):
        draw(folder / "images" / "cat" / f"new{seed}.png", 9000 + seed)
    with pytest.raises(BadInput, match=r"the data has changed \(train 10 -> 1[0-9]"):
        check(home)


def test_other_images_and_other_classes_are_refused(home: Home, folder: Path) -> None:
    draw(folder / "images" / "cat" / "000.png", 9000)
    with pytest.raises(BadInput, match=r"as many images, but other ones|-> "):
        check(home)
    shutil.copytree(folder / "images" / "cat", folder / "images" / "tiger")
    for seed, path in enumerate(sorted((folder / "images" / "tiger").iterdir())):
        draw(path, 9100 + seed)
    with pytest.raises(BadInput, match=r"classes gone: none; new: tiger"):
        check(home)


def test_a_space_that_was_edited_is_refused_with_the_difference(home: Home) -> None:
    text = home.spec.read_text()
    assert "- classic" in text
    home.spec.write_text(text.replace("- classic", "- classic\n  - flip_crop"))
    with pytest.raises(BadInput, match=r"policy was \['none', 'classic'\], is \['none', 'clas"):
        check(home)


def test_a_search_of_before_goes_on_without_the_check(folder: Path) -> None:
    draw_classes(folder / "images", {"cat": 8, "dog": 8})
    spec = read_spec(SPEC)
    Home.of("t").make()
    premises(spec).check(SearchStudy.create(spec, Home.of("t")))


def test_only_places_and_resources_may_be_set() -> None:
    check_movable(["data.source=./x", "tracking.uri=sqlite:///m.db", "resources.gpu=0", "cache.dir=/c"])
    for each in ("space.lr=0.1", "search.seed=3", "data.image_size=64", "data.sourcery=1"):
        with pytest.raises(BadInput, match="may be set"):
            check_movable([each])


def test_a_resume_that_fails_changes_nothing_and_says_where_to_set(home: Home, folder: Path) -> None:
    (folder / "images").rename(folder / "photos")
    before = home.spec.read_text()
    with pytest.raises(BadInput):
        resume(home, Console(quiet=True), trials=9, overrides=["resources.cpu=6400"])
    said = transfer_search("resume", "t", "--trials=9", "--set=resources.cpu=6400", code=2)
    assert "if it has moved: transfer-search resume t --set data.source=DIR" in said
    assert home.spec.read_text() == before
    assert SearchStudy.open(read_spec(home.spec), home).budget == 2
