"""Specs: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from search.errors import SpecError
from search.spec.domains import Choice, Fixed, Range
from search.spec.search_spec import read_spec
from tests.search.specs import SMALL, small
from trainables.image.hparams import ImageHParams
from trainables.training.knobs import knobs

ROOT = Path(__file__).parents[3]


def test_the_examples_are_valid(folder: Path) -> None:
    found = sorted((ROOT / "examples").glob("*.yaml"))
    assert found
    for path in found:
        assert read_spec(path).name


def test_domains_are_read(folder: Path) -> None:
    spec = small("space.weight_decay={low: 1e-5, high: 1e-1, log: true, or: [0]}")
    assert spec.space["backbone"] == Fixed(value="efficientnet_lite0")
    assert spec.space["batch_size"] == Choice(values=(32, 64))
    assert spec.space["lr"] == Range(low=1e-3, high=1e-1, log=True)
    decay = spec.space["weight_decay"]
    assert isinstance(decay, Range)
    assert decay.alternatives == (0,)


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    assert small("space.lr=[1e-3, 1e-2]").space["lr"] == Choice(values=(1e-3, 1e-2))


def test_the_default_space_is_the_whole_space() -> None:
    text = SMALL.replace(SMALL[SMALL.index("space:") :], "space: default\n")
    whole = {k.name for k in knobs(ImageHParams).values() if k.space is not None}
    assert set(read_spec(text).space) == whole - {"image_size"}, "which its data fixes"


def test_what_launch_keeps_reads_as_the_same(folder: Path) -> None:
    spec = small(
        "search.time=1h30m",
        "space.weight_decay={low: 1e-5, high: 1e-1, log: true, or: [0]}",
        "cache=off",
    )
    assert spec.search.time == 5400
    assert read_spec(spec.to_yaml()) == spec


def test_paths_are_resolved_where_the_command_runs(folder: Path) -> None:
    (folder / "photos").mkdir()
    spec = small("data.source=photos", "data.root=raw", "cache.dir=node")
    assert spec.data.source == str(folder / "photos")
    assert spec.data.root == str(folder / "raw")
    assert spec.cache.dir == str(folder / "node")
    assert spec.tracking.uri == f"sqlite:///{folder / 'mlflow.db'}"


@pytest.mark.parametrize(
    ("override", "place", "says"),
    [
        ("search.trails=3", "search.trails", "did you mean trials"),
        ("space.learning_rate=0.1", "space.learning_rate", "allowed: backbone"),
        ("search.trials=many", "search.trials", "must be a whole number"),
        ("search.trials=0", "search.trials", "greater than or equal to 1"),
        ("search.time=soon", "search.time", "30m"),
        ("search.sampler=best", "search.sampler", "'tpe'"),
        ("space.lr={low: 0.1, high: 0.01}", "space.lr", "empty range"),
        ("space.lr={low: 0.1, high: 0.1}", "space.lr", "empty range"),
        ("space.lr={low: 0, high: 0.1, log: true}", "space.lr", "log range cannot hold 0"),
        ("space.lr={low: 1e-3, hihg: 0.1}", "space.lr.hihg", "did you mean high"),
        ("space.lr={low: 1e-3, high: 50}", "space.lr", "from 1e-07 to 10"),
        ("space.lr=fast", "space.lr", "a number from"),
        ("space.lr=[]", "space.lr", "empty list"),
        ("space.batch_size={low: 1.5, high: 8}", "space.batch_size", "whole"),
        ("space.strategy={low: 0, high: 1}", "space.strategy", "must not be a range"),
        ("space.policy=[none, mirror]", "space.policy", "trivial_augment"),
        ("space.policy=[none, none]", "space.policy", "twice"),
        ("space.max_epochs=[1, 2]", "space.max_epochs", "search.max_epochs"),
        ("space.momentum={low: 0, high: 0.9}", "space.momentum", "needs optimizer is sgd"),
        ("space.layer_decay=[0.65, 0.75]", "space.layer_decay", "nothing reads it"),
        ("space.image_size=[32, 64]", "space.image_size", "data.image_size"),
        ("search.objective={val_accuracy: up}", "search.objective.val_accuracy", "'maximize'"),
        ("search.objective={accuracy: maximize}", "search.objective.accuracy", "'val_accuracy'"),
        ("data.splits={validation: 0.6, test: 0.5}", "data.splits", "leave a share"),
        ("storage=postgresql://me:secret@host/db", "storage", "must not contain a password"),
        ("checkpoints=somewhere", "checkpoints", "s3://bucket/prefix, or an absolute path"),
        ("checkpoints=s3://KEY:SEC/RET@bucket/states", "checkpoints", "must not contain a key"),
        ("checkpoints=abfs://c@a.example.org/x?client_secret=s", "checkpoints", "must not contain a key"),
        ("data.source=s3://KEY:SECRET@bucket/flowers", "data.source", "must not contain a key"),
        ("tracking.uri=${NOT_SET_ANYWHERE}", "tracking.uri", "NOT_SET_ANYWHERE"),
        ("name=../escape", "name", "made of letters (a to z), digits"),
        ("search.sampler=grid", "space.lr", "needs a step"),
        ("nonsense", "--set", "path.to.key=value"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_is_allowed(
    override: str, place: str, says: str
) -> None:
    with pytest.raises(SpecError) as caught:
        small(override)
    problems = [p for p in caught.value.problems if p.place.split(" ")[0] == place]
    assert problems, str(caught.value)
    assert any(says in str(problem) for problem in problems), str(caught.value)


def test_a_refused_password_is_not_repeated() -> None:
    for given in ("storage=postgresql://me:hunter2@host/db", "checkpoints=s3://me:hunter2/x@bucket"):
        with pytest.raises(SpecError) as caught:
            small(given)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_addresses_stay_as_they_are(folder: Path, elsewhere: bool) -> None:
    source, checkpoints = "s3://bucket/flowers?region=eu-west-1", "/mnt/states"
    words = (f"data.source={source}", f"checkpoints={checkpoints}")
    spec = read_spec(SMALL, words, elsewhere=elsewhere)
    assert (spec.data.source, spec.checkpoints) == (source, checkpoints)
    assert read_spec(spec.to_yaml()).data.source == source


def test_all_problems_come_at_once_with_their_lines() -> None:
    text = SMALL.replace("trials: 6", "trials: no").replace("source: digits", "sauce: digits")
    with pytest.raises(SpecError) as caught:
        read_spec(text)
    said = str(caught.value)
    assert "search.trials (line 9)" in said
    assert "data.sauce (line 4)" in said
    assert "data.source" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("just text", "must be a mapping"),
        ("a: &x 1\nb: *x\n", "aliases"),
        (SMALL + "name: again\n", "given twice"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        read_spec(text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        read_spec(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="UTF-8"):
        read_spec(tmp_path / "binary.yaml")
    (tmp_path / "huge.yaml").write_text("#" * 300_000)
    with pytest.raises(SpecError, match="256 KiB"):
        read_spec(tmp_path / "huge.yaml")


def test_the_kept_spec_is_plain_yaml(folder: Path) -> None:
    assert yaml.safe_load(small().to_yaml())["space"]["batch_size"] == [32, 64]
