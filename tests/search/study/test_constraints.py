"""Constraints, and objectives beside accuracy: what a search is told of them and what it makes of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from search.errors import BadInput, SpecError
from search.home import Home
from search.results.rows import best_rows, trial_rows
from search.search import Search
from search.spec.sections import Bounds
from search.study.constraints import misses, violated
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from tests.search.specs import small
from trainables.record import METRICS, REPORTED

FAST = "search.constraints={latency_ms: {max: 5}}"


def test_every_metric_that_is_reported_can_be_an_objective() -> None:
    for name in REPORTED:
        assert list(small(f"search.objective={{{name}: maximize}}").search.objective) == [name]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("search.objective={log_loss: minimize}", "did you mean val_loss?"),
        ("search.objective={accuracy: maximize}", "did you mean val_accuracy?"),
        ("search.objective={val_auc: maximize}", "must be one of 'train_loss', 'val_loss', 'val_accuracy'"),
        ("search.constraints={latency: {max: 5}}", "did you mean latency_ms?"),
        ("search.constraints={latency_ms: {}}", "must have max or min"),
        ("search.constraints={latency_ms: {min: 3, max: 2}}", "must leave something between min and max"),
        ("search.constraints={latency_ms: {most: 3}}", "most"),
    ],
)
def test_what_is_none_is_told_with_a_list(given: str, told: str) -> None:
    with pytest.raises(SpecError) as error:
        small(given)
    assert told in str(error.value)


def test_an_ensemble_has_no_costs() -> None:
    with pytest.raises(SpecError, match="ensemble is several models"):
        small(FAST, "search.ensemble=5")


def test_a_cost_that_is_to_grow_is_doubted() -> None:
    (warning,) = small("search.objective={parameters: maximize}").warnings
    assert "did you mean minimize?" in warning


def test_bounds_are_missed_by_what_is_told() -> None:
    constraints = {"latency_ms": Bounds(max=5), "val_accuracy": Bounds(min=0.5, max=0.9)}
    best = {"latency_ms": 7.0, "val_accuracy": 0.2, "expected_val_accuracy": 0.6}
    assert misses(best, constraints) == pytest.approx(
        {"latency_ms max": 2.0, "val_accuracy max": -0.3, "val_accuracy min": -0.1}
    )
    assert list(violated(best, constraints)) == ["latency_ms 7, but must be at most 5"]
    assert list(violated({"epoch": 1.0}, {"latency_ms": Bounds(max=5)})) == [
        "latency_ms not measured, but must be at most 5"
    ]
    assert list(violated(None, constraints)) == []


def ended(study: SearchStudy, value: float, latency: float, ending: Ending = Ending.COMPLETED) -> None:
    assignment = study.ask()
    metrics = {**dict.fromkeys(METRICS, value), "latency_ms": latency}
    study.report(assignment.number, 1, metrics)
    study.end(assignment.number, ending, {"epoch": 1.0, **metrics})


def begun(*overrides: str) -> Search:
    spec, home = small("search.trials=4", "search.pruner=none", *overrides), Home.of("small")
    home.make()
    study = SearchStudy.create(spec, home)
    home.keep(spec.to_yaml(home.root))
    return Search(spec, home, study)


def test_what_misses_a_constraint_is_never_the_best(folder: Path) -> None:
    search = begun(FAST)
    ended(search.study, 0.9, 8.0)
    with pytest.raises(BadInput, match=r"none of the 1 completed trials of 'small' meets"):
        best_rows(search, linked=False)
    ended(search.study, 0.6, 4.0)
    ended(search.study, 0.7, 3.0)
    ended(search.study, 0.8, 9.0)
    again = Search.open(search.home)
    (best,) = best_rows(again, linked=False)
    assert (best.trial, best.value, best.objectives["latency_ms"]) == (2, 0.7, 3.0)
    rows = trial_rows(again, linked=False)
    assert [bool(row.violated) for row in rows] == [True, False, False, True]
    assert rows[3].document()["violated"] == ["latency_ms 9, but must be at most 5"]
    assert again.study.leader() == (2, 0.7)


def test_a_front_has_none_that_miss_a_constraint(folder: Path) -> None:
    search = begun(FAST, "search.objective={val_accuracy: maximize, latency_ms: minimize}")
    for value, latency in ((0.9, 8.0), (0.8, 4.0), (0.7, 3.0), (0.6, 4.5)):
        ended(search.study, value, latency)
    assert [row.trial for row in best_rows(search, linked=False)] == [1, 2]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_learn_of_constraints_and_failures(folder: Path, sampler: str) -> None:
    # The faster the rate, the better and the slower; beyond a point it fails. Half the range is allowed.
    search = begun(FAST, f"search.sampler={sampler}", "search.trials=24", "space.policy=none")
    met = []
    for place in range(24):
        assignment = search.study.ask()
        lr = assignment.hparams.lr
        metrics = {
            **dict.fromkeys(METRICS, lr + random.Random(place).gauss(0, 1e-4)),
            "latency_ms": lr / 0.002,
        }
        ending = Ending.DIVERGED if lr > 0.05 else Ending.COMPLETED
        search.study.end(assignment.number, ending, {"epoch": 1.0, **metrics})
        met.append(lr <= 0.01)
    assert sum(met[12:]) >= 8, "random draws meet it half the time"
