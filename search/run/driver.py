"""What the process that drives a search has about it: a stopwatch, signals that stop it, a log."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from search.home import Home
from search.masking import MaskingFilter
from search.study.search_study import SearchStudy

__all__ = ["Stopwatch", "driver_log", "stop_signals"]


class Stopwatch:
    """Writes down, twice a minute, how long a study was worked on: by a clock that nobody sets."""

    _SECONDS = 30.0

    def __init__(self, study: SearchStudy) -> None:
        self._study = study
        self._written = time.monotonic()

    def goes_on(self) -> bool:
        """True, always; writes where it is time to."""
        if time.monotonic() - self._written > self._SECONDS:
            self.write()
        return True

    def write(self) -> None:
        now = time.monotonic()
        self._study.seconds_spent += now - self._written
        self._written = now


@contextmanager
def stop_signals(console: Console) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set: the search then ends in order and can be resumed."""
    stopped = threading.Event()

    def stop(signum: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        console.print("stopping; what runs can be resumed (once more to quit at once)", style="yellow")

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def driver_log(home: Home) -> Iterator[None]:
    """Sends log records to the home's `driver.log` while the block runs."""
    handler = logging.FileHandler(home.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {home.name} %(name)s: %(message)s"))
    handler.addFilter(MaskingFilter())
    root = logging.getLogger()
    root.addHandler(handler)
    for name in ("search", "trainables"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
