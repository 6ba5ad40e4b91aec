"""Tables of sub-policies, as a policy `sampled` has them: rows of (operation, probability, bin)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["check_sub_policies"]


def check_sub_policies(
    rows: Sequence[Sequence[tuple[str, float, int]]], operations: Collection[str], bins: int
) -> None:
    """Sees that there are rows, and that each names operations, chances and bins that there are.

    Raises:
        ValueError: with everything that is wrong.
    """
    problems = [] if rows else ["there is none, but policy `sampled` needs at least one"]
    for place, row in enumerate(rows):
        if not row:
            problems.append(f"[{place}] is empty, but must have at least one operation")
        for name, probability, level in row:
            if name not in operations:
                problems.append(
                    f"[{place}] has operation {name!r}, but must have one of " + ", ".join(operations)
                )
            if not 0 <= probability <= 1:
                problems.append(f"[{place}] has probability {probability}, but must be in 0..1")
            if level not in range(bins):
                problems.append(f"[{place}] has bin {level}, but must be in 0..{bins - 1}")
    if problems:
        raise ValueError("sub_policies: " + "; ".join(problems))
