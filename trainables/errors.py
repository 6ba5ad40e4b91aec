"""What every modality can fail with.

ValueError
├── DataError        data that cannot be used
├── BackboneError    a backbone or its weights that cannot be had
└── UnknownName      a name that nothing has
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "BackboneError",
    "DataError",
    "UnknownName",
    "did_you_mean",
    "enumeration",
    "first_lines",
    "printable",
]

_SHOWN = 10


class DataError(ValueError):
    """Data that cannot be used; the message says what, where, what is allowed, and what to do.

    Attributes:
        problems: one message for each thing that is wrong.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(self.problems) == 1:
            text = self.problems[0]
        else:
            lines = "".join(f"\n- {problem}" for problem in self.problems[:_SHOWN])
            if len(self.problems) > _SHOWN:
                lines += f"\n- and {len(self.problems) - _SHOWN:,} more"
            text = f"{len(self.problems):,} problems with the data:{lines}"
        super().__init__(text)


class BackboneError(ValueError):
    """A backbone or its weights cannot be had as asked; the message says what is allowed."""


class UnknownName(ValueError):
    """A name that nothing has; the message lists those that there are."""

    def __init__(self, what: str, name: object, known: Iterable[str]) -> None:
        names = list(known)
        hint = did_you_mean(str(name), names)
        super().__init__(f"{what} is {name!r}, but must be one of {', '.join(names)}{hint}")


def did_you_mean(given: str, known: Iterable[str], most: int = 1) -> str:
    """A question for the name that was probably meant, as the end of a message; empty if none is close.

    Case does not matter, nor whether words are joined by `-` or `_`. Names `most` of the close ones.
    """
    plain = {_plain(name): name for name in known}
    close = difflib.get_close_matches(_plain(given), plain, n=most)
    return f"; did you mean {', '.join(plain[each] for each in close)}?" if close else ""


def enumeration(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more


def first_lines(every: Iterable[str]) -> Iterator[str]:
    """The first lines, indented, and how many more there are."""
    lines = list(every)
    yield from (f"  {line}" for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield f"  and {len(lines) - _SHOWN:,} more"


def printable(text: str) -> str:
    """The text in one line, with whatever cannot be written as UTF-8 replaced."""
    one_line = re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], text)
    return one_line.encode("utf-8", "replace").decode()


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
