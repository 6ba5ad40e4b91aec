"""A search over sentences as a user gets it: launched, resumed, reported, exported, served, asked."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")

from tests.search.commands import rows, transfer_search
from tests.trainables.text.tiny import sentences, write_encoder, write_table

SPEC = """\
name: topics
data: {modality: text, source: texts.jsonl, options: {negations_matter: true}}
search: {trials: 3, max_epochs: 2, sampler: random, pruner: none}
space:
  backbone: transformer
  weights: ./encoder
  max_length: 24
  strategy: [probe, partial]
  features: [last, stages]
  solver: [ridge, gradient]
  freeze: 0.7
  policy: [none, deletion, sampled]
  sub_policies: 2
  lr: [0.01, 0.02]
tracking: {uri: "sqlite:///mlflow.db"}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Path:
    place = tmp_path_factory.mktemp("texts")
    write_encoder(place / "encoder")
    write_table(place / "texts.jsonl", sentences(40))
    (place / "topics.yaml").write_text(SPEC)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        printed = transfer_search("launch", "topics.yaml")
        assert "texts.jsonl: 80 texts in 2 classes" in printed
        assert "best trial" in printed
        transfer_search("export", "topics", "--to", "exported", "--register", "topics")
    return place


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.slow
def test_trials_complete_and_more_can_follow(inside: Path) -> None:
    before = rows("trials", "topics")
    assert [row["state"] for row in before] == ["COMPLETE"] * 3
    transfer_search("resume", "topics", "--trials", "4")
    assert [row["state"] for row in rows("trials", "topics")] == ["COMPLETE"] * 4
    files = (inside / "searches" / "topics").glob("checkpoints/*/record/applied.json")
    policies = [json.loads(file.read_text())["policy"] for file in files]
    assert all(told == ["texts as they are"] or "negations stay as they are" in told for told in policies)


@pytest.mark.slow
def test_the_export_is_checked_and_answers_for_files_and_lines(inside: Path) -> None:
    text = (inside / "exported" / "README.md").read_text()
    assert "as recorded" in text
    assert 'python classify.py "What a day"' in text
    assert "pixels" not in text
    (inside / "one.txt").write_text("the cat and the cat\nand a dog")
    (one,) = json.loads(transfer_search("predict", "exported", "one.txt", "--json"))
    assert one["text"] == "one.txt"
    (inside / "lines.txt").write_text("the cat runs, cat cat\n\nrain rain snow today\n")
    two = json.loads(transfer_search("predict", "exported", "lines.txt", "--lines", "--json"))
    assert [row["text"] for row in two] == ["the cat runs, cat cat", "rain rain snow today"]
    assert set(two[0]["probabilities"]) == {"animals", "weather"}
    assert "there is no text file nothing.txt" in transfer_search(
        "predict", "exported", "nothing.txt", code=2
    )


@pytest.mark.slow
def test_the_report_shows_texts(inside: Path) -> None:
    transfer_search("report", "topics", "--to", "report.html")
    page = (inside / "report.html").read_text()
    assert "What its model says of the validation texts" in page
    assert "animals" in page


@pytest.mark.slow
def test_models_of_mlflow_take_strings(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{inside}/mlflow.db")
    texts = ["the cat, the cat", "snow and rain"]
    logged = mlflow.pyfunc.load_model(rows("trials", "topics")[0]["model_uri"])
    assert set(logged.predict(texts)["label"]) <= {"animals", "weather"}
    served = mlflow.pyfunc.load_model("models:/topics/1")
    assert served.metadata.get_input_schema().input_names() == ["text"]
    told = served.predict(pd.DataFrame({"text": texts}))
    assert set(told["label"]) <= {"animals", "weather"}
    assert "tokenizers==" in Path(mlflow.pyfunc.get_model_dependencies("models:/topics/1")).read_text()


@pytest.mark.slow
def test_what_is_wrong_is_said_once_before_a_trial(inside: Path) -> None:
    words = ("launch", "topics.yaml", "--name", "other")
    error = transfer_search(*words, "--set=data.options.text=words", code=2)
    assert "name them with data.options" in error
    assert "image_size are for images" in transfer_search(*words, "--set=data.image_size=64", code=2)
    assert not (inside / "searches" / "other").exists()
