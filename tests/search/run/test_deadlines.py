"""How long trials may take, on a clock that a test sets."""

from __future__ import annotations

import pytest

from search.run.deadlines import Deadlines
from search.study.trials import Assignment
from tests.search.specs import small


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Driver:
    """A driver that looks once a second at trials of one kind."""

    def __init__(self, trial_seconds: float | None = None) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(trial_seconds, clock=self.clock)
        self.running: set[int] = set()

    def hand_out(self, number: int) -> None:
        self.deadlines.handed_out(Assignment(number, small().hparams(strategy="probe"), 0))
        self.running.add(number)

    def wait(self, seconds: float) -> dict[int, str]:
        """What is overdue within a time, and why."""
        found: dict[int, str] = {}
        for _ in range(int(seconds)):
            self.clock.now += 1
            found |= {each.number: each.reason for each in self.deadlines.overdue(self.running)}
        self.clock.now += seconds % 1
        return found

    def ran(self, number: int, *epochs: float) -> None:
        """A trial that runs all its epochs, each so long."""
        self.hand_out(number)
        for epoch, seconds in enumerate(epochs, 1):
            assert self.wait(seconds) == {}
            self.deadlines.epoch_ended(number, epoch)
        self.running.discard(number)
        self.deadlines.ended(number)


@pytest.mark.parametrize("seconds", [0.01, 40.0])
def test_an_epoch_that_takes_far_longer_than_its_kins_hangs(seconds: float) -> None:
    driver = Driver()
    for number in (0, 1):
        driver.ran(number, 2 * seconds, seconds, seconds)
    driver.hand_out(2)
    driver.wait(2 * seconds)
    driver.deadlines.epoch_ended(2, 1)
    bound = max(600, 20 * seconds)
    assert driver.wait(bound) == {}
    assert "its process hangs" in driver.wait(3)[2]
    # It is tried again, and hangs in the first epoch of that attempt: which is set up, too.
    driver.deadlines.failed(2)
    bound = max(600, 20 * (seconds + 2 * seconds))
    assert driver.wait(bound - 40) == {}
    assert "epoch 2 took longer than" in driver.wait(45)[2]


def test_a_trial_without_kin_is_judged_by_its_own_time_alone() -> None:
    driver = Driver()
    driver.ran(0, 1, 1)
    driver.hand_out(1)
    assert driver.wait(5000) == {}
    driver = Driver(trial_seconds=60)
    driver.hand_out(1)
    assert driver.wait(50) == {}
    driver.deadlines.epoch_ended(1, 1)
    driver.deadlines.failed(1)
    assert "search.trial_time" in driver.wait(15)[1]


def test_a_driver_that_stood_still_blames_no_trial() -> None:
    driver = Driver(trial_seconds=60)
    driver.hand_out(0)
    driver.wait(10)
    driver.clock.now += 8 * 3600
    assert driver.wait(30) == {}
