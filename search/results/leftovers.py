"""What no search needs any more: left by processes that were killed, or by trials that have ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from search.home import Home, searches_root
from search.search import Search
from trainables.record import OWNER_FILE, PROGRESS_FILE, STATE_FILE

__all__ = ["Leftover", "leftovers", "remove"]


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A file or a folder that can go.

    Attributes:
        path: where it is.
        why: nobody needs it.
        size: in bytes, of all that is in it.
    """

    path: Path
    why: str
    size: int


def leftovers(searches: Path | None = None) -> Iterator[Leftover]:
    """What can go from the folder of searches; nothing of a search that is being run.

    Raises:
        TransferSearchError: if a search's study cannot be opened.
    """
    for root in sorted(path for path in searches_root(searches).glob("*") if path.is_dir()):
        home = Home(root)
        if home.driver() is not None:
            continue
        if not home.spec.exists():
            if _was_being_launched(home):
                yield _leftover(root, "a launch that was killed before it began")
            continue
        yield from _of_search(home)


def _was_being_launched(home: Home) -> bool:
    """Whether a folder holds what a launch makes, and nothing else."""
    own = {"checkpoints", "outbox", "ray", "driver.lock", "driver.json", "driver.log", "output.log"}
    names = {path.name for path in home.root.iterdir() if not path.name.startswith("study.db")}
    is_launch = {"checkpoints", "outbox"} <= names <= own
    return is_launch and not any(home.checkpoints.iterdir()) and not any(home.outbox.glob("*.jsonl"))


def _of_search(home: Home) -> Iterator[Leftover]:
    for place, study in Search.open(home).studies:
        if place.ray.is_dir():
            yield _leftover(place.ray, "Ray's, of which nothing is read")
        for record in study.records():
            folder = place.trial(record.number)
            needed = record.ending is None
            for name in () if needed else (STATE_FILE, OWNER_FILE, PROGRESS_FILE):
                if (folder / name).exists():
                    yield _leftover(folder / name, f"{study.role} {record.number} has ended")
            for path in sorted(folder.rglob("*.tmp")):
                yield _leftover(path, "half a file of a process that was killed")


def remove(found: Leftover) -> None:
    """Removes what is left over."""
    if found.path.is_dir():
        shutil.rmtree(found.path)
    else:
        found.path.unlink(missing_ok=True)


def _leftover(path: Path, why: str) -> Leftover:
    files = path.rglob("*") if path.is_dir() else [path]
    return Leftover(path=path, why=why, size=sum(each.stat().st_size for each in files if each.is_file()))
