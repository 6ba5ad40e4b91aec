"""What is left out unless the environment asks for it: with FAULTS=full what takes minutes, too.

Lives are forks of a warm process, and a process with threads, such as one that has run Ray, cannot be forked
safely. So the tests of these modules are run by `test_forks.py`, in a process of their own (FAULTS=forks).
"""

from __future__ import annotations

import os

import pytest

FORKS = ("test_each_write.py", "test_protections.py", "test_seeded.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = os.environ.get("FAULTS")
    left_out = [
        item
        for item in items
        if (asked != "full" and item.get_closest_marker("full"))
        or (asked not in ("forks", "full") and item.path.name in FORKS and item.path.parent.name == "faults")
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
