"""Signals that end a driver: what it has begun is undone, or its search ends in order and can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

__all__ = ["held", "interruptible", "stop_signals"]

_ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What a system ends programs with: one that was asked to, or whose terminal is gone."""


@contextmanager
def stop_signals(console: Console) -> Iterator[threading.Event]:
    """An event that signals set: the search then ends in order and can be resumed."""
    stopped = threading.Event()

    def stop(signum: int, frame: Any) -> None:
        if stopped.is_set() and signum != signal.SIGHUP:  # a terminal that is closed may send several
            raise KeyboardInterrupt
        stopped.set()
        console.print("stopping; what runs can be resumed (once more to quit at once)", style="yellow")

    with _handled(stop, signal.SIGINT, *_ENDING):
        yield stopped


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets the signals that would end this process at once undo what it has begun, as Ctrl-C does."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, *_ENDING):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Puts off what a signal would raise until the block has ended; a second one raises it at once.

    For a block that starts processes from Python: an exception among what runs at a fork is lost, and with it
    the release of locks, so that this process or the new one would wait for ever.
    """
    asked = threading.Event()

    def note(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    with _handled(note, signal.SIGINT, *_ENDING):
        yield
    if asked.is_set():
        raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, Any], None], *signals: signal.Signals) -> Iterator[None]:
    """Handles signals in the block, but for a hang-up that is ignored, as under nohup.

    In another thread than the main one, where no signal arrives, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [each for each in signals if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, handler) for each in handled}
    try:
        yield
    finally:
        for each, known in before.items():
            signal.signal(each, known)
