"""Work for cores that would be idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil

__all__ = ["while_idle"]

_LOOK_SECONDS = 0.1
_NEARLY = 0.8  # of a core is as good as one


def while_idle(over: threading.Event, work: Callable[[], object], cores: int = 1) -> None:
    """Does one piece of work after another, until it is over, each when so many cores were just idle.

    Whatever else this machine does then goes first; where it begins while a piece is being done, the two
    share the cores for as long as that takes.
    """
    while not over.is_set():
        began, idle = time.monotonic(), _idle_seconds()
        if over.wait(_LOOK_SECONDS):
            return
        if _idle_seconds() - idle >= _NEARLY * cores * (time.monotonic() - began):
            work()


def _idle_seconds() -> float:
    """How long the cores have been idle since the machine started, all of them together."""
    times = psutil.cpu_times()
    idle: float = times.idle + getattr(times, "iowait", 0.0)
    return idle
