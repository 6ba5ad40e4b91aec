"""The right of one process to write a trial's files, and the folder where it does."""

from __future__ import annotations

import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from trainables.files.remote import Remote
from trainables.files.whole import replacing
from trainables.record import OWNER_FILE, PROGRESS_FILE, RECORD_FOLDER

__all__ = ["Claim"]


class Claim:
    """Makes this process the only one that writes a trial's files; whoever did so before finds out.

    Args:
        trial: the trial's folder, on storage that all nodes share.
        uri: where the trial keeps its files instead; it then works in a temporary folder, which begins
            with what is there.

    Attributes:
        folder: where the trial works.
    """

    def __init__(self, trial: Path, uri: str | None = None) -> None:
        self._owner = uuid.uuid4().hex
        self._remote = None if uri is None else Remote(uri)
        if self._remote is None:
            self.folder = trial
            trial.mkdir(parents=True, exist_ok=True)
            with replacing(trial / OWNER_FILE) as temporary:
                temporary.write_text(self._owner)
            return
        self._temporary = TemporaryDirectory(prefix="transfer-search-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._remote.write(OWNER_FILE, self._owner.encode())
        for entry in self._remote.entries():
            if entry.name != OWNER_FILE:
                self._remote.fetch(entry.name, self.folder / entry.name)
        self._sent = self._files()

    def check(self) -> None:
        """Sees that no other process has claimed the trial since.

        Raises:
            RuntimeError: if one has. This node was cut off and came back, or still reaches the files: what
                it has is stale.
        """
        if self._remote is None:
            told = (self.folder / OWNER_FILE).read_bytes()
        else:
            told = self._remote.read(OWNER_FILE) or b""
        if told != self._owner.encode():
            raise RuntimeError("another process goes on with this trial")

    def share(self) -> None:
        """Sends what has changed in the folder to where the trial keeps its files.

        In the order in which they were written: the record, the model, the state.
        """
        if self._remote is None:
            return
        files = self._files()
        for name in sorted(files, key=_order):
            if files[name] != self._sent.get(name):
                self._remote.send(self.folder / name, name)
        self._sent = files

    def release(self) -> None:
        """Removes the temporary folder, if there is one."""
        if self._remote is not None:
            self._temporary.cleanup()

    def _files(self) -> dict[str, tuple[int, int, int]]:
        """What tells whether a file has changed, by name."""
        found = {}
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name != PROGRESS_FILE and path.suffix != ".tmp":
                status = path.stat()
                found[path.relative_to(self.folder).as_posix()] = (
                    status.st_ino,
                    status.st_size,
                    status.st_mtime_ns,
                )
        return found


def _order(name: str) -> tuple[bool, bool, str]:
    return "/" not in name, not name.startswith(f"{RECORD_FOLDER}/"), name
