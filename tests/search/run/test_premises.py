"""A search goes on with the data and the space that it was launched on, wherever they are now."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from search.errors import BadInput
from search.home import Home
from search.run.launch import resume
from search.run.preflight import planned
from search.run.premises import Premises, check_movable
from search.spec.domains import Fixed
from search.spec.search_spec import SearchSpec, read_spec
from search.study.search_study import SearchStudy
from tests.search.commands import transfer_search
from tests.trainables.image.drawn import draw, draw_classes
from trainables.image.modality import IMAGE

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


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a search that was launched and has done nothing yet."""
    project = tmp_path_factory.mktemp("launched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        draw_classes(project / "images", {"cat": 8, "dog": 8})
        spec, home = read_spec(SPEC), Home.of("t")
        with home.beginning():
            study = SearchStudy.create(spec, home)
            premises(spec).keep(study)
            home.keep(spec.to_yaml(home.root))
    return project


@pytest.fixture
def home(launched: Path, folder: Path) -> Home:
    """The search in a copy of its project: paths are told from its home."""
    shutil.copytree(launched, folder, dirs_exist_ok=True)
    return Home.of("t")


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
    with pytest.raises(BadInput, match=r"as many as before, but other ones|-> "):
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


def test_another_objective_or_other_epochs_are_refused_with_the_difference(home: Home) -> None:
    text = home.spec.read_text().replace("max_epochs: 1", "max_epochs: 9\n  objective: {val_loss: minimize}")
    home.spec.write_text(text)
    with pytest.raises(
        BadInput, match=r"the search has changed \(objective was \{'val_accuracy'.*max_epochs was 1"
    ):
        check(home)


def test_weights_that_were_exchanged_are_refused_with_the_difference(home: Home, folder: Path) -> None:
    spec = read_spec(home.spec)
    here = premises(spec)
    other = replace(here, weights={"efficientnet_lite0": "f" * 64})
    with pytest.raises(
        BadInput, match=r"the weights have changed \(efficientnet_lite0 \w{12} -> ffffffffffff\)"
    ):
        other.check(SearchStudy.open(spec, home))
    assert here.weights.keys() == {"efficientnet_lite0"}


def test_a_file_of_weights_may_lie_elsewhere_and_is_known_by_its_digest(folder: Path) -> None:
    draw_classes(folder / "images", {"cat": 8, "dog": 8})
    built = IMAGE.backbone({"backbone": "squeezenet1_1", "weights": "none", "image_size": None})
    (folder / "there").mkdir()
    for path, factor in (("w.pth", 1.0), ("there/same.pth", 1.0), ("there/other.pth", 2.0)):
        torch.save({name: tensor * factor for name, tensor in built.module.state_dict().items()}, path)
    found = [
        premises(read_spec(SPEC, ["space.backbone=squeezenet1_1", f"space.weights={path}"]))
        for path in ("w.pth", "there/same.pth", "there/other.pth")
    ]
    assert found[0] == found[1]
    assert found[0].space == found[2].space
    assert found[0].weights != found[2].weights


def test_a_project_that_moves_takes_data_and_stores_along(home: Home, folder: Path) -> None:
    (folder / "w.pth").touch()
    far = folder.parent / "far.db"
    spec = read_spec(
        SPEC, ["space.weights=w.pth", f"storage=sqlite:///{far}", "search.start_from=./searches/t"]
    )
    kept = spec.to_yaml(home.root)
    assert "source: ${here}/../../images" in kept
    assert "uri: sqlite:///${here}/../../mlflow.db" in kept
    assert f"storage: sqlite:///{far}" in kept  # not of the project
    home.spec.write_text(kept)
    assert read_spec(home.spec) == spec
    moved = folder.parent / "moved #1 ?x"
    folder.rename(moved)
    found = read_spec(Home(moved / "searches" / "t").spec)
    assert found.data.source == str(moved / "images")
    assert found.search.start_from == str(moved / "searches" / "t")
    assert found.domain("weights") == Fixed(value=str(moved / "w.pth"))
    moved.rename(folder)


def test_a_search_of_before_goes_on_without_the_check(folder: Path) -> None:
    draw_classes(folder / "images", {"cat": 8, "dog": 8})
    spec = read_spec(SPEC)
    Home.of("t").make()
    premises(spec).check(SearchStudy.create(spec, Home.of("t")))


def test_only_places_and_resources_may_be_set() -> None:
    check_movable(["data.source=./x", "tracking.uri=sqlite:///m.db", "resources.gpu=0", "cache.dir=/c"])
    check_movable(["space.weights=w.pth"])
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
