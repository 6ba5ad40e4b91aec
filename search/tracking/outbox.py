"""The outbox: what MLflow has not acknowledged, a file of events a trial, appended and synced here alone.

A file is removed when MLflow has acknowledged the trial's end. What MLflow refused for good is named in a
file beside it, until it is sent again. Whatever a crash or a disk made of a file, the rest of it is read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from search.tracking.events import TrialEvent, of_line
from trainables.files.sealed import write

__all__ = ["Outbox"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outbox:
    """The outbox in a folder."""

    folder: Path

    def add(self, event: TrialEvent) -> None:
        """Appends an event to its trial's file; it is there when this returns.

        Raises:
            OSError: if the disk does not take it; the file is then as it was.
        """
        line = event.line().encode()
        handle = os.open(self._file(event.trial), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            size = os.lseek(handle, 0, os.SEEK_END)
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # after a line that a crash has torn
            try:
                while line:
                    line = line[os.write(handle, line) :]
                os.fdatasync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)

    def numbers(self) -> list[int]:
        """The trials that MLflow has not acknowledged."""
        return sorted(int(file.stem) for file in self.folder.glob("*.jsonl") if file.stem.isdigit())

    def events(self, number: int) -> tuple[list[TrialEvent], int]:
        """A trial's events in order, and how many lines of its file are none."""
        try:
            content = self._file(number).read_bytes()
        except FileNotFoundError:
            return [], 0
        events: list[TrialEvent] = []
        damaged = 0
        for line in filter(bytes.strip, content.split(b"\n")):
            try:
                event = of_line(line)
            except ValueError:
                damaged += 1
                continue
            if isinstance(event, TrialEvent) and event.trial == number:
                events.append(event)
            else:
                damaged += 1
        if damaged:
            log.warning("%s has %d damaged lines, which are left out", self._file(number), damaged)
        return events, damaged

    def acknowledge(self, number: int) -> None:
        """Forgets a trial whose end MLflow has."""
        self._file(number).unlink(missing_ok=True)
        self._refusal(number).unlink(missing_ok=True)

    def refuse(self, number: int, reason: str) -> None:
        """Notes that MLflow refused a trial's events for good."""
        write(self._refusal(number), reason.encode())

    def refusals(self) -> dict[int, str]:
        """What MLflow refused for good, by trial, and why."""
        return {
            int(file.stem): file.read_text(encoding="utf-8", errors="replace")
            for file in sorted(self.folder.glob("*.refused"))
            if file.stem.isdigit()
        }

    def __iter__(self) -> Iterator[TrialEvent]:
        """Every event, trial by trial."""
        for number in self.numbers():
            yield from self.events(number)[0]

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.jsonl"

    def _refusal(self, number: int) -> Path:
        return self.folder / f"{number:05d}.refused"
