"""The Ray that a search runs on: one of this process's own, or the cluster's."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from search.errors import BadInput, RayDidNotStart
from search.processes import own_modules
from search.run.ray_compat import (
    PRELOADED,
    few_processes,
    keep_token_private,
    no_signal_handlers,
    on_loopback,
    own_session,
)
from search.run.signals import held

__all__ = ["cluster_ray", "local_ray", "session_folder"]

_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Nothing reads Tune's snapshots of its own state, and a failed one would end the search.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    # A failure is told in a line by the board, and whole in the driver's log, the study and MLflow.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": str(10**9),
    # A new trial need not wait until the process of the one before has started; `Capacity` bounds them.
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def local_ray(cpus: int | None = None, gpus: int | None = None, *, preloaded: bool = False) -> Iterator[None]:
    """A Ray of this process's own, which ends with the outermost of such blocks; no other machine reaches it.

    Args:
        cpus, gpus: what it has; None: what the machine has.
        preloaded: whether its processes import what trials need at once, before anybody asks for one.
    """
    if ray.is_initialized():
        yield
        return
    _set_environment()
    if preloaded:
        os.environ.update(PRELOADED)
    folder = session_folder()
    _sweep(folder)
    try:
        keep_token_private()
        with held(), no_signal_handlers(), few_processes(), own_modules(), on_loopback() as here:
            _started(num_cpus=cpus, num_gpus=gpus, _temp_dir=folder, **here)
    finally:
        for name in PRELOADED:
            os.environ.pop(name, None)
    session = own_session()
    try:
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(session, ignore_errors=True)


def _started(**options: Any) -> None:
    """Starts Ray; on a busy machine its node may miss its own time limit, so twice if need be.

    Raises:
        RayDidNotStart: if it does not.
    """
    for attempt in (1, 2):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=256 * 2**20,
                **options,
            )
            return
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if attempt == 2:
                said = next(iter(str(error).splitlines()), type(error).__name__)
                raise RayDidNotStart(
                    f"Ray did not start on this machine: {said}; if the machine is very busy, or short of "
                    "memory or of room for temporary files, give the same command again later"
                ) from error


_LONGEST = 36
"""Characters of Ray's folder within which its sockets have paths of at most the 107 that Linux allows."""


def session_folder() -> str | None:
    """Where the Rays of this user's searches keep their sockets and logs; None: where RAY_TMPDIR says.

    Raises:
        BadInput: if there is no such folder with a path that is short enough.
    """
    if "RAY_TMPDIR" in os.environ:
        return None
    places = dict.fromkeys([Path(tempfile.gettempdir()), Path("/tmp")])
    for own in (place / f"ray-{os.getuid()}" for place in places):
        with suppress(OSError):
            if len(str(own)) > _LONGEST:
                continue
            own.mkdir(mode=0o700, exist_ok=True)
            if own.stat().st_uid == os.getuid() and not own.is_symlink():
                own.chmod(0o700)
                return str(own / "r")  # which Ray opens to everybody
    raise BadInput(
        f"the temporary folder {tempfile.gettempdir()} has a path that is too long for Ray's sockets, and "
        f"/tmp cannot be used; set TMPDIR to a folder with a path of at most {_LONGEST - 12} characters"
    )


def _sweep(folder: str | None) -> None:
    """Removes what Rays that have ended left in our own folder, each named for who started it."""
    for session in Path(folder).glob("session_2*") if folder else ():
        pid = session.name.rpartition("_")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(session, ignore_errors=True)


def _set_environment() -> None:
    for name, value in _TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def cluster_ray() -> None:
    """Connects to the cluster on which this job runs; its runtime environment is the job's.

    The connection ends with the process: with it Ray removes the folder that the code is run from.
    """
    # One pending trial at a time would let an autoscaler add one node at a time.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "4")
    _set_environment()
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
