"""The moments at which a process can die: after each thing that it has written, and within a line.

They are counted in a fork, which patches what writes: the disk (a file put in another's place, a file
removed, a line appended), Optuna's database, MLflow. Each is named for what was written.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from optuna.trial import TrialState
from requests.exceptions import ConnectionError as NoConnection

from search.study.storage import Patient
from search.tracking.models import Models

__all__ = ["Died", "Fault", "Moments"]

_MLFLOW = (
    "create_run", "log_batch", "log_text", "set_tag", "update_run", "set_terminated", "create_logged_model",
    "finalize_logged_model", "log_outputs",
)  # fmt: skip
_OF_DRIVER, _OF_TRIAL, _OF_SENDER = "driver", "trial", "sender"


def _name(of: object) -> str:
    """What a thing is called, without what is only this one's."""
    told = of.name if isinstance(of, TrialState) else Path(str(of)).name.lstrip("0123456789")
    return "model" if told.startswith("tmp") else told


class Died(BaseException):
    """A process other than the driver was killed: nothing in it catches that."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens at which moment.

    Attributes:
        who: whose moments count: all of them (`driver`), the trials' (`trial`), or MLflow's (`sender`).
        at: the number of the moment, from 1; 0: nothing happens.
        away: for how many of its writes MLflow is away then, instead of a death.
        each: instead of at a number, after each thing that is not so often in `log` yet, which is added to.
        only: of which things `each` is; none: of all.
        log: a file of the names of the moments at which somebody died, one a line.
    """

    who: str = _OF_DRIVER
    at: int = 0
    away: int = 0
    each: int = 0
    only: tuple[str, ...] = ()
    log: Path = Path("/dev/null")

    def deaths(self) -> Counter[str]:
        """How often somebody has died at each moment."""
        return Counter(self.log.read_text().splitlines() if self.log.is_file() else ())


@dataclass
class Moments:
    """Counts the moments of this process, and lets the fault happen at its own."""

    fault: Fault
    seen: list[str] = field(default_factory=list)
    _who: str = _OF_DRIVER
    _away: int = 0
    _deaths: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def of(self, who: str) -> Iterator[None]:
        """What is written in this block is written by another process than the driver."""
        before, self._who = self._who, who
        try:
            yield
        finally:
            self._who = before

    def patch(self) -> None:
        """Counts from now on what this process writes."""
        self._deaths = self.fault.deaths()
        for name in ("replace", "unlink"):
            setattr(os, name, self._on_disk(getattr(os, name), name))
        os.write = self._torn(os.write)
        Patient._persist = self._database(Patient._persist)  # type: ignore[method-assign]
        Patient.create_once = self._around(Patient.create_once, "create_once")  # type: ignore[method-assign]
        for name in _MLFLOW:
            named = 2 if name == "set_tag" else None
            own = self._around(getattr(MlflowClient, name), f"MLflow's {name}", mlflow=True, named=named)
            setattr(MlflowClient, name, own)
        Models.store = self._around(Models.store, "MLflow's files of", mlflow=True, named=2)  # type: ignore[method-assign]

    def _comes(self, what: str) -> bool:
        """One moment has come; whether the fault is to happen now."""
        if self.fault.who not in (_OF_DRIVER, self._who):
            return False
        self.seen.append(what)
        is_one = not self.fault.only or what in self.fault.only
        return len(self.seen) == self.fault.at or (is_one and self._deaths[what] < self.fault.each)

    def _die(self) -> None:
        if self.fault.each:
            self._deaths[self.seen[-1]] += 1
            with self.fault.log.open("a") as log:
                log.write(f"{self.seen[-1]}\n")
        if self.fault.who == _OF_DRIVER:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Died(self.seen[-1])

    def _around(
        self, write: Callable[..., Any], name: str, *, mlflow: bool = False, named: int | None = None
    ) -> Callable[..., Any]:
        """Of a write whose argument at the place `named` says what it is of."""

        @wraps(write)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if mlflow and self._away:
                self._away -= 1
                raise NoConnection("a test took MLflow away")
            result = write(*args, **kwargs)
            of = "" if named is None else _name(args[named])
            what = f"{name} {of}".strip()
            if self._comes(what):
                if mlflow and self.fault.away:  # it was written, and the acknowledgement was lost
                    self._away = self.fault.away - 1
                    raise NoConnection("a test took MLflow away")
                self._die()
            return result

        return counted

    def _on_disk(self, change: Callable[..., None], name: str) -> Callable[..., None]:
        """Of files below the current folder; others are a library's own."""
        counted, below = self._around(change, name, named=-1), os.getcwd()

        def change_file(path: Any, *args: Any, **kwargs: Any) -> None:
            (counted if str(path).startswith(below) else change)(path, *args, **kwargs)

        return change_file

    def _torn(self, write: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        """Of a line that is appended, half may be there."""

        def counted(handle: int, line: Any) -> int:
            kind = json.loads(bytes(line))["event"]
            if self._comes(f"half a line of {kind}"):
                write(handle, line[: len(line) // 2])
                self._die()
            written = write(handle, line)
            if self._comes(f"a line of {kind}"):
                self._die()
            return written

        return counted

    def _database(self, persist: Callable[..., Any]) -> Callable[..., Any]:
        def counted(patient: Patient, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not method.__name__.startswith("set_"):
                return persist(patient, method, *args, **kwargs)
            name = method.__name__
            named = None if name == "set_trial_param" else 3
            return self._around(persist, name, named=named)(patient, method, *args, **kwargs)

        return counted
