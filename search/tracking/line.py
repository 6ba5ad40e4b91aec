"""The process that sends to MLflow, and the way to it."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

from search.home import Home
from search.processes import environment, python
from search.tracking.events import Event

__all__ = ["Line", "Sender", "ready_sender", "started"]

Sender: TypeAlias = subprocess.Popen[str]


def started(home: Home) -> Sender:
    with home.log.open("ab") as errors:
        return subprocess.Popen(
            python("search.tracking.sender"),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the driver, who ends the sender in order
        )


@contextmanager
def ready_sender(home: Home) -> Iterator[Sender]:
    """A sender that imports MLflow while the caller does other work; of no use after the block."""
    with started(home) as process:
        try:
            yield process
        finally:
            process.kill()  # it has ended already where a tracker used it


class Line:
    """The way to one sender; whoever says something does not wait for it to listen."""

    def __init__(self, process: Sender) -> None:
        self.process = process
        self.is_broken = False
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._pass_on, name="to the sender", daemon=True).start()

    def say(self, event: Event) -> None:
        self._queue.put(event.line())

    def hang_up(self) -> None:
        """Ends the sender's input after what was said."""
        self._queue.put(None)

    def _pass_on(self) -> None:
        assert self.process.stdin is not None
        try:
            while (line := self._queue.get()) is not None:
                self.process.stdin.write(line)
                self.process.stdin.flush()
        except (OSError, ValueError):
            self.is_broken = True
        with suppress(OSError):  # it has died, with a line unsent
            self.process.stdin.close()
