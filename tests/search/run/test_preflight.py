"""A refusal uses up nothing, and a dry run refuses what a launch would."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from PIL import Image

from search.errors import BadInput, SearchBusy
from search.home import Home
from search.run.preflight import refusals
from search.spec.search_spec import SearchSpec, read_spec
from search.study.search_study import SearchStudy
from tests.search.commands import both_streams, transfer_search

SPEC = """
name: t
data: {source: ./images, image_size: 32}
search: {trials: 2, max_epochs: 1}
space:
  backbone: efficientnet_lite0
  strategy: probe
  lr: {low: 1.0e-3, high: 1.0e-1, log: true}
resources: {cpu: 1}
"""


@pytest.fixture
def project(folder: Path) -> Path:
    """A folder with a spec and its images."""
    (folder / "spec.yaml").write_text(SPEC)
    for label, name in enumerate(("cat", "dog")):
        (folder / "images" / name).mkdir(parents=True)
        for seed in range(8):
            colour = (40 * label, 10 * seed, 90)
            Image.new("RGB", (12, 12), colour).save(folder / "images" / name / f"{seed}.png")
    return folder


def both_refuse(*words: str) -> str:
    """What a dry run and a launch say to the same words; both must refuse alike and leave nothing."""
    before = sorted(Path().rglob("*"))
    dry = transfer_search("launch", "spec.yaml", "--dry-run", *words, code=2)
    assert transfer_search("launch", "spec.yaml", *words, code=2) == dry
    assert [path for path in sorted(Path().rglob("*")) if path not in before] in ([], [Path("searches")])
    return dry


def test_resources_that_this_machine_lacks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 4, "GPU": 0}')
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test's has a GPU on paper
    said = both_refuse("--set=resources.gpu=0.25")
    assert "there can be nodes with CPU 4 and GPU 0" in said
    assert "--set resources.gpu=0" in said
    assert "--set resources.cpu=4" in both_refuse("--set=resources.cpu=64")


def test_all_that_is_wrong_is_told_at_once(project: Path) -> None:
    said = both_refuse(
        "--set=resources.cpu=6400", "--set=data.source=./nowhere", "--set=tracking.uri=./mlruns"
    )
    assert "3 problems" in said
    for part in ("6400", "nowhere does not exist", "migrate-filestore"):
        assert part in said


def test_the_limit_of_pixels_is_a_key_of_the_spec(project: Path) -> None:
    assert "raise it with --set data.max_pixels=N" in both_refuse("--set=data.max_pixels=100")
    transfer_search("launch", "spec.yaml", "--dry-run", "--set=data.max_pixels=144")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("./mlruns", "a folder of files, which MLflow no longer writes"),
        ("127.0.0.1:5000", "write http://127.0.0.1:5000"),
        ("sqlite:///spec.yaml", "file is not a database"),
        ("sqlite:///foreign.db", "a database of something else than MLflow"),
        ("sqlite:///older.db", "written by an older MLflow; copy the file, then"),
        ("sqlite:///newer.db", "written by a newer MLflow"),
        ("sqlite:///deleted.db", "experiment 'transfer-search' was deleted; restore it with"),
        ("sqlite:///deleted.db", "mlflow experiments restore --experiment-id 7`"),
        ("ftp://host/x", "its protocol must be one of"),
        ("http://127.0.0.1:9", "does not answer"),
        ("postgresql://127.0.0.1:9/x", "cannot be opened"),
    ],
)
def test_mlflow_stores_that_cannot_be_used(
    project: Path, uri: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("older", "newer", "deleted"):
        store(project / f"{name}.db")
    change("older.db", "UPDATE alembic_version SET version_num = (SELECT version_num || '' FROM older)")
    change("newer.db", "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    change("deleted.db", "UPDATE experiments SET lifecycle_stage = 'deleted'")
    change("foreign.db", "CREATE TABLE experiments (mine)")
    said = transfer_search("launch", "spec.yaml", "--dry-run", f"--set=tracking.uri={uri}", code=2)
    assert says in said
    assert "problem" in said


def test_training_goes_on_where_somebody_deleted_the_experiment(project: Path) -> None:
    store(project / "deleted.db")
    change("deleted.db", "UPDATE experiments SET lifecycle_stage = 'deleted'")
    told: list[str] = []
    launched = spec("tracking.uri=sqlite:///deleted.db")
    assert refusals(launched, Home.of("t"), is_new=False, tell=told.append) == []
    assert "restore --experiment-id 7`" in told[0]
    assert "the trials go on, and `transfer-search doctor t --repair` sends later" in told[0]


def store(path: Path) -> None:
    """A store as MLflow's newest migration leaves it, as far as a launch looks at it."""
    from search.tracking.stores import _revisions

    known, head = _revisions()
    older = next(revision for revision in sorted(known) if revision != head)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (head,))
        connection.execute("CREATE TABLE older (version_num)")
        connection.execute("INSERT INTO older VALUES (?)", (older,))
        connection.execute("CREATE TABLE experiments (name, lifecycle_stage, experiment_id)")
        connection.execute("INSERT INTO experiments VALUES ('transfer-search', 'active', 7)")


def change(path: str, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def test_the_newest_migration_is_mlflows_own(project: Path) -> None:
    from mlflow import MlflowClient

    from search.tracking.stores import check_store

    MlflowClient("sqlite:///mlflow.db").create_experiment("transfer-search")
    check_store(spec())


def spec(*overrides: str) -> SearchSpec:
    return read_spec(Path("spec.yaml"), overrides)


def test_a_name_that_another_project_has_in_the_same_storage(project: Path) -> None:
    shared = f"storage=sqlite:///{project}/all.db"
    theirs = Home.of("t", project / "theirs")
    SearchStudy.create(spec(shared), theirs).ask()
    said = both_refuse(f"--set={shared}")
    assert "is the name of another search in the storage" in said
    assert "--name" in said
    transfer_search("launch", "spec.yaml", "--dry-run", f"--set={shared}", "--name=u")


def test_what_a_killed_launch_left_in_a_shared_storage_is_taken_over(project: Path) -> None:
    shared = "storage=sqlite:///all.db"
    SearchStudy.create(spec(shared), Home.of("t"))
    assert not SearchStudy.is_taken(spec(shared), Home.of("t"))
    assert SearchStudy.is_taken(spec(shared), Home.of("t", project / "theirs"))


def test_a_relative_storage_holds_in_every_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = spec("storage=sqlite:///optuna.db").to_yaml()
    (project / "far").mkdir()
    monkeypatch.chdir(project / "far")
    assert read_spec(kept).storage_url == f"sqlite:///{project}/optuna.db"
    assert SearchStudy.find(read_spec(kept), Home.of("t")) is None
    assert not (project / "optuna.db").exists()  # to look is not to make


def test_a_home_is_whole_or_not_there(folder: Path) -> None:
    home = Home.of("t")
    with suppress(RuntimeError), home.beginning():
        (home.root / "study.db").touch()
        home.log.touch()
        raise RuntimeError
    assert not home.root.exists()
    with home.beginning():
        home.keep("name: t")
        (home.root / "study.db").touch()
    assert home.spec.exists()
    assert (home.root / "study.db").exists()
    with pytest.raises(BadInput, match="was launched before"), home.beginning():
        pass
    assert home.spec.exists()


def test_a_launch_takes_over_what_a_killed_one_left(folder: Path) -> None:
    home = Home.of("t")
    home.make()
    (home.root / "study.db").write_text("half")
    with home.beginning():
        assert not (home.root / "study.db").exists()
        home.keep("name: t")


def test_a_second_launch_leaves_the_first_ones_home(folder: Path) -> None:
    home = Home.of("t")
    with home.beginning():
        with pytest.raises(SearchBusy), Home.of("t").beginning():
            pass
        home.keep("name: t")
    assert home.spec.exists()


def test_trials_whose_spec_is_gone_are_not_written_over(folder: Path) -> None:
    home = Home.of("t")
    home.trial(0).mkdir(parents=True)
    with pytest.raises(BadInput, match=r"its spec\.yaml is gone; put it back"), home.beginning():
        pass
    assert home.trial(0).exists()
    assert "spec.yaml is gone" in transfer_search("status", "t", code=2)


def test_one_broken_home_ends_neither_list_nor_doctor(project: Path) -> None:
    for name in ("bad", "good", "torn", "lost"):
        place = Home.of(name)
        with place.beginning():
            study = SearchStudy.create(read_spec(Path("spec.yaml"), name=name), place)
            study.ask()
            place.keep(read_spec(Path("spec.yaml"), name=name).to_yaml())
    Home.of("bad").spec.write_text("")
    for file in Home.of("torn").root.glob("study.db*"):
        file.unlink()
    (Home.of("torn").root / "study.db").write_text("torn " * 1000)
    Home.of("lost").trial(0).mkdir()
    Home.of("lost").spec.unlink()
    said, told = both_streams("list", code=1)
    assert "0/2" in said
    assert "bad: " in said
    assert "must be a mapping" in said
    assert "torn: the study" in said
    assert "lost: " in said
    assert "good: " in (examined := both_streams("doctor", code=1)[0])
    assert "torn: cannot be examined: " in examined
    assert told == ""


def test_updates_of_a_backbone_without_linear_layers_are_refused_before_a_trial(project: Path) -> None:
    words = ("--set=space.strategy=[full, lora]", "--set=space.lora_rank=[4, 8]")
    said = transfer_search("launch", "spec.yaml", "--dry-run", *words, code=2)
    assert "space.strategy" in said
    assert "efficientnet_lite0 has none: take bias, partial or lp_ft" in " ".join(said.split())
    assert not Path("searches").exists()


def test_stages_that_a_backbone_does_not_have_are_told_before_a_trial(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: object, **kwargs: object) -> tuple[str, ...]:
        raise ValueError("the network shows no stages; take features: last")

    monkeypatch.setattr("trainables.training.model.stage_names", none)
    said = transfer_search("launch", "spec.yaml", "--dry-run", "--set=space.features=[last, stages]", code=2)
    assert "space.features" in said
    assert "backbone efficientnet_lite0: the network shows no stages; take features: last" in " ".join(
        said.split()
    )
    assert not Path("searches").exists()
