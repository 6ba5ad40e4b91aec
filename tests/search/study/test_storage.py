"""A storage that is away is waited for, and nothing is written twice or lost."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import OperationalError

from search.home import Home
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from tests.search.specs import small
from trainables.record import METRICS


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr("search.study.storage._LOCKED_SECONDS", 0.1)
    monkeypatch.setattr("search.study.storage.Patient._PAUSES", (0.1,))
    home = Home(folder / "searches" / "small")
    home.make()
    return home


def measured(value: float) -> dict[str, float]:
    return dict.fromkeys(METRICS, value)


def test_a_locked_database_is_waited_for_and_told(home: Home) -> None:
    study = SearchStudy.create(small(), home)
    study.ask()
    told: list[str] = []
    study.wait_for_storage(told.append)
    locked = threading.Event()

    def lock() -> None:
        with closing(sqlite3.connect(home.root / "study.db", isolation_level=None)) as other:
            other.execute("begin exclusive")
            locked.set()
            time.sleep(1.5)
            other.execute("rollback")

    thread = threading.Thread(target=lock)
    thread.start()
    locked.wait()
    study.report(0, 1, measured(0.1))
    study.end(0, Ending.COMPLETED, {"epoch": 1, **measured(0.1)})
    study.ask()
    thread.join()
    assert "database is locked; waiting for it" in told[0]
    assert "is there again" in told[1]
    again = SearchStudy.open(study.spec, home)
    assert again.reported(0) == {1: 0.1}
    assert [record.state for record in again.records()] == ["COMPLETE", "RUNNING"]


def test_nobody_but_a_driver_waits(home: Home) -> None:
    study = SearchStudy.create(small(), home)
    with closing(sqlite3.connect(home.root / "study.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        with pytest.raises(StorageInternalError):
            study.budget = 7


WRITES = ["create_new_trial", "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_state_values"]


@pytest.mark.parametrize("method", WRITES)
def test_a_write_whose_acknowledgement_was_lost_is_not_written_twice(
    home: Home, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    study = SearchStudy.create(small(), home)
    study.wait_for_storage(lambda told: None)
    write, failures = getattr(RDBStorage, method), iter([True])

    def lossy(*args: Any, **kwargs: Any) -> Any:
        result = write(*args, **kwargs)
        if next(failures, None):
            raise OperationalError("commit", {}, ConnectionError("the server closed the connection"))
        return result

    monkeypatch.setattr(RDBStorage, method, lossy)
    study.ask()
    study.report(0, 1, measured(0.1))
    study.end(0, Ending.COMPLETED, {"epoch": 1, **measured(0.1)})
    study.ask()
    assert next(failures, None) is None
    again = SearchStudy.open(study.spec, home)
    assert [record.number for record in again.records()] == [0, 1]
    assert again.reported(0) == {1: 0.1}
