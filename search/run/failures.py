"""How an attempt at a trial fails."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["Alike", "Failure", "FailureKind"]


class FailureKind(Enum):
    """What follows from a failure depends on this."""

    NODE_LOST = auto()
    """The trial's process was lost with its node, or cannot be reached any more."""
    OUT_OF_GPU_MEMORY = auto()
    NO_ROOM = auto()
    """A disk was full."""
    OTHER = auto()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failed attempt.

    Attributes:
        kind: what it was.
        message: the exception in one line.
        traceback: all that is known of it, and of the attempts before.
    """

    kind: FailureKind
    message: str
    traceback: str


class Alike:
    """Whether the first trials of a search all failed of one cause, before any of them ran an epoch.

    Attributes:
        cause: theirs; None as long as they may differ.
    """

    TRIALS = 3

    def __init__(self) -> None:
        self.cause: str | None = None
        self._seen: list[str] = []

    def failed(self, message: str) -> None:
        """A trial has failed for good."""
        self._seen.append(re.sub(r"\d+", "0", message))  # numbers differ: of trials, processes, bytes
        if len(self._seen) == self.TRIALS and len(set(self._seen)) == 1:
            self.cause = message
