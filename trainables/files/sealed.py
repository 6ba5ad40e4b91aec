"""Files that are there whole or not at all, and tell when they are no longer what was written.

A file is written under another name, synced, renamed over the old one, and the folder is synced: after a
power cut there is the old file or the new one. To sync costs some ten milliseconds, so what is soon written
anew can be synced `later`. A sealed file ends with the digest of what it holds; readers that know nothing of
it, such as torch's, do not mind it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from trainables.files.whole import replacing

__all__ = ["Damaged", "later", "seal", "sync", "unsealed", "write"]

_MARK = b"\nsha256 "
_SEAL_BYTES = len(_MARK) + 64 + 1
_CHUNK = 2**20
_unsynced: ContextVar[set[Path] | None] = ContextVar("_unsynced", default=None)


class Damaged(Exception):
    """A file is not what was written; the message says which and how it is known."""


def write(path: Path, data: bytes) -> None:
    """Writes a file whole, synced before it takes its name."""
    _placed(path, lambda file: file.write(data))


def seal(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Writes what `fill` writes to a file, and its digest behind it."""

    def sealed(file: IO[bytes]) -> None:
        fill(file)
        file.flush()
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        file.write(_MARK + digest.hexdigest().encode() + b"\n")

    _placed(path, sealed)


def unsealed(path: Path) -> IO[bytes]:
    """What a sealed file holds; of one that was written before files were sealed, all of it.

    Raises:
        Damaged: where the digest is another's.
    """
    data = path.read_bytes()
    mark, content = data[-_SEAL_BYTES:], data[:-_SEAL_BYTES]
    if not (mark.startswith(_MARK) and mark.endswith(b"\n")):
        return io.BytesIO(data)
    if hashlib.sha256(content).hexdigest().encode() != mark[len(_MARK) : -1]:
        raise Damaged(f"{path} is not what was written: its digest is another")
    return io.BytesIO(content)


@contextmanager
def later(unsynced: set[Path]) -> Iterator[None]:
    """Adds what is written in the block to `unsynced`, for `sync`, instead of syncing it."""
    token = _unsynced.set(unsynced)
    try:
        yield
    finally:
        _unsynced.reset(token)


def sync(unsynced: set[Path]) -> None:
    """Syncs files, where they are still there, and their folders; nothing is left to be synced."""
    for path in (*unsynced, *{path.parent for path in unsynced}):
        with suppress(FileNotFoundError):
            _sync(path)
    unsynced.clear()


def _placed(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    unsynced = _unsynced.get()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with temporary.open("w+b") as file:
            fill(file)
            file.flush()
            if unsynced is None:
                os.fsync(file.fileno())
    if unsynced is None:
        _sync(path.parent)
    else:
        unsynced.add(path)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
