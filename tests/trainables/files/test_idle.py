"""Work for cores that would be idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from trainables.files.idle import _idle_seconds, while_idle


def done_within(seconds: float, cores: int = 1) -> int:
    """How many pieces are done until it is over."""
    over, done = threading.Event(), list[None]()
    threading.Timer(seconds, over.set).start()
    while_idle(over, lambda: done.append(None), cores)
    return len(done)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def set_to(cores: float) -> None:
        seconds: Callable[[], float] = lambda: cores * time.monotonic()  # noqa: E731
        monkeypatch.setattr("trainables.files.idle._idle_seconds", seconds)

    return set_to


def test_pieces_are_done_one_after_another_while_a_core_is_idle(idle: Callable[[float], None]) -> None:
    idle(1.0)
    assert 2 <= done_within(0.8) <= 8


def test_none_is_done_while_all_cores_are_busy(idle: Callable[[float], None]) -> None:
    idle(0.5)
    assert done_within(0.5) == 0


def test_a_piece_of_several_threads_waits_for_as_many_cores(idle: Callable[[float], None]) -> None:
    idle(1.0)
    assert done_within(0.5, cores=2) == 0


def test_the_machines_idle_time_grows() -> None:
    before = _idle_seconds()
    time.sleep(0.05)
    assert _idle_seconds() >= before > 0
