"""A trial that is repeated equals its record to the bit, and what differs is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.home import Home
from search.search import Search
from tests.search.commands import both_streams, rows, transfer_search
from tests.search.ran import ran
from tests.search.specs import small
from trainables.files.trial_folder import read_epochs, write_epochs
from trainables.record import APPLIED_FILE, MODEL_FOLDER
from trainables.training.delta import card_of

TRIALS = [
    {"strategy": "probe", "policy": "classic"},
    {"strategy": "partial", "freeze": 0.9, "policy": "none", "dropout": 0.2},
    {"strategy": "lp_ft", "freeze": 0.9, "policy": "classic", "ema": 0.9},
]
LIMIT = "data.limit={train: 40, validation: 30, test: 20}"


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    home = Home(tmp_path_factory.mktemp("repeated") / "searches" / "small")
    return ran(small("search.max_epochs=2", "search.trials=3", LIMIT), TRIALS, home)


@pytest.fixture
def searches(search: Search) -> Path:
    return search.home.root.parent


def written(root: Path) -> dict[Path, int]:
    """When each file was written last, but for those of SQLite."""
    files = (path for path in root.rglob("*") if path.is_file() and "study.db" not in path.name)
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("number", range(len(TRIALS)), ids=[str(each["strategy"]) for each in TRIALS])
def test_a_trial_repeats_to_the_bit_and_leaves_nothing(search: Search, searches: Path, number: int) -> None:
    before = written(search.home.root)
    printed = transfer_search("repeat", "small", "--trial", str(number), "--home", searches)
    assert "2 epochs again" in printed
    assert "equal to the bit" in printed
    assert written(search.home.root) == before


def test_what_differs_is_told_and_the_exit_code_is_one(search: Search, searches: Path) -> None:
    folder = search.home.trial(0)
    applied, kept = json.loads((folder / APPLIED_FILE).read_text()), (folder / APPLIED_FILE).read_text()
    epochs = read_epochs(folder)
    begun = search.study.begun(0)
    assert begun is not None
    changed = {**epochs, 2: {**epochs[2], "val_loss": epochs[2]["val_loss"] + 1e-9}}
    applied["made_with"] |= {"torch": "1.0", "cpu": "another"}
    applied["weights_hash"] = "0123"
    try:
        write_epochs(folder, changed, begun.hparams.to_dict())
        (folder / APPLIED_FILE).write_text(json.dumps(applied))
        printed, _ = both_streams("repeat", "small", "--trial", "0", "--home", searches, code=1)
    finally:
        write_epochs(folder, epochs, begun.hparams.to_dict())
        (folder / APPLIED_FILE).write_text(kept)
    assert "NOT equal" in printed
    assert "epoch 2 val_loss: was" in printed
    assert "model: the same" in printed
    for told in ("torch: was 1.0, is", "cpu: was another, is", "weights: was 0123, is"):
        assert told in printed


def test_a_program_gets_all_of_it(searches: Path) -> None:
    found = rows("repeat", "small", "--trial", "0", "--home", searches)
    assert found["equal"]
    assert found["epochs"] == 2
    assert found["differences"] == found["surroundings"] == []
    assert found["model"][0] == found["model"][1]


def test_a_trial_that_is_not_there(searches: Path) -> None:
    said = transfer_search("repeat", "small", "--trial", "7", "--home", searches, code=2)
    assert "'small' has no trial 7; it has 0 to 2" in said


def test_a_model_says_what_it_was_made_with(search: Search) -> None:
    card = card_of(search.home.trial(2) / MODEL_FOLDER)
    assert {"transfer-search", "python", "torch", "timm", "cpu", "data"} <= set(card.made_with)
    assert search.study.premises is not None
    assert card.made_with["data"] == search.study.premises["data"]
    assert card.hparams.seed
    assert card.weights_hash
