"""How an attempt at a trial fails."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["Failure", "FailureKind"]


class FailureKind(Enum):
    """What follows from a failure depends on this."""

    NODE_LOST = auto()
    """The trial's process was lost with its node, or cannot be reached any more."""
    OUT_OF_GPU_MEMORY = auto()
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
