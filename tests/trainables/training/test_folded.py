"""A solved head's value by folds: the mean over images that its heads were not fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.files.cache import Cache
from trainables.image.data import ImageData
from trainables.training.keeping import value_of
from trainables.training.loop import Training
from trainables.training.settings import Settings


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_the_value_is_that_of_folds_and_the_model_is_scored_as_ever(
    begin: Callable[..., Training], digits: ImageData, data_cache: Path, solver: str
) -> None:
    asked = {"strategy": "probe", "solver": solver, "data": digits, "cache": Cache(data_cache, 2**30)}
    folded = begin(settings=Settings(threads=1, folds=5), **asked)
    alone = begin(**asked)
    metrics = folded.run_epoch()
    assert metrics["val_accuracy"] == alone.run_epoch()["val_accuracy"]
    assert folded.best is not None
    assert alone.best is not None
    assert value_of(alone.best, "val_accuracy") == metrics["val_accuracy"]
    value = value_of(folded.best, "val_accuracy")
    assert 0.5 < value < 1
    assert folded._right is not None
    assert len(folded._right) == len(digits.splits["train"]) + len(digits.splits["validation"])
    assert value == pytest.approx(sum(folded._right) / len(folded._right), abs=0.01)
    assert {"expected_val_auroc", "expected_val_loss"} <= set(folded.best)


def test_repeats_draw_other_folds(
    begin: Callable[..., Training], digits: ImageData, data_cache: Path
) -> None:
    values = []
    for repeats in (1, 3):
        training = begin(
            settings=Settings(threads=1, folds=4, repeats=repeats),
            strategy="probe",
            solver="ridge",
            data=digits,
            cache=Cache(data_cache, 2**30),
        )
        training.run_epoch()
        assert training.best is not None
        values.append(training.best["expected_val_loss"])
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[1], abs=0.2)


def test_what_belongs_together_is_left_out_together(
    begin: Callable[..., Training], digits: ImageData, data_cache: Path
) -> None:
    # Each image stands twice: without groups its twin gives it away.
    twice = replace(
        digits,
        splits={**digits.splits, "validation": digits.splits["train"], "test": digits.splits["test"]},
        groups=torch.arange(len(digits.labels)),
    )
    values = []
    for data in (replace(twice, groups=None), twice):
        training = begin(
            settings=Settings(threads=1, folds=5),
            strategy="probe",
            solver="ridge",
            data=data,
            cache=Cache(data_cache, 2**30),
        )
        training.run_epoch()
        assert training.best is not None
        values.append(value_of(training.best, "val_accuracy"))
    assert values[1] < values[0] - 0.02
