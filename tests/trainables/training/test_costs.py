"""What a model costs where it is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trainables.record import COSTS
from trainables.training.loop import Training
from trainables.training.settings import Monitor, Settings


def test_costs_are_those_of_the_whole_model_and_told_where_asked(begin: Callable[..., Training]) -> None:
    monitor = Monitor(metric="latency_ms", maximize=False)
    asked = begin(settings=Settings(threads=1, asked=COSTS, monitor=monitor), max_epochs=1)
    metrics, state = asked.run_epoch(), asked.model.state_dict()
    assert metrics["parameters"] == sum(p.numel() for p in asked.model.parameters())
    assert metrics["bytes"] == sum(t.numel() * t.element_size() for t in state.values())
    assert 0.1 < metrics["latency_ms"] < 1000
    assert asked.best is not None
    assert asked.best["expected_latency_ms"] == metrics["latency_ms"]
    assert not set(COSTS) & set(begin(max_epochs=1).run_epoch())


def test_a_schedule_that_looks_at_the_objective_looks_at_the_loss_of_a_cost(
    begin: Callable[..., Training],
) -> None:
    monitor = Monitor(metric="epoch_seconds", maximize=False)
    training = begin(settings=Settings(threads=1, monitor=monitor), schedule="plateau", max_epochs=1)
    assert training._rising_or_falling({"val_loss": 2.0}) == 2.0
    assert training.run_epoch()["epoch_seconds"] > 0


def test_an_objective_that_is_not_measured_is_told(begin: Callable[..., Training]) -> None:
    training = begin(settings=Settings(threads=1, monitor=Monitor(metric="val_recall")), max_epochs=1)
    with pytest.raises(ValueError, match="the objective val_recall is none that image data has"):
        training.run_epoch()
