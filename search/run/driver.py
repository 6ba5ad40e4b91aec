"""What the process that drives a search has about it: a stopwatch and a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from search.home import Home
from search.masking import MaskingFilter
from search.study.search_study import SearchStudy

__all__ = ["Stopwatch", "driver_log"]


class Stopwatch:
    """Writes down, twice a minute, how long a study was worked on: by a clock that nobody sets.

    Args:
        study: that is worked on.
        also: what else is to be done then.
    """

    _SECONDS = 30.0

    def __init__(self, study: SearchStudy, also: Callable[[], None] = lambda: None) -> None:
        self._study = study
        self._also = also
        self._written = time.monotonic()

    def goes_on(self) -> bool:
        """True, always; writes where it is time to."""
        if time.monotonic() - self._written > self._SECONDS:
            self.write()
            self._also()
        return True

    def write(self) -> None:
        now = time.monotonic()
        self._study.seconds_spent += now - self._written
        self._written = now


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
