"""The epochs that a trial's value is the mean of."""

from __future__ import annotations

import pytest

from trainables.training.hparams import HParams
from trainables.training.keeping import counted, value_of
from trainables.training.phases import phases


@pytest.mark.parametrize(
    ("hparams", "epoch", "epochs"),
    [
        (HParams(max_epochs=8), 8, [6, 7, 8]),
        (HParams(max_epochs=8), 2, [1, 2]),
        (HParams(max_epochs=1), 1, [1]),
        (HParams(max_epochs=3), 3, [3]),
        (HParams(max_epochs=4), 4, [3, 4]),
        (HParams(max_epochs=8, strategy="lp_ft", lp_share=0.5), 4, [3, 4]),
        (HParams(max_epochs=8, strategy="lp_ft", lp_share=0.5), 5, [5]),
        (HParams(max_epochs=8, strategy="lp_ft", lp_share=0.5), 8, [7, 8]),
        (HParams(max_epochs=12, strategy="lp_ft", lp_share=0.25), 5, [4, 5]),
        (HParams(max_epochs=12, strategy="full"), 12, [10, 11, 12]),
    ],
)
def test_the_last_epochs_of_one_phase_count(hparams: HParams, epoch: int, epochs: list[int]) -> None:
    assert list(counted(phases(hparams), epoch)) == epochs


def test_what_tells_no_expectation_is_worth_what_it_had() -> None:
    assert value_of({"val_accuracy": 0.5}, "val_accuracy") == 0.5
    assert value_of({"val_accuracy": 0.5, "expected_val_accuracy": 0.4}, "val_accuracy") == 0.4
