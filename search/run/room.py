"""Room on the disks that a search writes to: a search waits for it where there is none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Room", "free_bytes", "sized"]

_LEAST_BYTES = 64 * 2**20
_PAUSE_SECONDS = 2.0
_QUIET_SECONDS = 600.0


def free_bytes(place: Path) -> int:
    """What the disk of a folder has free; of one that is not there yet, the disk that it would be on."""
    there = next(each for each in (place, *place.parents) if each.exists())
    return shutil.disk_usage(there).free


def sized(count: float) -> str:
    """A number of bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@dataclass(frozen=True)
class Room:
    """The disks that trials write to.

    Args:
        places: a folder on each; one that is not there yet is looked for above.
        tell: is told what is full, and that the search goes on.
        should_stop: whether nobody wants to wait any more.
        least: bytes below which a disk is full.
    """

    places: Sequence[Path]
    tell: Callable[[str], None]
    should_stop: Callable[[], bool]
    least: int = _LEAST_BYTES

    def was_waited_for(self) -> bool:
        """Waits until every disk has room; whether one had none."""
        if not (full := self._full()):
            return False
        told = -_QUIET_SECONDS
        while full and not self.should_stop():
            if time.monotonic() - told > _QUIET_SECONDS:
                told = time.monotonic()
                self.tell(
                    f"the disk of {full} is full: the search waits until there are "
                    f"{self.least / 2**20:.0f} MB (`transfer-search clean` removes what no search needs)"
                )
            time.sleep(_PAUSE_SECONDS)
            full = self._full()
        if not full:
            self.tell("there is room again; the search goes on")
        return True

    def _full(self) -> Path | None:
        return next((place for place in self.places if free_bytes(place) < self.least), None)
