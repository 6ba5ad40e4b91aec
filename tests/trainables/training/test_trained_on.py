"""A training on more than its training split, as a winner's refit is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.image.data import ImageData
from trainables.record import MODEL_FOLDER
from trainables.training.delta import load_delta
from trainables.training.loop import Training
from trainables.training.settings import Settings

BOTH = Settings(threads=1, trained_on=("train", "validation"))


@pytest.mark.parametrize(
    "knobs",
    [{"solver": "ridge", "features": "stages"}, {"policy": "classic", "class_weights": True}],
    ids=["solved", "stepped"],
)
def test_it_is_trained_on_both_splits(
    begin: Callable[..., Training], few_digits: ImageData, tmp_path: Path, knobs: dict[str, str]
) -> None:
    splits = dict(few_digits.splits)
    joined = {**splits, "train": torch.cat([splits["train"], splits["validation"]])}
    given = {"strategy": "probe", "max_epochs": 2, **knobs}
    expected = begin(data=replace(few_digits, splits=joined), **given)
    refit, alone = begin(settings=BOTH, **given), begin(**given)
    for training in (expected, refit, alone):
        while not training.finished:
            training.run_epoch()
    for name, tensor in refit.model.head.state_dict().items():
        # Of the validation images it takes the features that they were measured by, in full precision.
        torch.testing.assert_close(tensor, expected.model.head.state_dict()[name], atol=2e-3, rtol=2e-3)
    assert not torch.allclose(refit.model.head.output.weight, alone.model.head.output.weight)
    refit.save_model(tmp_path)
    alone.save_model(tmp_path / "alone")
    card = load_delta(tmp_path / MODEL_FOLDER).card
    assert (card.trained_on, card.has_seen_validation) == (("train", "validation"), True)
    assert not load_delta(tmp_path / "alone" / MODEL_FOLDER).card.has_seen_validation
    assert refit.applied()["trained_on"] == {"train": 24, "validation": 20}
