"""Data sets at an address: fetched once per node into its cache, then folders and manifests like others.

A node lists what is there each time, and fetches what it lacks into a folder that is named by the listing:
names, sizes and times. So a source that has changed is another folder, and a trial on any node sees what
is there now. What has been fetched is checked by its size; deleting any of it at any time is safe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from trainables.errors import DataError
from trainables.files.cache import FETCHED
from trainables.files.locked import locked, unwritable
from trainables.files.remote import Entry, Remote, RemoteError
from trainables.files.rows import touch
from trainables.image.folders import folder
from trainables.image.manifests import manifest, paths_in
from trainables.image.sources import Listing, Source, identity
from trainables.image.tables import SUFFIXES

__all__ = ["fetched"]

_AT_ONCE = 16  # a small file costs a round trip, whatever its size

Progress = Callable[[str, int, int], None]


def fetched(uri: str, cache_dir: Path, progress: Progress | None = None) -> Source:
    """The source at an address: a folder as `folders` describes it, or a manifest as `manifests` does.

    Raises:
        DataError: if it cannot be read, a name would lead out of the folder, or it is no source.
    """
    table = Path(urlsplit(uri).path).name
    is_table = table.lower().endswith(SUFFIXES)
    try:
        remote = Remote(_parent(uri) if is_table else uri)
        entries = remote.entries()
    except RemoteError as error:
        raise DataError(f"data.source: {error}") from error
    if is_table:
        entries = _named(remote, entries, table, cache_dir)
    if not entries:
        raise DataError(f"data.source {uri} holds no files; check the address")
    copy = _Copy(remote, entries, cache_dir, progress or (lambda stage, done, total: None))
    copy.complete()
    source = manifest(copy.folder / table) if is_table else folder(copy.folder)

    def listing() -> Listing:
        copy.complete()  # the cache may have let go of it since
        return source.listing()

    return replace(source, listing=listing)


def _parent(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(path=parts.path.rpartition("/")[0]).geturl()


def _named(remote: Remote, entries: Sequence[Entry], table: str, cache_dir: Path) -> list[Entry]:
    """A manifest and the files beside it that it names."""
    own = [entry for entry in entries if entry.name == table]
    if not own:
        raise DataError(f"data.source: there is no {table} at {remote.uri}; check the address")
    copy = _Copy(remote, own, cache_dir, lambda stage, done, total: None)
    copy.complete()
    names = paths_in(copy.folder / table)
    return own + [entry for entry in entries if entry.name in names]


class _Copy:
    """The files of one listing on this node's disk."""

    def __init__(self, remote: Remote, entries: Sequence[Entry], cache_dir: Path, progress: Progress) -> None:
        told = (f"{entry.name}\0{entry.size}\0{entry.mtime_ns}" for entry in entries)
        self.folder = cache_dir / FETCHED / identity(f"fetched {remote.uri}", told)
        self._remote, self._entries, self._progress = remote, entries, progress

    def complete(self) -> None:
        """Fetches what is not there; whoever else wants the same waits.

        Raises:
            DataError: if it cannot be read, has changed meanwhile, or the cache cannot be written.
        """
        try:
            with locked(self.folder, self._wait):
                self._fetch([entry for entry in self._entries if not self._has(entry)])
            touch(self.folder)
        except RemoteError as error:
            raise DataError(f"data.source: {error}") from error
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _wait(self) -> None:
        self._progress("waiting for another process that fetches the same files", 0, 1)

    def _has(self, entry: Entry) -> bool:
        try:
            return (self.folder / entry.name).stat().st_size == entry.size
        except OSError:
            return False

    def _fetch(self, lacking: Sequence[Entry]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
            try:
                for place, _ in enumerate(pool.map(self._fetch_one, lacking), 1):
                    self._progress("fetching files", place, len(lacking))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _fetch_one(self, entry: Entry) -> None:
        path = self.folder / entry.name
        self._remote.fetch(entry.name, path)
        if path.stat().st_size != entry.size:
            path.unlink()
            raise DataError(f"{entry.name} at {self._remote.uri} has changed meanwhile; load the data again")
        # So that images that the cache let go of are, when they are back, the same as before.
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
