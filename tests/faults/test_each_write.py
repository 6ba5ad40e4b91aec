"""A process is killed after each kind of thing that it writes, one after another: nothing is lost or doubled.

Half a line of the outbox counts as one. With FAULTS=full in the environment each is met five times, in lives
of another past and with other measurements.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.invariants import seen
from tests.faults.lives import live
from tests.faults.moments import Fault
from tests.faults.places import Place

EACH = 5 if os.environ.get("FAULTS") == "full" else 1
FOR_GOOD = "trial, for good"
LIVES = 1000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    before = Path.cwd()
    yield Place(tmp_path_factory.mktemp("each"), "search.trials=10", "search.max_epochs=3")
    os.chdir(before)


def lost(place: Place, who: str, each: int, *only: str) -> tuple[list[str], list[str]]:
    """What is lost in a search whose processes die after each thing that they write; and where they died.

    Args:
        place: where it is run.
        who: dies; a trial that is killed for good is not tried again.
        each: how often after each thing.
        only: after these things alone.
    """
    place.empty()
    search = place.spec.search.model_copy(update={"retries": 0 if who == FOR_GOOD else 10})
    spec = place.spec.model_copy(update={"search": search})
    log = Path("deaths").absolute()
    fault = Fault(who=who.partition(",")[0], each=each, only=only, log=log)
    ever: dict[tuple[int, int], float] = {}
    for life in range(LIVES):
        died = fault.deaths()
        lived = live(spec, place.home, fault, life)
        known, ever = ever, seen(place.home)
        if changed := [key for key, value in known.items() if ever.get(key) != value]:
            return [f"epoch and trial {changed} have changed"], list(fault.deaths())
        if lived is not None and lived.finished and fault.deaths() == died:  # all that is left was sent
            break
    return place.losses(ever).all(), list(fault.deaths().elements())


@pytest.mark.parametrize(("who", "least"), [("driver", 30), ("trial", 4), (FOR_GOOD, 4), ("sender", 12)])
def test_a_death_after_anything_that_is_written_loses_and_doubles_nothing(
    place: Place, who: str, least: int
) -> None:
    found, deaths = lost(place, who, EACH)
    assert found == [], deaths
    print(f"{who}: {len(deaths)} deaths, after {len(set(deaths))} different writes")
    assert len(set(deaths)) >= least, sorted(set(deaths))
