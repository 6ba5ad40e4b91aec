"""The errors a user can meet, and how each is said.

    TransferSearchError          exit 1: the search or a part under it failed
    ├── BadInput                 exit 2: what was asked for cannot be done; nothing was started
    │   ├── SpecError            a spec or an override, with every problem found
    │   ├── UnknownSearch        no search of that name
    │   ├── SearchBusy           another driver holds the search
    │   └── Refused              a server wants a token or a password that it was not given
    ├── AllFailedAlike           the first trials all failed, of one cause
    ├── CheckpointsError         what trials keep at an address cannot be read or written
    ├── ExportMismatch           an exported model does not reproduce the recorded metric
    ├── RayDidNotStart           Ray could not be started on this machine
    └── TrackingError            MLflow cannot be reached or refused
        └── ExperimentDeleted    somebody deleted the experiment there; it can be restored

Each says what was given, where, what is allowed and what to do. Errors of other libraries are
translated where they are met, with the original as cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "AllFailedAlike",
    "BadInput",
    "CheckpointsError",
    "ExperimentDeleted",
    "ExportMismatch",
    "Problem",
    "RayDidNotStart",
    "Refused",
    "SearchBusy",
    "SpecError",
    "TrackingError",
    "TransferSearchError",
    "UnknownSearch",
]


class TransferSearchError(Exception):
    """Anything that ends a command in a way that its user can understand."""

    exit_code = 1


class BadInput(TransferSearchError):
    """The command cannot do what was asked; nothing was started or changed."""

    exit_code = 2


class UnknownSearch(BadInput):
    """No search has that name in this home."""


class SearchBusy(BadInput):
    """Another driver holds the search."""


class Refused(BadInput):
    """A server wants a token or a password, and was given none or a wrong one."""


class AllFailedAlike(TransferSearchError):
    """The first trials of a search all failed of one cause, and the rest would too."""


class CheckpointsError(TransferSearchError):
    """What trials keep at the spec's address cannot be read or written."""


class ExportMismatch(TransferSearchError):
    """An exported model does not reproduce the metric recorded for its trial."""


class RayDidNotStart(TransferSearchError):
    """Ray could not be started on this machine, as where it is too busy."""


class TrackingError(TransferSearchError):
    """MLflow cannot be reached, or refused what was sent."""


class ExperimentDeleted(TrackingError):
    """MLflow's experiment was deleted, and can be restored; nothing can be written to it until then."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a spec.

    Attributes:
        place: dotted path of the field, with its line where it is known.
        given: the value as the user wrote it; None where something is missing.
        message: what is allowed, and how to mend it.
    """

    place: str
    given: str | None
    message: str

    def __str__(self) -> str:
        given = "" if self.given is None else f" is {self.given}"
        return f"{self.place}{given}: {self.message}"


class SpecError(BadInput):
    """A spec that cannot run; carries all its problems."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = f"{source} has {count} problem{'s' if count > 1 else ''}:"
        super().__init__("\n".join([title, *(f"  - {problem}" for problem in self.problems)]))
