"""What MLflow is told, event by event: as values here, as lines of JSON in the outbox and to the sender.

A line names its kind under `event`; the rest are the fields of the class. Lines that an earlier version has
left in an outbox are read too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from search.study.trials import Ending

__all__ = [
    "Close", "DamageFound", "Data", "End", "Epoch", "Epochs", "Event", "Failed", "Flush", "Moved", "Open",
    "Start", "Summary", "TrialEvent", "of_line",
]  # fmt: skip

_KINDS: dict[str, type[Event]] = {}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that MLflow, or the process that sends to it, is told."""

    kind: ClassVar[str] = ""

    def __init_subclass__(cls, kind: str = "") -> None:
        cls.kind = kind
        if kind:
            _KINDS[kind] = cls

    def again(self) -> Self:
        """The event as one that MLflow may have already."""
        return self

    def line(self) -> str:
        """The event as a line of JSON, with its end."""
        return json.dumps({"event": self.kind, **vars(self)}, default=lambda value: value.value) + "\n"

    @property
    def about(self) -> int | None:
        """The trial that it is of; None: the search."""
        return None


def of_line(line: str | bytes) -> Event:
    """The event that a line holds.

    Raises:
        ValueError: if it is none: torn, damaged, or of a kind that this version does not know.
    """
    told = json.loads(line)
    if not isinstance(told, dict) or told.get("event") not in _KINDS:
        raise ValueError("no event")
    kind = _KINDS[told["event"]]
    known = {each.name: told[each.name] for each in fields(kind) if each.name in told}
    try:
        return kind(**known)
    except TypeError as error:  # it lacks some
        raise ValueError(f"an event {kind.kind}: {error}") from error


# Of the search


@dataclass(frozen=True, kw_only=True)
class Open(Event, kind="open"):
    """The first: which search it is, and its run and experiment where they are known."""

    spec: str
    home: str
    search_id: str
    role: str
    parent: str | None = None
    experiment: str | None = None


@dataclass(frozen=True, kw_only=True)
class Data(Event, kind="data"):
    """What the search is trained on."""

    name: str
    digest: str
    source: Mapping[str, Any]
    profile: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Summary(Event, kind="summary"):
    """What is known of the whole search: tags, points (name, step, value), and texts by file name."""

    tags: Mapping[str, Any]
    points: list[tuple[str, int, float]]
    texts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Flush(Event, kind="flush"):
    """Asks for an answer of this name when all before it is sent."""

    answer: str


@dataclass(frozen=True, kw_only=True)
class Close(Event, kind="close"):
    """The search's end."""

    state: str


# Of one trial


@dataclass(frozen=True, kw_only=True)
class TrialEvent(Event):
    """Something of one trial; `replayed`: MLflow may have it already."""

    trial: int
    replayed: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.trial, int):
            raise ValueError(f"an event {self.kind} of no trial")

    def again(self) -> Self:
        return replace(self, replayed=True)

    @property
    def about(self) -> int | None:
        return self.trial


@dataclass(frozen=True, kw_only=True)
class Start(TrialEvent, kind="start"):
    """The trial begins at a time (milliseconds), after it was `begun` so often."""

    at: int
    begun: int
    params: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Epoch(TrialEvent, kind="epoch"):
    """The metrics of one epoch."""

    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Epochs(TrialEvent, kind="epochs"):
    """Several epochs with their metrics, in one request; the sender makes it."""

    epochs: tuple[tuple[int, Mapping[str, float]], ...]


@dataclass(frozen=True, kw_only=True)
class Failed(TrialEvent, kind="failed"):
    """An attempt failed."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Moved(TrialEvent, kind="move"):
    """The trial goes on elsewhere, so often by now."""

    moves: int


@dataclass(frozen=True, kw_only=True)
class DamageFound(TrialEvent, kind="damage"):
    """Something of the trial was found damaged."""

    what: str


@dataclass(frozen=True, kw_only=True)
class End(TrialEvent, kind="end"):
    """The trial ended at a time (milliseconds); `epochs` are what the sender had not sent before."""

    at: int
    ending: Ending
    best: Mapping[str, float] | None
    reason: str
    epochs: tuple[tuple[int, Mapping[str, float]], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ending", Ending(self.ending))
