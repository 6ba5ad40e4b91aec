"""What every modality's data can fail with."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["DataError"]

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
