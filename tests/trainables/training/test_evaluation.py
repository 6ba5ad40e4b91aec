"""What a trial shows of the validation images."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trainables.record import VALIDATION_FILE
from trainables.training.evaluation import Evaluation, Mistake, page
from trainables.training.loop import Training
from trainables.training.settings import Settings


def test_names_of_files_and_classes_are_text_and_nothing_else() -> None:
    worst = [Mistake(name='"><img src=x>', true="<b>a</b>", told="b", probability=0.9, picture=b"jpeg")]
    text = page(Evaluation(classes=("<b>a</b>", "b"), confusion=[[3, 1], [0, 2]], worst=worst), "t", "images")
    assert "5 of 6 images are told right" in text
    assert "<b>" not in text
    assert text.count("<img") == 1
    assert "<td>0.750</td><td>1.000</td><td>0.857</td>" in text


def test_many_classes_are_told_by_their_commonest_confusions() -> None:
    count = 30
    confusion = [[int(row == column) for column in range(count)] for row in range(count)]
    confusion[3][7] = 5
    text = page(
        Evaluation(classes=[f"class {n}" for n in range(count)], confusion=confusion, worst=()), "t", "images"
    )
    assert "Commonest confusions" in text
    assert '<tr><th scope="row">class 3</th><td>class 7</td><td>5</td></tr>' in text


@pytest.mark.parametrize(("long", "epochs"), [(0.0, [1, 2, 4, 6]), (1000.0, [6])])
def test_a_trial_shows_its_last_epoch_and_a_long_one_those_where_it_may_be_pruned(
    begin: Callable[..., Training],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    long: float,
    epochs: list[int],
) -> None:
    monkeypatch.setattr("trainables.training.loop._LONG", long)
    training = begin(max_epochs=6)
    shown = []
    while not training.finished:
        metrics = training.run_epoch()
        training.save_record(tmp_path)
        if not (tmp_path / VALIDATION_FILE).exists():
            continue
        text = (tmp_path / VALIDATION_FILE).read_text()
        (epoch,) = map(int, re.findall(r"after epoch (\d+)</h1>", text))
        if epoch == training.epoch:
            shown.append(epoch)
            right, count = map(int, re.findall(r"(\d+) of (\d+) images are told right", text)[0])
            assert right / count == metrics["val_accuracy"]
    assert shown == epochs


def test_a_refit_shows_nothing_of_images_that_it_has_seen(
    begin: Callable[..., Training], tmp_path: Path
) -> None:
    training = begin(max_epochs=1, settings=Settings(threads=1, trained_on=("train", "validation")))
    training.run_epoch()
    training.save_record(tmp_path)
    assert not (tmp_path / VALIDATION_FILE).exists()
