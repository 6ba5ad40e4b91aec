"""A search's home: all its paths on one object, and the lock that lets one driver at a time work there."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from search.errors import BadInput, SearchBusy, UnknownSearch
from trainables.files.whole import replacing, write_json
from trainables.record import PROGRESS_FILE

__all__ = ["INSIDE", "NAME", "Home", "is_inside", "searches_root"]

INSIDE = "TRANSFER_SEARCH_INSIDE"
"""Set where a command runs on a cluster, for somebody outside."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""What a search may be called: it becomes a folder, an MLflow run and a Ray job."""

_HEARTBEAT_SECONDS = 5.0
_STALE_SECONDS = 60.0


def is_inside() -> bool:
    """Whether this process runs on a cluster, as a job of somebody outside."""
    return bool(os.environ.get(INSIDE))


def searches_root(given: Path | None = None) -> Path:
    """Where searches live: `given`, else TRANSFER_SEARCH_HOME, else `searches` in this folder.

    Raises:
        BadInput: on a cluster that does not say; the folder of a job is nobody's.
    """
    if is_inside() and not (given or os.environ.get("TRANSFER_SEARCH_HOME")):
        raise BadInput(
            "the cluster does not say where searches live; start Ray on its nodes with "
            "TRANSFER_SEARCH_HOME set to a folder on storage that all of them share"
        )
    return Path(given or os.environ.get("TRANSFER_SEARCH_HOME") or "searches").expanduser().resolve()


@dataclass(frozen=True)
class Home:
    """The folder of one search."""

    root: Path

    @classmethod
    def of(cls, name: str, searches: Path | None = None) -> Home:
        """The home of the search `name`, whether or not it exists.

        Raises:
            BadInput: if `name` could leave the folder of searches.
        """
        if not NAME.fullmatch(name):
            raise BadInput(
                f"the name {name!r} is not allowed: use letters, digits, dots, dashes and "
                "underscores, starting with a letter or digit, at most 63"
            )
        return cls(searches_root(searches) / name)

    @classmethod
    def existing(cls, name: str, searches: Path | None = None) -> Home:
        """The home of a search that was launched.

        Raises:
            UnknownSearch: if there is none.
        """
        home = cls.of(name, searches)
        if not home.spec.is_file():
            home.check_free()
            known = sorted(other.name for other in cls.all(searches))
            raise UnknownSearch(
                f"there is no search {name!r} in {home.root.parent}; "
                + (f"there are: {', '.join(known)}" if known else "launch one first")
            )
        return home

    @classmethod
    def all(cls, searches: Path | None = None) -> list[Home]:
        """Every search's home, by name; also of one that has trials but whose spec is gone."""
        found = {spec.parent for spec in searches_root(searches).glob("*/spec.yaml")}
        found |= {trial.parent.parent for trial in searches_root(searches).glob("*/checkpoints/00000")}
        return [cls(root) for root in sorted(found)]

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def spec(self) -> Path:
        return self.root / "spec.yaml"

    @property
    def study_url(self) -> str:
        return f"sqlite:///{self.root / 'study.db'}"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def ray(self) -> Path:
        return self.root / "ray"

    @property
    def outbox(self) -> Path:
        return self.root / "outbox"

    @property
    def finalists(self) -> Home:
        """The same kind of folder for the finalists' runs: their states, models and outbox."""
        return Home(self.root / "finalists")

    @property
    def refit(self) -> Home:
        """The same for the winner's refit."""
        return Home(self.root / "refit")

    @property
    def ensemble(self) -> Home:
        """The same for the ensemble of the best trials."""
        return Home(self.root / "ensemble")

    @property
    def log(self) -> Path:
        return self.root / "driver.log"

    def trial(self, number: int) -> Path:
        """Where the trial keeps its state and its model."""
        return self.checkpoints / f"{number:05d}"

    def doing(self, number: int) -> str:
        """What a trial says that it is at; nothing where that does not take long."""
        try:
            return (self.trial(number) / PROGRESS_FILE).read_text(encoding="utf-8")
        except OSError:
            return ""

    def make(self) -> None:
        """Makes the home's folders.

        Raises:
            BadInput: if they cannot be written.
        """
        try:
            for folder in (self.root, self.checkpoints, self.outbox):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise BadInput(
                f"cannot write the search's home {self.root}: {error.strerror}; give a folder that "
                "you may write with --home DIR or TRANSFER_SEARCH_HOME"
            ) from error

    def check_free(self) -> None:
        """Checks that no search has this home.

        Raises:
            SearchBusy: if a driver runs one here; says who and where.
            BadInput: if one was launched before, or left its trials here.
        """
        if self.driver():
            raise SearchBusy(self._busy(self._record() or {}))
        self._check_vacant()

    def _check_vacant(self) -> None:
        if self.spec.exists():
            raise BadInput(
                f"the search {self.name!r} was launched before, in {self.root}; go on with "
                f"`transfer-search resume {self.name}`, or give this one another name with --name"
            )
        if self._holds_trials():
            raise BadInput(
                f"{self.root} holds the trials of a search, but its spec.yaml is gone; put it back (the "
                "search's run in MLflow has it among its artifacts), or remove the folder"
            )

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Makes the home for a launch by this process alone; nothing of it stays unless that calls `keep`.

        Raises:
            SearchBusy: if another driver is alive; says who and where.
            BadInput: if the home cannot be written, or is a search's.
        """
        self.check_free()
        self.make()
        try:
            with self.lock():
                self._check_vacant()
                self._discard()  # what a launch that was killed has left
                self.make()
                try:
                    yield
                finally:
                    if not self.spec.exists():
                        self._discard()
        finally:
            if not self.spec.exists() and not self._holds_trials():
                self._vanish()

    def _vanish(self) -> None:
        """Removes the folder, unless a driver works there or somebody else has put something into it."""
        if self.driver() is None:
            self._discard()  # again, for a launch that was ended before it had begun
            (self.root / "driver.lock").unlink(missing_ok=True)
            with suppress(OSError):
                self.root.rmdir()

    def keep(self, spec: str) -> None:
        """Writes down the spec, which makes this the home of a search: the last thing that a launch does."""
        with replacing(self.spec) as temporary:
            temporary.write_text(spec, encoding="utf-8")

    def _holds_trials(self) -> bool:
        return self.checkpoints.is_dir() and any(self.checkpoints.iterdir())

    def _discard(self) -> None:
        """Removes what a launch makes before it keeps its spec."""
        for folder in (self.checkpoints, self.outbox, self.ray):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (*self.root.glob("study.db*"), self.log, self.spec.with_suffix(".tmp")):
            file.unlink(missing_ok=True)

    def driver(self) -> dict[str, Any] | None:
        """Who drives the search now: `pid`, `host`, `since`, `beat`; None if nobody does."""
        record = self._record()
        if record is None or not self._alive(record):
            return None
        return record

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes this process the search's driver, with a heartbeat for drivers on other hosts.

        Raises:
            SearchBusy: if another driver is alive; says who and where.
        """
        lock = FileLock(self.root / "driver.lock")
        try:
            lock.acquire(timeout=1)  # a moment, since whoever asks who drives holds it too
            while not (self.root / "driver.lock").exists():  # whoever held it took the home away
                lock.release()
                self.make()
                lock.acquire(timeout=1)
        except Timeout as error:
            raise SearchBusy(self._busy(self._record() or {})) from error
        try:
            record = self._record()
            if record and record["host"] != socket.gethostname() and self._alive(record):
                raise SearchBusy(self._busy(record))
            ended = threading.Event()
            since = time.time()
            beat = threading.Thread(target=self._beats, args=(since, ended), daemon=True)
            try:
                self._beat(since)
                beat.start()
                yield
            finally:
                ended.set()
                if beat.is_alive():
                    beat.join()
                (self.root / "driver.json").unlink(missing_ok=True)
        finally:
            lock.release()

    def _record(self) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads((self.root / "driver.json").read_text())
        except (OSError, ValueError):
            return None
        return record

    def _alive(self, record: dict[str, Any]) -> bool:
        if record["host"] != socket.gethostname():
            return bool(time.time() - record["beat"] < _STALE_SECONDS)
        lock = FileLock(self.root / "driver.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _busy(self, record: dict[str, Any]) -> str:
        who = f" (process {record['pid']} on {record['host']})" if record else ""
        return (
            f"the search {self.name!r} is being run by another driver{who}; watch it with "
            f"`transfer-search status {self.name} --watch`, or end it first with "
            f"`transfer-search stop {self.name}`"
        )

    def _beat(self, since: float) -> None:
        record = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": since,
            "beat": time.time(),
        }
        write_json(self.root / "driver.json", record)

    def _beats(self, since: float, ended: threading.Event) -> None:
        while not ended.wait(_HEARTBEAT_SECONDS):
            with suppress(OSError):  # a full disk, or storage that is away: the next one may get through
                self._beat(since)
