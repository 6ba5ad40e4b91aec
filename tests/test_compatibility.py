"""What commit 0e82393 wrote is resumed, loaded, exported and predicted with, with the numbers that it had.

`tests/data/make_before.py` says how the files were made.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from search.answers import said
from search.home import Home
from search.results.export import open_export
from tests.search.commands import rows, transfer_search

BEFORE = Path(__file__).parent / "data" / "before.tar.xz"
IMAGES = [f"{number}.png" for number in range(4)]
_TOLERANCE = 1e-5


@pytest.fixture
def before(folder: Path) -> dict[str, Any]:
    """The files in the current folder, as if they had been made there, and what that commit said of them."""
    with tarfile.open(BEFORE) as archive:
        archive.extractall(folder, filter="data")
    expected: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    for spec in folder.glob("searches/*/spec.yaml"):
        spec.write_text(spec.read_text().replace(expected["root"], str(folder)))
    for database in [folder / "mlflow.db", *folder.glob("searches/*/study.db")]:
        _moved(database, expected["root"], str(folder))
    return expected


def _moved(database: Path, old: str, new: str) -> None:
    """Puts a new folder into the absolute paths of a database."""
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type='table'")]
        for table in tables:
            for _, column, kind, *_ in connection.execute(f"pragma table_info('{table}')").fetchall():
                if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                    replaced = f'update "{table}" set "{column}" = replace("{column}", ?, ?)'
                    connection.execute(f'{replaced} where instr("{column}", ?)', (old, new, old))


def _same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["probability"] for row in found] == pytest.approx(
        [row["probability"] for row in expected], abs=_TOLERANCE
    )


def _keeps(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """A row may say more than before, and nothing else."""
    for key, value in expected.items():
        if isinstance(value, dict):
            _keeps(found[key], value)
        elif key.endswith("_url"):
            assert found[key].startswith(value), key  # what is added says how MLflow shows the page
        else:
            assert found[key] == value, key


@pytest.mark.parametrize("kind", ["safetensors", "pt2"])
def test_an_export_predicts(before: dict[str, Any], kind: str) -> None:
    for file in Path("export").glob("model.*"):
        if file.suffix not in (".json", f".{kind}"):
            file.unlink()
    classifier = open_export(Path("export"))
    found = classifier.predict([Path(name) for name in IMAGES]).to_dict("records")
    _same(found, before["predicted"])


def test_a_logged_model_loads(before: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    model = mlflow.pyfunc.load_model(before["best"]["model_uri"])
    found = model.predict(pd.DataFrame({"image": [Path(name) for name in IMAGES]}))
    _same(found.to_dict("records"), before["by_mlflow"])


def test_a_finished_search_reads_as_before(before: dict[str, Any]) -> None:
    for found, expected in zip(rows("trials", "finished"), before["finished"], strict=True):
        _keeps(found, expected)
    _keeps(rows("best", "finished"), before["best"])
    assert rows("status", "finished")["state"] == "FINISHED"
    assert rows("doctor", "finished") == {"finished": []}
    examined = said(transfer_search("doctor", "finished", "--caller", "a client"), "examined")
    assert examined == {"cluster": [], "searches": {"finished": []}}


@pytest.mark.slow
def test_a_finished_search_is_exported(before: dict[str, Any]) -> None:
    transfer_search("export", "finished", "--to", "again", "--format", "safetensors")
    found = rows("predict", "again", *IMAGES)
    assert [row["label"] for row in found] == [row["label"] for row in before["predicted"]]
    card = json.loads(Path("again/model.json").read_text())
    for row, earlier in zip(found, before["predicted"], strict=True):  # which had no temperature
        powers = {
            name: share ** (1 / card["calibration"]["temperature"])
            for name, share in earlier["probabilities"].items()
        }
        likeliest = max(powers.values()) / sum(powers.values())
        assert row["probability"] == pytest.approx(likeliest, rel=1e-3)
    command = ("export", "finished", "--to", "stored", "--format", "safetensors", "--through-mlflow")
    stored = said(transfer_search(*command), "exported")
    assert stored is not None
    assert stored["trial"] == before["best"]["trial"]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_an_interrupted_search_is_resumed(before: dict[str, Any], folder: Path) -> None:
    home = Home(folder / "searches" / "interrupted")
    states = list(home.checkpoints.glob("*/state.pt"))
    assert len(states) == 2, "the trials were stopped in the middle"
    transfer_search("resume", "interrupted")
    trials = {row["trial"]: row for row in rows("trials", "interrupted")}
    assert {number: row["state"] for number, row in trials.items()} == dict.fromkeys(range(4), "COMPLETE")
    for expected in before["interrupted"]:
        row = trials[expected["trial"]]
        _keeps(row["params"], expected["params"])
        assert row["mlflow_run_id"] == expected["mlflow_run_id"]
        assert row["epochs"] == 4
    # A state of that version had no metrics: an epoch that nobody had heard of is lost, as the doctor says.
    found = said(transfer_search("doctor", "interrupted", "--caller", "a client"), "examined")
    assert found is not None
    assert [text.partition(" of ")[0] for text in found["searches"]["interrupted"]] == [
        f"trial {number}: Optuna lacks epoch 2" for number in (0, 1)
    ]
