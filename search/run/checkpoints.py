"""Where a study's trials keep states and models while they run: in the home, or at the spec's address.

What a trial left at an address comes home when it ends; then whoever wants it finds it there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from search.errors import CheckpointsError
from search.home import Home
from search.study.search_study import SearchStudy
from trainables.files.remote import Remote, RemoteError, below
from trainables.record import MODEL_FOLDER, OWNER_FILE, RECORD_FOLDER, STATE_FILE

__all__ = ["Checkpoints"]

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one study.

    Args:
        study: knows the search's id, under which an address holds what is this search's.
        home: where they are, or come.
    """

    def __init__(self, study: SearchStudy, home: Home) -> None:
        self._home = home
        self._base = study.spec.checkpoints
        self._prefix = f"{study.spec.name}-{study.search_id[:12]}/{study.role}-"

    def uri(self, number: int) -> str | None:
        """Where a trial keeps its files; None: in the home."""
        return None if self._base is None else below(self._base, f"{self._prefix}{number:05d}")

    def bring_home(self, number: int) -> None:
        """Copies a trial's model and record to the home.

        Raises:
            CheckpointsError: if they cannot be read.
        """
        if (uri := self.uri(number)) is None:
            return
        with _translated():
            remote = Remote(uri)
            for entry in remote.entries():
                if entry.name.startswith((f"{MODEL_FOLDER}/", f"{RECORD_FOLDER}/")):
                    remote.fetch(entry.name, self._home.trial(number) / entry.name)

    def clear(self, number: int) -> None:
        """Removes what only a trial that goes on needs.

        Raises:
            CheckpointsError: if it cannot be removed.
        """
        folder = self._home.trial(number)
        for left in (folder / STATE_FILE, folder / OWNER_FILE, *folder.rglob("*.tmp")):  # of killed processes
            left.unlink(missing_ok=True)
        if (uri := self.uri(number)) is not None:
            with _translated():
                Remote(uri).remove()

    def tidy(self, ended: Iterable[int]) -> None:
        """Removes what is left of trials that have ended: their driver may have died before it did."""
        for number in ended:
            folder = self._home.trial(number)
            if any((folder / name).exists() for name in (STATE_FILE, OWNER_FILE)):
                try:
                    self.clear(number)
                except CheckpointsError as error:
                    log.warning("what trial %d no longer needs stays: %s", number, error)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except RemoteError as error:
        raise CheckpointsError(f"checkpoints: {error}") from error
