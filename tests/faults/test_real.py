"""Real searches on real Ray, whose drivers are killed at random moments and resumed. FAULTS=full runs it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from search.home import Home
from search.processes import environment, python
from search.spec.search_spec import read_spec
from tests.faults.invariants import losses, seen
from tests.search.specs import SMALL

KILLS, TRIALS = 20, 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.full,
    pytest.mark.timeout(5400),
]


def driver(*words: str) -> subprocess.Popen[bytes]:
    with open("output.log", "ab") as output:
        return subprocess.Popen(
            python("search", *words), env=environment(), stdout=output, stderr=output, start_new_session=True
        )


def ended(home: Home) -> int:
    """How many trials have ended, as far as their folders say."""
    return sum(not (trial / "owner").exists() for trial in home.checkpoints.glob("[0-9]*"))


def test_driver_kills_lose_nothing_of_real_trials(folder: Path) -> None:
    chance, ever = random.Random(0), dict[tuple[int, int], float]()
    Path("small.yaml").write_text(SMALL)
    home = Home.of("small")
    settings = [f"search.trials={TRIALS}", "search.pruner=none", "space.solver=gradient"]
    words = ["launch", "small.yaml", *(f"--set={each}" for each in settings)]
    kills: list[int] = []
    while len(kills) < KILLS:
        running = driver(*words)
        share = (TRIALS - ended(home)) // (KILLS - len(kills) + 1)  # so that some are left for the last
        until = ended(home) + chance.randint(1, share)
        while running.poll() is None and not (home.spec.exists() and ended(home) >= until):
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 1))
        assert running.poll() is None, Path("output.log").read_text()[-3000:]
        running.kill()
        running.wait()
        kills.append(running.pid)
        now = seen(home)
        assert all(now.get(key) == value for key, value in ever.items()), "what was seen has changed"
        ever, words = now, ["resume", "small"]
        print(f"kill {len(kills)}: {ended(home)} trials have ended, {len(ever)} points", file=sys.stderr)
    last = driver(*words)
    assert last.wait() == 0, Path("output.log").read_text()[-3000:]
    spec = read_spec(home.spec)
    assert losses(spec, home, ever).all() == []
    time.sleep(15)
    left = [each.info["cmdline"] for each in psutil.process_iter(["cmdline"]) if _is_of(each, kills)]
    assert left == []
    print(f"{TRIALS} trials, {len(kills)} kills, {len(seen(home))} points: none lost, none doubled")


def _is_of(process: psutil.Process, drivers: list[int]) -> bool:
    """Whether a process belongs to the Ray of one of the drivers, whose session is named for it."""
    words = " ".join(process.info["cmdline"] or ())
    return any(f"_{pid}/" in words for pid in drivers)
