"""What a source of labelled images is, and what all kinds of sources share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Listing", "Source", "identity", "state"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Labelled images, not yet decoded.

    Attributes:
        classes: the names of the labels.
        labels: int64 [N].
        given: int64 [N], each one's position in `SPLITS`, or `UNSPLIT`.
        names: what to call each image to a person.
        paths: the files, or None where `pixels` holds the images.
        pixels: uint8 [N, 1 or 3, h, w].
        notes: what a person should know of what was found.
    """

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    given: npt.NDArray[np.int64]
    names: list[str]
    paths: list[str] | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Images that can be listed.

    Attributes:
        identity: hex; changes when a file changes size, time or mode, or comes or goes.
        listing: reads what there is, which may take a while.
        columns: what a table says of each image beside path, label and split: by column, by name.
    """

    identity: str
    listing: Callable[[], Listing]
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def identity(kind: str, parts: Iterable[str]) -> str:
    """The hex digest of a kind of source and what tells its state."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in parts:
        digest.update(b"\0" + os.fsencode(part))
    return digest.hexdigest()


def state(path: str | Path | os.DirEntry[str]) -> str:
    """Size, time of change and mode of a file, as text; `missing` where there is none."""
    try:
        found = path.stat() if isinstance(path, os.DirEntry) else os.stat(path)
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_mode}"
