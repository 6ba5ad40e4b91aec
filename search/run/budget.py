"""What a search may still spend: wall time and device-hours, less what finalists and refit are to take."""

from __future__ import annotations

import time
from collections.abc import Callable

from search.spec.search_spec import SearchSpec
from search.study.finalists import finalists_seconds
from search.study.refit import refit_seconds
from search.study.search_study import SearchStudy

__all__ = ["Budget", "devices_of_a_trial"]


def devices_of_a_trial(spec: SearchSpec) -> float:
    """What a trial takes of what `device_hours` counts: GPUs, or CPUs where it takes no GPU."""
    return spec.resources.gpu or spec.resources.cpu


_START_SECONDS = 8.0
"""What a refit takes beside its epochs: a process that starts, images that were never seen, the test."""
_START_SHARE = 4
"""One of so many seconds is kept for that at most."""


class Budget:
    """The time of one study's trials, by a clock that nobody sets; written down twice a minute.

    Args:
        study: that is worked on.
        seconds: of wall time from now; None: any.
        hours: that trials may hold devices from now; None: any.
        at_once: how many trials run at a time, by which the finalists' time is judged; 0: keep none for
            them nor for the refit.
        also: what else is to be done when it is written down.
    """

    _WRITE_SECONDS = 30.0
    _LOOK_SECONDS = 2.0

    def __init__(
        self,
        study: SearchStudy,
        seconds: float | None = None,
        hours: float | None = None,
        *,
        at_once: int = 0,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        self._study = study
        self._at_once = at_once
        self._also = also
        self._running = 0
        self._counted = self._written = self._looked = time.monotonic()
        self._device_seconds = self._device_seconds_written = 0.0
        self._most_device_seconds = None if hours is None else hours * 3600
        self._finalists = self._refit = 0.0  # seconds that they take, one after the other
        self._start = 0.0 if seconds is None else min(_START_SECONDS, seconds / _START_SHARE)
        self.until = None if seconds is None else self._counted + seconds
        """When the wall time ends, on the monotonic clock; None: never."""

    def goes_on(self, running: int) -> bool:
        """Whether there is something left to spend; `running` trials run from now."""
        now = time.monotonic()
        self._count(now, running)
        if now - self._written > self._WRITE_SECONDS:
            self.write()
            self._also()
        return not self._is_over(now)

    def write(self) -> None:
        """Writes down what was spent."""
        now = time.monotonic()
        self._count(now, self._running)
        self._study.seconds_spent += now - self._written
        self._study.device_seconds += self._device_seconds - self._device_seconds_written
        self._written, self._device_seconds_written = now, self._device_seconds

    @property
    def is_over(self) -> bool:
        """Whether wall time or device-hours are used up, but for what is kept."""
        return self._is_over(time.monotonic())

    def _count(self, now: float, running: int) -> None:
        self._device_seconds += self._running * devices_of_a_trial(self._study.spec) * (now - self._counted)
        self._counted, self._running = now, running

    def _is_over(self, now: float) -> bool:
        if self.until is None and self._most_device_seconds is None:
            return False
        if self._at_once and now - self._looked > self._LOOK_SECONDS:
            self._finalists = finalists_seconds(self._study)
            self._refit, self._looked = refit_seconds(self._study, self._at_once), now
        kept = self._finalists / max(1, self._at_once) + self._refit + (self._start if self._refit else 0.0)
        if self.until is not None and now + kept >= self.until:
            return True
        if self._most_device_seconds is None:
            return False
        kept = (self._finalists + self._refit) * devices_of_a_trial(self._study.spec)
        return self._device_seconds + kept >= self._most_device_seconds
