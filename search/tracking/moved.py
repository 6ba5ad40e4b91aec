"""MLflow's SQLite store where it lies now: gone, or moved together with the files of its runs.

MLflow writes absolute addresses of files into its tables. A store that was moved or copied names the old
ones: what is read is not found there, and what is written would make the old folders anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

__all__ = ["Moved", "missing_store", "moved_store"]

_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
_LOOKED_AT = 50
_LOCKED_SECONDS = 20


@dataclass(frozen=True)
class Moved:
    """A store whose tables name another folder of files than the one that lies beside it.

    Attributes:
        file: the store.
        was: the folder by its tables.
        now: the folder that has the files.
    """

    file: Path
    was: str
    now: str

    def __str__(self) -> str:
        return (
            f"MLflow's store {self.file} has moved: its files are in {self.now}, its tables name {self.was}"
        )

    def mend(self) -> None:
        """Writes the new addresses into the tables."""
        length = len(self.was) + 1
        with closing(sqlite3.connect(self.file, timeout=_LOCKED_SECONDS)) as connection, connection:
            for table, column in _ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, {length}) "
                    f"WHERE substr({column}, 1, {length}) = ?",
                    (self.now, f"{self.was}/"),
                )


def missing_store(uri: str) -> Path | None:
    """The file of a SQLite store that is not there; None where there is one, or the store is another."""
    file = _file(uri)
    return file if file is not None and not file.exists() else None


def moved_store(uri: str) -> Moved | None:
    """The store at an address, if it was moved or copied together with the files of its runs."""
    file = _file(uri)
    if file is None or not file.is_file():
        return None
    files = file.resolve().parent / "mlruns"
    for folder, below in _folders_of_runs(file):
        if folder != str(files) and (files / below).is_dir():
            return Moved(file, folder, str(files))
    return None


def _file(uri: str) -> Path | None:
    name = make_url(uri).database if uri.startswith("sqlite:") else None
    return Path(name) if name and name != ":memory:" else None


def _folders_of_runs(file: Path) -> Iterator[tuple[str, str]]:
    """Of the newest runs, the folder that the tables name, and the run's place in it."""
    query = "SELECT experiment_id, run_uuid, artifact_uri FROM runs ORDER BY start_time DESC LIMIT ?"
    try:
        with closing(
            sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=_LOCKED_SECONDS)
        ) as connection:
            rows = connection.execute(query, (_LOOKED_AT,)).fetchall()
    except sqlite3.Error:
        return  # `check_store` says what is wrong with it
    for experiment, run, address in rows:
        below = f"{experiment}/{run}"
        if str(address).endswith(f"/{below}/artifacts"):
            yield str(address).removesuffix(f"/{below}/artifacts"), below
