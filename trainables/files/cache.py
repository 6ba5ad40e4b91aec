"""The node's cache: tensors that many trials want, computed once and kept under a name of their content.

A key names everything that could change the bytes, so an entry is never wrong, only absent. Entries
are written to a temporary file and renamed, carry a digest that is checked on every read, and are
evicted least recently used first. Deleting any part of the cache at any time is safe.

What a process wants again and again, epoch after epoch, it also keeps in memory, joined and within a
bound of its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trainables.files.idle import while_idle

__all__ = ["FETCHED", "Cache", "Usage", "default_root", "digest"]

log = logging.getLogger(__name__)

FETCHED = "fetched"
"""Where a cache has what came from addresses, a folder for each state of a source."""

_SUFFIX, _TEMPORARY = ".safetensors", ".tmp"
_LOCK_STRIPES = 3  # hexadecimal digits of the key that name its lock file
_POLL_SECONDS = 0.02
_SLACK = 50  # the share of the bound that is written between sweeps is one over this
_STALE_SECONDS = 3600.0


def default_root() -> Path:
    """`~/.cache/transfer-search`, or below XDG_CACHE_HOME where that is set."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "transfer-search"


def digest(parts: Mapping[str, Any]) -> str:
    """The key of whatever `parts` (JSON values) names, as 40 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


@dataclass
class Usage:
    """What one process did with the cache since it began.

    Attributes:
        resident: joined entries that were still in memory.
        hits: entries that were read from the disk.
        computed: entries that nobody had.
        compute_seconds, wait_seconds: how long it did nothing but compute entries, or wait for others' work.
        seconds_saved: what the entries that were there took whoever computed them.
    """

    resident: int = 0
    hits: int = 0
    computed: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    compute_seconds: float = 0.0
    seconds_saved: float = 0.0
    wait_seconds: float = 0.0


class Cache:
    """A bounded store of tensors on this node's disk, shared by every process that names its root.

    Args:
        root: folder of the cache; made when first written.
        max_bytes: bound on the sum of the entries' sizes; the least recently used go first. Each
            further process that writes at the same time may overrun it by a fiftieth.
        resident_bytes: bound on what this process keeps in memory of what `joined` gave.
    """

    def __init__(self, root: Path, max_bytes: int = 20 * 2**30, resident_bytes: int = 256 * 2**20) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.resident_bytes = resident_bytes
        self.usage = Usage()
        self._unswept = max_bytes  # so that the first write measures what is there
        self._resident: OrderedDict[str, tuple[torch.Tensor, float]] = OrderedDict()

    def read(self, key: str) -> torch.Tensor | None:
        """The entry of `key`, or None where there is none that is whole."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor("value")
                said = (file.metadata() or {}).get("digest", "")
        except (OSError, SafetensorError):
            # Absent, or torn by a crash of the machine: either way it is computed again.
            return None
        seconds = said.partition(" ")[0]
        if said != f"{seconds} {_content_digest(tensor, seconds)}":
            log.warning("cache entry %s does not match its digest; computing it again", path)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # evicted or deleted meanwhile; what was read is whole
            os.utime(path)
        self.usage.hits += 1
        self.usage.bytes_read += tensor.nbytes
        self.usage.seconds_saved += float(seconds)
        return tensor

    def write(self, key: str, tensor: torch.Tensor, seconds: float = 0.0) -> None:
        """Keeps `tensor`, which took `seconds` to compute, under `key`.

        A disk that is full or read-only costs the entry, not the trial.
        """
        tensor = tensor.contiguous()
        took = f"{seconds:.3f}"
        said = f"{took} {_content_digest(tensor, took)}"  # one entry: the order of several is not fixed
        data = save({"value": tensor}, metadata={"digest": said})
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=_TEMPORARY)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            log.warning("cannot write to the cache %s: %s; going on without", self.root, error)
            return
        self.usage.bytes_written += len(data)
        self._unswept += len(data)
        slack = self.max_bytes // _SLACK
        if self._unswept > slack:
            self.sweep(self.max_bytes - slack)

    def fetch(
        self,
        keys: Sequence[str],
        compute: Callable[[int], torch.Tensor],
        progress: Callable[[int, int], None] | None = None,
        *,
        lock_of: Callable[[int], str] | None = None,
        at_once: int = 1,
    ) -> list[torch.Tensor]:
        """The entries of all `keys`, computing what nobody has: `compute(i)` makes that of `keys[i]`.

        Processes that want the same keys share the work: each computes what no other is computing,
        starts at a place of its own, and waits only when nothing else is left. One lock is held at a
        time and none while waiting, so there is no deadlock. Processes that compute each other's entries
        on the way share the work too: `lock_of(i)` is the key under which what belongs together is locked.
        Up to `at_once` threads of this process share it, the further ones where cores would be idle.
        """
        values: dict[int, torch.Tensor] = {}
        first = os.getpid() % max(1, len(keys))
        pending = deque([*range(first, len(keys)), *range(first)])

        def work(take: Callable[[], int]) -> float:
            """One entry, if any is left to take; how long it was computed."""
            try:
                index = take()
            except IndexError:
                return 0.0
            lock = functools.partial(lock_of or keys.__getitem__, index)
            found = self._entry(keys[index], functools.partial(compute, index), lock)
            if found is None:
                left.append(index)
                return 0.0
            values[index] = found[0]
            return found[1]

        with ThreadPoolExecutor(max(1, at_once - 1)) as pool:
            while pending:
                left, before, over = list[int](), len(values), threading.Event()
                piece = functools.partial(work, pending.pop)
                helping = [
                    pool.submit(while_idle, over, piece, torch.get_num_threads()) for _ in range(at_once - 1)
                ]
                try:
                    while pending:
                        self.usage.compute_seconds += work(pending.popleft)
                        if progress:
                            progress(len(values), len(keys))
                finally:
                    over.set()
                began = time.perf_counter()
                for each in helping:
                    each.result()
                if progress and helping:
                    progress(len(values), len(keys))
                if len(values) == before:
                    time.sleep(_POLL_SECONDS)
                self.usage.wait_seconds += time.perf_counter() - began
                pending.extend(left)
        return [values[index] for index in range(len(keys))]

    def joined(
        self,
        keys: Sequence[str],
        compute: Callable[[int], torch.Tensor],
        progress: Callable[[int, int], None] | None = None,
        *,
        lock_of: Callable[[int], str] | None = None,
        at_once: int = 1,
    ) -> torch.Tensor:
        """What `fetch` gives, joined along the first axis; others are given the same: do not write to it.

        The most recently used stay in memory, up to `resident_bytes`.
        """
        name = digest({"joined": list(keys)})
        kept = self._resident.pop(name, None)
        if kept is None:
            before = self.usage.compute_seconds + self.usage.seconds_saved
            value = torch.cat(self.fetch(keys, compute, progress, lock_of=lock_of, at_once=at_once))
            kept = value, self.usage.compute_seconds + self.usage.seconds_saved - before
        else:
            self.usage.resident += 1
            self.usage.seconds_saved += kept[1]
        if kept[0].nbytes <= self.resident_bytes:
            self._resident[name] = kept
        while sum(value.nbytes for value, _ in self._resident.values()) > self.resident_bytes:
            self._resident.popitem(last=False)
        return kept[0]

    def _entry(
        self, key: str, compute: Callable[[], torch.Tensor], lock: Callable[[], str]
    ) -> tuple[torch.Tensor, float] | None:
        """The entry, and how long it was computed if need be; None while somebody else computes it."""
        value = self.read(key)
        if value is not None:
            return value, 0.0
        with self._lock(lock()) as held:
            if not held:
                return None
            value = self.read(key)  # somebody may have finished it just before
            if value is not None:
                return value, 0.0
            began = time.perf_counter()
            value = compute()
            seconds = time.perf_counter() - began
            self.usage.computed += 1
            self.write(key, value, seconds)
            return value, seconds

    def entries(self) -> list[tuple[Path, int, float]]:
        """Path, bytes and time of last use of every entry, least recently used first.

        An entry is a file of features, the folder of a source's decoded images, or that of its files,
        where they came from an address.
        """
        found = [*self._files(_SUFFIX), *self._folders(), *self._fetched()]
        return sorted(found, key=lambda entry: entry[2])

    def sweep(self, max_bytes: int | None = None) -> int:
        """Evicts the least recently used entries until at most `max_bytes` are left; returns bytes freed."""
        bound = self.max_bytes if max_bytes is None else max_bytes
        self._unswept = 0
        entries = self.entries()
        excess = sum(size for _, size, _ in entries) - bound
        freed = 0
        for path, size, _ in entries:
            if freed >= excess:
                break
            with suppress(OSError):  # another user's, on a disk that is shared
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                freed += size
        for leftover, _, modified in self._files(_TEMPORARY):
            # A writer that was killed leaves its temporary file; one that lives renames it in seconds.
            if time.time() - modified > _STALE_SECONDS:
                with suppress(OSError):
                    leftover.unlink()
        return freed

    def _folders(self) -> Iterator[tuple[Path, int, float]]:
        """Path, bytes and time of last use of every source's decoded images."""
        with suppress(OSError):
            for folder in (self.root / "data").iterdir():
                with suppress(OSError):
                    files = [path.stat() for path in folder.iterdir()]
                    if files:
                        yield folder, sum(f.st_size for f in files), max(f.st_mtime for f in files)

    def _fetched(self) -> Iterator[tuple[Path, int, float]]:
        """Path, bytes and time of last use of every source that came from an address."""
        with suppress(OSError):
            for folder in (self.root / FETCHED).iterdir():
                with suppress(OSError):
                    if folder.is_dir():
                        files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
                        yield folder, sum(files), folder.stat().st_mtime

    def _files(self, suffix: str) -> Iterator[tuple[Path, int, float]]:
        """Path, bytes and time of modification of every file with that suffix that stays long enough."""
        for folder, _, names in os.walk(self.root / "objects"):  # passes over what is deleted meanwhile
            for path in (Path(folder, name) for name in names if name.endswith(suffix)):
                try:
                    status = path.stat()
                except OSError:
                    continue
                yield path, status.st_size, status.st_mtime

    def _path(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / (key + _SUFFIX)

    @contextmanager
    def _lock(self, key: str) -> Iterator[bool]:
        """Holds the key's lock, or yields False at once where another process has it.

        The lock is the kernel's, on a file: it goes when its process goes, however that ends.
        """
        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{key[:_LOCK_STRIPES]}.lock")
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError:
            yield True  # no lock to be had on a read-only disk: computing twice is the lesser evil
            return
        try:
            yield True
        finally:
            lock.release()


def _content_digest(tensor: torch.Tensor, seconds: str) -> str:
    content = hashlib.blake2b(f"{seconds} {tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=20)
    content.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return content.hexdigest()
