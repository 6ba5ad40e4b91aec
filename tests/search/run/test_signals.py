"""What ends a driver: a launch that has not begun leaves nothing, a search ends in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from search.home import Home
from search.processes import environment, python
from search.run.signals import held, interruptible, stop_signals
from tests.search.specs import SMALL

ENDING = (signal.SIGTERM, signal.SIGHUP)


def test_a_launch_that_is_ended_in_rays_start_leaves_no_home(folder: Path) -> None:
    (folder / "small.yaml").write_text(SMALL)
    home = Home.of("small")
    with (folder / "said.txt").open("w") as said:
        driver = subprocess.Popen(
            python("search", "launch", "small.yaml"), env=environment(), stdout=said, stderr=said
        )
        until = time.monotonic() + 120
        while home.driver() is None:
            assert driver.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(120) == 130, (folder / "said.txt").read_text()
    assert (folder / "said.txt").read_text().splitlines()[-1] == "interrupted"
    assert not home.root.exists()


INTERRUPTED_START = """
import os, signal, threading, time, psutil
from search.run.ray_session import local_ray
from search.run.signals import interruptible

def end_it():
    while not psutil.Process().children():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

with interruptible():
    ours = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=end_it, daemon=True).start()
    try:
        with local_ray(cpus=1):
            print("started")
    except KeyboardInterrupt:
        print("interrupted", signal.getsignal(signal.SIGTERM) is ours)
"""


@pytest.mark.slow
def test_a_signal_waits_until_ray_has_started(folder: Path) -> None:
    code = [sys.executable, "-c", INTERRUPTED_START]
    ended = subprocess.run(code, env=environment(), capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.returncode) == ("interrupted True\n", 0), ended.stderr
    assert "ignored" not in ended.stderr


def test_what_is_held_is_raised_at_the_end_and_a_second_one_at_once() -> None:
    reached = []

    def signalled(*signals: signal.Signals) -> None:
        with held():
            for place, how in enumerate(signals):
                os.kill(os.getpid(), how)
                reached.append(place)

    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGTERM)
    assert reached == [0]
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGTERM, signal.SIGINT)
    assert reached == [0, 0]


@pytest.mark.parametrize("how", ENDING)
def test_what_would_end_a_process_interrupts_it_before_a_search_begins(how: signal.Signals) -> None:
    before = signal.getsignal(how)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), how)
    assert signal.getsignal(how) is before


@pytest.mark.parametrize("how", [signal.SIGINT, *ENDING])
def test_a_search_is_stopped_in_order_and_quits_when_told_twice(how: signal.Signals) -> None:
    with stop_signals(Console(quiet=True)) as stopped:
        os.kill(os.getpid(), how)
        assert stopped.is_set()
        if how == signal.SIGHUP:  # of one terminal that is closed several may come
            os.kill(os.getpid(), how)
        else:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), how)


def test_under_nohup_a_closed_terminal_is_no_matter() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible(), stop_signals(Console(quiet=True)) as stopped:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stopped.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
