"""What a search may spend: wall time and device-hours, and what is kept of them for its finalists."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.errors import SpecError
from search.home import Home
from search.run import budget as module
from search.run.budget import Budget
from search.study.agenda import pool_size
from search.study.ensemble import pool_of
from search.study.facts import LOOKS_FOR_ENSEMBLE
from search.study.finalists import finalists_seconds
from search.study.refit import affordable, refit_seconds
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from tests.search.specs import small
from trainables.record import METRICS


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def study_of(*overrides: str) -> SearchStudy:
    home = Home.of("small")
    home.make()
    return SearchStudy.create(small("search.sampler=random", *overrides), home)


def end_trial(study: SearchStudy, seconds: float) -> str:
    """A trial whose epochs take some seconds each; its strategy."""
    given = study.ask()
    best = {"epoch": 1.0, **dict.fromkeys(METRICS, 0.5), "epoch_seconds": seconds}
    study.end(given.number, Ending.COMPLETED, best)
    return given.hparams.strategy


def test_wall_time_ends(folder: Path, clock: Clock) -> None:
    budget = Budget(study_of(), 100.0)
    assert budget.until == 1100.0
    assert budget.goes_on(2)
    clock.now += 99
    assert budget.goes_on(2)
    clock.now += 2
    assert not budget.goes_on(2)
    assert budget.is_over


def test_without_a_bound_it_never_ends(folder: Path, clock: Clock) -> None:
    budget = Budget(study_of())
    clock.now += 1e9
    assert budget.goes_on(1)
    assert budget.until is None


@pytest.mark.parametrize(("resources", "devices"), [("{cpu: 2}", 2), ("{cpu: 4, gpu: 0.5}", 0.5)])
def test_device_hours_are_those_of_running_trials(
    folder: Path, clock: Clock, resources: str, devices: float
) -> None:
    study = study_of(f"resources={resources}")
    budget = Budget(study, hours=1.0)
    assert budget.goes_on(0)
    clock.now += 5000
    assert budget.goes_on(3), "nothing ran"
    clock.now += 1000
    budget.write()
    assert study.device_seconds == pytest.approx(3 * devices * 1000)
    assert study.seconds_spent == pytest.approx(6000)
    budget.write()
    assert study.device_seconds == pytest.approx(3 * devices * 1000), "told once"
    clock.now += 1 + (3600 - 3 * devices * 1000) / (3 * devices)
    assert not budget.goes_on(3)


def test_time_is_kept_for_the_finalists(folder: Path, clock: Clock) -> None:
    study = study_of("search.finalists={top: 2, seeds: 3}", "search.max_epochs=4")
    budget = Budget(study, 1000.0, at_once=2)
    clock.now += 500
    assert budget.goes_on(2), "nothing is known of what they take"
    for seconds in (10.0, 20.0):
        end_trial(study, seconds)
    assert finalists_seconds(study) == pytest.approx(6 * 4 * 15)
    clock.now += 1000 - 500 - 180 - 1
    assert budget.goes_on(2)
    clock.now += 3
    assert not budget.goes_on(2)
    alone = Budget(study, 1000.0, at_once=0)
    clock.now += 999
    assert alone.goes_on(2), "their own study keeps nothing for them"


@pytest.mark.parametrize(("strategy", "kept"), [("probe", 1.5 * 4 * 20), ("full", 1.5 * 4 * 20 / 2**0.75)])
def test_time_is_kept_for_the_refit(folder: Path, clock: Clock, strategy: str, kept: float) -> None:
    study = study_of("search.refit=true", "search.max_epochs=4", f"space.strategy={strategy}")
    budget = Budget(study, 1000.0, at_once=2)
    end_trial(study, 20.0)
    clock.now += 999
    assert budget.goes_on(2), "it is not known of how many images"
    study.premises = {"images": {"train": 200, "validation": 100, "test": 50}}
    assert refit_seconds(study, 2) == pytest.approx(kept)
    kept += 8  # a process starts
    clock.now -= kept + 2
    budget = Budget(study, 1000.0 - (clock.now - 1000.0), at_once=2)
    clock.now += 1
    assert budget.goes_on(2)
    clock.now += 3
    assert not budget.goes_on(2)


def test_the_refit_of_a_policy_draws_what_was_never_drawn(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of("search.refit=true", "search.max_epochs=4", "space.policy=classic")
    end_trial(study, 20.0)
    study.premises = {"images": {"train": 200, "validation": 100, "test": 50}}
    monkeypatch.setattr(SearchStudy, "seconds_of", lambda self, number: 4 * 20 + 100.0)
    assert refit_seconds(study, 2) == pytest.approx(1.5 * 4 * 20 + 0.5 * 100 / 2**0.75)


def test_device_hours_are_kept_for_the_finalists_too(folder: Path, clock: Clock) -> None:
    study = study_of("search.finalists={top: 1, seeds: 3}", "search.max_epochs=4", "resources={cpu: 2}")
    end_trial(study, 25.0)
    budget = Budget(study, hours=0.5, at_once=2)
    assert budget.goes_on(1)
    clock.now += (1800 - 600) / 2 - 1
    assert budget.goes_on(1)
    clock.now += 2
    assert not budget.goes_on(1)


def test_device_hours_are_a_number_above_nothing() -> None:
    assert small("search.device_hours=1.5").search.device_hours == 1.5
    with pytest.raises(SpecError, match="device_hours"):
        small("search.device_hours=0")


TUNED = ("search.sampler=random", "space.strategy=[probe, full]")
PHASES = (*TUNED, "space.solver=ridge")


def test_an_ensembles_heads_are_refitted_and_fine_tunes_as_there_is_time(folder: Path) -> None:
    study = study_of("search.refit=true", "search.max_epochs=4", "search.trials=60", *TUNED)
    study.premises = {"images": {"train": 200, "validation": 100, "test": 50}}
    known: list[str] = []
    while known.count("probe") < 1 or known.count("full") < 2:
        known.append(end_trial(study, 20.0))
    head, first = known.index("probe"), known.index("full")
    second = known.index("full", first + 1)
    members = [first, second, head]  # each takes 1.5 * 4 * 20 seconds
    assert affordable(study, members, 2, None) == [head, first, second]
    assert affordable(study, members, 2, 130.0) == [head, first]
    assert affordable(study, members, 1, 130.0) == [head]
    assert affordable(study, members, 2, 0.0) == [head]
    assert affordable(study, [first, second], 2, 100.0) == []


def test_an_ensemble_is_looked_for_where_heads_and_fine_tunes_can_be_in_it(folder: Path) -> None:
    assert pool_size(small(*PHASES)) == 8
    assert pool_size(small(*PHASES, "search.ensemble=false")) == 0
    assert pool_size(small(*PHASES, "search.constraints={bytes: {max: 1e9}}")) == 0
    assert pool_size(small(*PHASES, "search.objective={train_loss: minimize}")) == 0
    assert pool_size(small()) == 0
    assert pool_size(small("search.ensemble=5")) == 5
    study = study_of("search.trials=60", "search.max_epochs=2", *PHASES)
    assert end_trial(study, 1.0) == "probe", "the phase of heads"
    assert pool_of(study) == []
    while end_trial(study, 1.0) != "full":
        pass
    assert len(pool_of(study)) > 1
    study._study.set_user_attr(LOOKS_FOR_ENSEMBLE, False)  # as one of old, whose answer is to stay
    assert pool_of(study) == []
