"""An export's probabilities are calibrated, its card says so, and sets of classes come where asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.home import Home
from search.run.planning import load_data
from search.search import Search
from tests.search.commands import transfer_search
from tests.search.ran import ran
from tests.search.specs import small
from trainables.image.standalone.classify import Classifier
from trainables.record import MODEL_FOLDER
from trainables.training.delta import card_of, load_delta, scaled

LIMIT = "data.limit={train: 60, validation: 60, test: 40}"


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    home = Home(tmp_path_factory.mktemp("calibrated") / "searches" / "small")
    spec = small("search.max_epochs=2", "search.trials=1", "search.conformal=0.9", LIMIT)
    return ran(spec, [{"strategy": "probe", "policy": "none", "lr": 0.05}], home)


@pytest.fixture(scope="module")
def exported(search: Search, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    to = tmp_path_factory.mktemp("export") / "out"
    words = ("--home", search.home.root.parent, "--format", "safetensors")
    return to, transfer_search("export", "small", "--to", to, *words)


def test_the_card_says_what_the_temperature_does(search: Search, exported: tuple[Path, str]) -> None:
    to, printed = exported
    card = json.loads((to / "model.json").read_text())
    told = card["calibration"]
    assert told["temperature"] > 0
    assert told["temperature"] != 1
    assert told["found_on"] == "60 validation images"
    assert 0 <= told["error_after"] < told["error_before"]
    assert f"{told['error_before']:.4f} before, {told['error_after']:.4f} after" in printed
    own = card_of(search.home.trial(0) / MODEL_FOLDER)
    assert own.calibration == {}
    assert card["metric"]["val_accuracy"] == own.metric["val_accuracy"]
    assert card["metric"]["val_loss"] < own.metric["val_loss"]
    text = (to / "README.md").read_text()
    assert "The probabilities are calibrated" in text
    assert "hold the true class of 90 % of images" in text


def test_predictions_have_sets_that_hold_the_answer(search: Search, exported: tuple[Path, str]) -> None:
    to, _ = exported
    data = load_data(search.spec)
    files = []
    for place in data.splits["validation"][:8].tolist():
        files.append(to.parent / f"{place}.png")
        Image.fromarray(data.image(place).permute(1, 2, 0).numpy()).save(files[-1])
    answers = json.loads(transfer_search("predict", to, *files, "--json"))
    least = json.loads((to / "model.json").read_text())["calibration"]["conformal"]["threshold"]
    for answer in answers:
        likely = {name for name, share in answer["probabilities"].items() if share >= least}
        assert set(answer["set"]) == likely | {answer["label"]}
    assert f"one of: {', '.join(answers[0]['set'])}" in transfer_search("predict", to, files[0])
    alone = Classifier.__new__(Classifier)  # its graph is tested elsewhere, and takes seconds to make
    for answer in answers:
        alone.classes, alone._least = list(answer["probabilities"]), least
        said = alone._told(np.array(list(answer["probabilities"].values()), dtype=np.float32))
        assert set(said["set"]) == set(answer["set"])


def test_a_factor_is_in_the_weights(search: Search) -> None:
    folder = search.home.trial(0) / MODEL_FOLDER
    before, after = load_delta(folder), scaled(load_delta(folder), 2.0)
    blank = before.card.preprocessing.blank(1)
    assert (2 * before.model(blank) - after.model(blank)).abs().max() < 1e-5
