"""Optuna's storage for a search: a database that survives everything, behind the memory of its one driver.

Optuna asks its storage for every trial again and again, several times a suggestion; a database answers each
time with thousands of rows. A search has one driver at a time, so its memory is never out of date.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from search.errors import BadInput, TransferSearchError
from search.home import Home
from search.spec.search_spec import SearchSpec
from search.spec.values import with_driver

__all__ = ["DriverStorage", "database", "existing", "is_used", "opened", "settle", "write_ahead"]

_LOCKED_SECONDS = 10.0


def database(spec: SearchSpec, home: Home) -> RDBStorage:
    """The database of a search: the spec's, or a file in its home."""
    if spec.storage_url is not None:
        return opened(spec.storage_url, f"{spec.storage} (storage)")
    path = home.root / "study.db"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=_LOCKED_SECONDS, check_same_thread=False)
        write_ahead(connection)
        return connection

    try:
        return RDBStorage(home.study_url, engine_kwargs={"creator": connect})
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise BadInput(
            f"the study of the search {home.name!r} cannot be read: {_reason(error)}; {path} is damaged: put "
            "back a copy of it (with study.db-wal, if there is one), or launch the spec under a new name"
        ) from error


def write_ahead(connection: sqlite3.Connection) -> None:
    """Lets a connection write ahead and not flush each commit: a trial's dozens of writes cost milliseconds.

    A process that is killed loses nothing, a lost power supply at most the last commits.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def settle(file: Path | str) -> None:
    """Leaves nothing beside a SQLite file, so that a copy of it alone is whole."""
    with closing(sqlite3.connect(file, timeout=_LOCKED_SECONDS)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def opened(url: str, called: str) -> RDBStorage:
    """The database at an address, which may hold a password and is told as `called`.

    Raises:
        BadInput: if it cannot be opened.
    """
    try:
        return RDBStorage(with_driver(url), engine_kwargs={"pool_pre_ping": True})
    except (ImportError, SQLAlchemyError) as error:
        raise _unopened(called, error) from error


def existing(spec: SearchSpec) -> RDBStorage | None:
    """The spec's storage if it has been used before; nothing is made there.

    Raises:
        BadInput: if it cannot be opened.
    """
    assert spec.storage_url is not None
    return opened(spec.storage_url, f"{spec.storage} (storage)") if is_used(spec) else None


def is_used(spec: SearchSpec) -> bool:
    """Whether the spec's storage holds studies; nothing is made there.

    Raises:
        BadInput: if it cannot be opened.
    """
    assert spec.storage_url is not None
    try:
        engine = create_engine(with_driver(spec.storage_url))
        if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
            return False
        try:
            return bool(inspect(engine).has_table("studies"))
        finally:
            engine.dispose()
    except (ImportError, SQLAlchemyError) as error:
        raise _unopened(f"{spec.storage} (storage)", error) from error


def _unopened(called: str, error: Exception) -> BadInput:
    return BadInput(
        f"Optuna's storage {called} cannot be opened: {_reason(error)}; see that it runs and takes this "
        "user, and that its driver is there: pip install 'transfer-search[postgresql]'"
    )


def _reason(error: Exception) -> str:
    """The first line of what a database said; its address, which may hold a password, is not in it."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return next(iter(str(said).strip().splitlines()), type(error).__name__)


class Patient:
    """A database that is waited for while it is locked, full, or being restarted.

    What was written and not acknowledged is written once more, which changes nothing.

    Attributes:
        tell: is told what is waited for, and that it goes on; None: nobody waits.
    """

    _PAUSES = (0.5, 1.0, 2.0, 5.0)

    def __init__(self, database: RDBStorage) -> None:
        self._database = database
        self.tell: Callable[[str], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return partial(self._persist, getattr(self._database, name))

    def create_once(self, study_id: int, trial: FrozenTrial) -> int:
        """Writes a trial; the id that the database gives it."""

        def create() -> int:
            for known in self._database.get_all_trials(study_id, deepcopy=False)[trial.number :]:
                if known.params == trial.params:
                    return known._trial_id  # written, and the acknowledgement was lost
            return self._database.create_new_trial(study_id, trial)

        try:
            return self._database.create_new_trial(study_id, trial)
        except _AWAY as error:
            return int(self._wait(error, create))

    def number_of(self, trial_id: int) -> int:
        """A trial's number; Optuna's own way reads the whole trial for it, some 5 ms."""
        statement = text("SELECT number FROM trials WHERE trial_id = :trial_id")

        def read() -> int:
            with self._database.engine.connect() as connection:
                return int(connection.execute(statement, {"trial_id": trial_id}).scalar_one())

        return int(self._persist(read))

    def _persist(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except _AWAY as error:
            return self._wait(error, partial(method, *args, **kwargs))

    def _wait(self, error: Exception, again: Callable[[], Any]) -> Any:
        if self.tell is None or not is_away(error):
            raise error
        began, pauses = time.monotonic(), chain(self._PAUSES, repeat(self._PAUSES[-1]))
        said = ""
        for pause in pauses:
            if (reason := _reason(_cause(error))) != said:
                said = reason
                self.tell(
                    f"Optuna's storage cannot be written: {reason}; waiting for it (stop twice to quit)"
                )
            time.sleep(pause)
            try:
                result = again()
            except UpdateFinishedTrialError:
                result = True  # it was told, and the acknowledgement was lost
            except _AWAY as another:
                if not is_away(another):
                    raise
                error = another
                continue
            self.tell(f"Optuna's storage is there again after {time.monotonic() - began:.0f} s")
            return True if result is False else result  # as there is one driver, it was changed by this one
        raise AssertionError("the pauses never end")


_AWAY = (SQLAlchemyError, StorageInternalError, sqlite3.OperationalError)


def is_away(error: BaseException) -> bool:
    """Whether a database could not be reached, or could not write, rather than refused."""
    return isinstance(_cause(error), OperationalError | InterfaceError | sqlite3.OperationalError)


def _cause(error: BaseException) -> Exception:
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return cause if isinstance(cause, Exception) else Exception(str(error))


class DriverStorage(InMemoryStorage):
    """Reads from memory and writes through to a database, for the only process that writes there.

    A new trial is written with all its parameters at once, when it has been drawn: what died before has
    never been.

    Args:
        database: holds the studies, which are read when they are first asked for.
    """

    def __init__(self, database: RDBStorage) -> None:
        super().__init__()
        self._patient = Patient(database)
        self._database = cast(RDBStorage, self._patient)
        self._studies_there: dict[int, int] = {}
        self._trials_there: dict[int, int] = {}
        self._unwritten: dict[int, int] = {}  # the studies of trials that are not in the database yet

    def wait_for_database(self, tell: Callable[[str], None]) -> None:
        """Waits from now on where the database is away, and tells so; else that is an error."""
        self._patient.tell = tell

    # Studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        there = self._database.create_new_study(directions, study_name)
        here = super().create_new_study(directions, self._database.get_study_name_from_id(there))
        self._studies_there[here] = there
        return here

    def discard(self, study_id: int) -> None:
        """Removes a study from the database."""
        self._database.delete_study(self._studies_there[study_id])

    def get_study_id_from_name(self, study_name: str) -> int:
        try:
            return super().get_study_id_from_name(study_name)
        except KeyError:
            return self._read(self._database.get_study_id_from_name(study_name), study_name)

    def _read(self, there: int, study_name: str) -> int:
        here = super().create_new_study(self._database.get_study_directions(there), study_name)
        self._studies_there[here] = there
        for key, value in self._database.get_study_user_attrs(there).items():
            super().set_study_user_attr(here, key, value)
        for key, value in self._database.get_study_system_attrs(there).items():
            super().set_study_system_attr(here, key, value)
        for trial in self._database.get_all_trials(there, deepcopy=False):
            self._trials_there[super().create_new_trial(here, trial)] = trial._trial_id
        return here

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_user_attr(self._studies_there[study_id], key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._database.set_study_system_attr(self._studies_there[study_id], key, value)
        super().set_study_system_attr(study_id, key, value)

    # Trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._unwritten[trial_id] = study_id
        if template_trial is not None:
            self._there(trial_id)
        return trial_id

    def forget(self, trial_id: int) -> None:
        """Takes back the trial that was drawn last, which nobody knows of yet."""
        study_id = self._unwritten.pop(trial_id)
        last = self._studies[study_id].trials.pop()
        assert last._trial_id == trial_id, f"trial {last.number} was drawn after it"
        del self._trial_id_to_study_id_and_number[trial_id]

    def write(self, trial_id: int) -> None:
        """Writes a trial that has been drawn."""
        self._there(trial_id)

    def _there(self, trial_id: int) -> int:
        """The trial's id in the database, where it is written now if it is not there yet."""
        study_id = self._unwritten.pop(trial_id, None)
        if study_id is not None:
            trial = self.get_trial(trial_id)
            there = self._patient.create_once(self._studies_there[study_id], trial)
            if self._patient.number_of(there) != trial.number:
                raise TransferSearchError(
                    f"another process has written trial {trial.number} of the search "
                    f"{self.get_study_name_from_id(study_id)!r}; a study is for one driver at a time"
                )
            self._trials_there[trial_id] = there
        return self._trials_there[trial_id]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        if trial_id not in self._unwritten:
            there = self._there(trial_id)
            self._database.set_trial_param(there, param_name, param_value_internal, distribution)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        if trial_id not in self._unwritten:
            self._database.set_trial_system_attr(self._there(trial_id), key, value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        if trial_id not in self._unwritten:
            self._database.set_trial_user_attr(self._there(trial_id), key, value)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._database.set_trial_intermediate_value(self._there(trial_id), step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if not self._database.set_trial_state_values(self._there(trial_id), state, values):
            return False
        return super().set_trial_state_values(trial_id, state, values)
