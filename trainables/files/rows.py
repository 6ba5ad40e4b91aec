"""Rows of bytes in .npy files: written whole or not at all, checked when opened, then mapped."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.files.whole import write_json

__all__ = ["RowWriter", "digest_of", "kept_rows", "touch"]

_VERSION = 1
_LARGEST_OFFERED = 256  # images of one shape up to this side are kept as they are

Pixels = npt.NDArray[np.uint8]


class RowWriter:
    """Rows of bytes for one .npy file, written in any order and from any thread, then renamed.

    The rows go through `pwrite`: a full disk is then an error, and not a signal that ends the
    process as it is with a written memory map. The first row gives the shape.
    """

    def __init__(self, folder: Path, name: str, total: int) -> None:
        self._folder, self._name, self._total = folder, name, total
        self._of = f"{folder.name}/{name}"
        self._temporary = folder / f"{name}.{os.getpid()}-{threading.get_ident()}.tmp"
        self._file: Any = None
        self._start = 0
        self._guard = threading.Lock()
        self.shape: tuple[int, ...] | None = None
        self.is_whole = True

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, place: int, rows: Pixels) -> None:
        """Writes rows [n, ...] from the position `place` on."""
        with self._guard:
            if self._file is None:
                self._begin(rows.shape[1:])
        assert rows.shape[1:] == self.shape
        data = np.ascontiguousarray(rows).reshape(-1).data
        offset = self._start + place * rows[0].nbytes
        while len(data):  # a write near the end of the space may be partial
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written

    def offer(self, place: int, pixels: Pixels) -> None:
        """Writes one row if it has the shape of all others and is small; else gives the file up."""
        with self._guard:
            if self.is_whole and self.shape is None and max(pixels.shape) <= _LARGEST_OFFERED:
                self._begin(pixels.shape)
            self.is_whole &= pixels.shape == self.shape
            is_whole = self.is_whole
        if is_whole:
            self.write(place, pixels[None])

    def _begin(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self._file = self._temporary.open("w+b")
        header = {"descr": "|u1", "fortran_order": False, "shape": (self._total, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.flush()
        self._start = self._file.tell()
        self._file.truncate(self._start + self._total * int(np.prod(self.shape)))

    def commit(self) -> None:
        """Makes the rows what `kept_rows` finds."""
        assert self._file is not None
        assert self.shape is not None
        os.fsync(self._file.fileno())
        self._file.close()
        rows = np.load(self._temporary, mmap_mode="r", allow_pickle=False)
        record = _row_record(self._temporary, rows, self._of)
        (self._folder / f"{self._name}.json").unlink(missing_ok=True)
        os.replace(self._temporary, self._folder / f"{self._name}.npy")
        write_json(self._folder / f"{self._name}.json", record)


def _row_record(path: Path, rows: Pixels, of: str) -> dict[str, Any]:
    """What marks a file of rows as whole and ours: name, shape, size, a digest of some rows."""
    some = np.unique(np.linspace(0, len(rows) - 1, num=min(16, len(rows)), dtype=np.int64))
    return {
        "version": _VERSION,
        "of": of,
        "shape": list(rows.shape),
        "bytes": path.stat().st_size,
        "sample": digest_of(np.ascontiguousarray(rows[some]).tobytes()),
    }


def kept_rows(folder: Path, name: str, shape: tuple[int, ...]) -> Pixels | None:
    """The mapped rows, or None unless they are whole and of this shape."""
    path = folder / f"{name}.npy"
    try:
        record = json.loads((folder / f"{name}.json").read_bytes())
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        if (
            rows.shape != shape
            or rows.dtype != np.uint8
            or record != _row_record(path, rows, f"{folder.name}/{name}")
        ):
            return None
    except (OSError, ValueError, EOFError):
        return None
    touch(path)
    # A plain view: the subclass costs time on every access.
    plain: Pixels = rows.view(np.ndarray)
    return plain


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def touch(path: Path) -> None:
    """Marks a file as used now, so that whoever makes room can tell."""
    with suppress(OSError):  # a cache that cannot be written can still be read
        os.utime(path)
