"""Exported models: the same answers from each file, and where this package is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.text.test_training import run, training
from trainables.modality import Backbone
from trainables.text.data import TextData
from trainables.text.modality import TEXT
from trainables.training.card import ModelError
from trainables.training.delta import LoadedModel, load_delta


@pytest.fixture(scope="module")
def model(
    data: TextData, backbone: Backbone, knobs: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    folder = tmp_path_factory.mktemp("model")
    trial = training(data, backbone, knobs, solver="ridge", features="stages")
    run(trial)
    trial.save_model(folder)
    return load_delta(folder / "model")


@pytest.fixture(scope="module")
def exported(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every format: tracing a graph takes seconds."""
    folder = tmp_path_factory.mktemp("exported")
    exporter = TEXT.exporter(model)
    for kind in TEXT.export_files:
        exporter.write(kind, folder)
        assert all((folder / name).is_file() for name in exporter.names(kind))
    return folder


@pytest.mark.parametrize("kind", list(TEXT.export_files))
def test_a_file_tells_what_the_model_tells(
    model: LoadedModel, data: TextData, exported: Path, kind: str
) -> None:
    predictor = TEXT.read_export(kind, exported / TEXT.export_files[kind])
    assert "texts as they are written" in TEXT.exporter(model).difference(predictor, data)
    assert "`tokenizer.json`" in TEXT.exporter(model).facts(exported)["use"]


def test_classify_needs_nothing_of_this_package(model: LoadedModel, data: TextData, exported: Path) -> None:
    texts = [*data.texts[:4], "the cat " * 40, "Über ☃"]
    code = (
        "import json, sys; sys.path = [p for p in sys.path if not p.endswith(sys.argv[1])]\n"
        "from classify import Classifier\n"
        "rows = Classifier('model.onnx').classify(json.loads(sys.stdin.read()))\n"
        "strange = {'torch', 'trainables', 'search', 'pandas', 'transformers'} & set(sys.modules)\n"
        "print(json.dumps([rows, sorted(strange)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[3].name)],
        input=json.dumps(texts),
        cwd=exported,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows, strange = json.loads(done.stdout)
    assert strange == []
    expected = TEXT.predictor(model).predict(texts)
    assert [row["label"] for row in rows] == list(expected["label"])
    for row, shares in zip(rows, expected["probabilities"], strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-5)
    lines = subprocess.run(
        [sys.executable, "classify.py"],
        input="the cat\n\na sun\n",
        cwd=exported,
        capture_output=True,
        text=True,
    )
    assert [line.partition("\t")[2] for line in lines.stdout.splitlines()] == ["the cat", "a sun"]


def test_what_is_no_text_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    predictor = TEXT.predictor(model)
    (tmp_path / "a.txt").write_text("the dog runs")
    assert list(predictor.predict([tmp_path / "a.txt"])["label"]) == list(
        predictor.predict("the dog runs")["label"]
    )
    (tmp_path / "b.txt").write_bytes(b"\x7fELF\0\0")
    for item, message in (
        (tmp_path / "b.txt", "zero bytes"),
        (tmp_path / "c.txt", "cannot be read"),
        ("  ", "empty"),
        (3, "must be text"),
        (b"\xff\xfe\xfd", "UTF-8"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.example(item)
    assert predictor.predict(str(tmp_path / "a.txt")).shape == (1, 3)


def test_a_file_of_another_tokenizer_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    from trainables.text import graphs

    whole = graphs.WholeModel(model)
    told = {
        **whole.told,
        "transfer_search.tokenizer": whole.told["transfer_search.tokenizer"].replace('"cat"', '"cow"'),
    }
    with pytest.raises(ModelError, match="another tokenizer"):
        graphs._card(told, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="carries no card"):
        graphs._card({}, tmp_path / "model.onnx")
