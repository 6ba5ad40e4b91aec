"""How long a trial may take: its spec's `search.trial_time`, and what its kin took for the same epoch.

Only what nobody could take for slow is called hanging: ten minutes at least, and twenty times the longest
that trials of the same backbone, image size and strategy took for the epoch. Where fewer than two of them
have run it, only the spec's own bound holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from search.console import duration
from search.study.trials import Assignment

__all__ = ["Deadlines", "Overdue"]

_LEAST_SECONDS = 600.0
_TIMES = 20
_KIN = 2
_FIRST = 0  # in place of an epoch's number: an attempt's first epoch, whichever that is
_ASLEEP_SECONDS = 30.0

Kin = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Overdue:
    """A trial that has no more time.

    Attributes:
        number: the trial's.
        reason: for people.
        hangs: whether its process hangs; else its own time is over, as the spec says.
    """

    number: int
    reason: str
    hangs: bool


@dataclass(kw_only=True)
class _Clock:
    """Of one attempt at a trial."""

    kin: Kin
    began: float | None = None
    epoch_began: float = 0.0
    epoch: int = 0
    spent: float = 0.0
    first: bool = True
    waits_since: float = 0.0


@dataclass
class Deadlines:
    """The time that trials take and may take.

    Args:
        trial_seconds: bound of a trial, over all its attempts; None: none.
        clock: seconds, of a clock that nobody sets.
    """

    trial_seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    _clocks: dict[int, _Clock] = field(default_factory=dict)
    _took: dict[tuple[Kin, int], list[float]] = field(default_factory=dict)
    _looked: float | None = None

    def handed_out(self, assignment: Assignment) -> None:
        """A trial will run once there is a process for it."""
        hparams = assignment.hparams.to_dict()
        kin = tuple(hparams.get(name) for name in ("backbone", "image_size", "strategy"))
        self._clocks[assignment.number] = _Clock(kin=kin, waits_since=self.clock())

    def failed(self, number: int) -> None:
        """An attempt at a trial has ended; its time stays spent."""
        clock = self._clocks.get(number)
        if clock is not None:
            now = self.clock()
            clock.spent += 0.0 if clock.began is None else now - clock.began
            clock.began, clock.first, clock.waits_since = None, True, now

    def ended(self, number: int) -> None:
        """A trial has ended, or is no longer handed out."""
        self._clocks.pop(number, None)

    def epoch_ended(self, number: int, epoch: int) -> None:
        """A trial has said something of an epoch."""
        clock, now = self._clocks.get(number), self.clock()
        if clock is None:
            return
        if clock.began is None:  # it came and ran since somebody looked
            clock.began = clock.epoch_began = max(clock.waits_since, self._looked or 0.0)
        kind = _FIRST if clock.first else epoch
        self._took.setdefault((clock.kin, kind), []).append(now - clock.epoch_began)
        clock.epoch, clock.epoch_began, clock.first = epoch, now, False

    def overdue(self, running: Iterable[int]) -> list[Overdue]:
        """Which of the trials that have a process have no more time."""
        now = self.clock()
        asleep = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        found = []
        for number in running:
            clock = self._clocks.get(number)
            if clock is None:
                continue
            if clock.began is None:
                clock.began = clock.epoch_began = now
            elif asleep > _ASLEEP_SECONDS:  # this process stood still, and with it what it should have heard
                clock.began += asleep
                clock.epoch_began += asleep
            elif overdue := self._judged(number, clock, now):
                found.append(overdue)
        return found

    def _judged(self, number: int, clock: _Clock, now: float) -> Overdue | None:
        assert clock.began is not None
        spent = clock.spent + now - clock.began
        if self.trial_seconds is not None and spent > self.trial_seconds:
            told = (
                f"its {duration(self.trial_seconds)} (search.trial_time) were over after epoch {clock.epoch}"
            )
            return Overdue(number=number, reason=told, hangs=False)
        longest = self._longest(clock)
        if longest is None:
            return None
        bound = max(_LEAST_SECONDS, _TIMES * longest)
        if now - clock.epoch_began <= bound:
            return None
        told = (
            f"epoch {clock.epoch + 1} took longer than {duration(bound)}, where others like it took "
            f"{duration(longest)} at most: its process hangs"
        )
        return Overdue(number=number, reason=told, hangs=True)

    def _longest(self, clock: _Clock) -> float | None:
        """The longest that kin took for what a trial is at; None where too few did it.

        The first epoch of an attempt that goes on takes what any first one takes, and what its own does.
        """
        kinds = ([_FIRST] if clock.first else []) + ([clock.epoch + 1] if clock.epoch else [])
        took = [self._took.get((clock.kin, kind), []) for kind in kinds]
        return None if any(len(each) < _KIN for each in took) else sum(map(max, took))
