"""A folder of the node's cache, for one process at a time."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trainables.errors import DataError

__all__ = ["locked", "unwritable"]


@contextmanager
def locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Makes the folder and keeps others out of it; calls `waiting` first where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        folder.mkdir(parents=True, exist_ok=True)  # whoever had it may have deleted it
        yield
    finally:
        lock.release()


def unwritable(folder: Path, error: OSError) -> DataError:
    """What to say of a folder that cannot be written."""
    fix = "set cache.dir to a folder that can be written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "make room there, or set cache.dir to a larger disk"
    return DataError(f"the cache {folder} cannot be written: {error.strerror or error}; {fix}")
