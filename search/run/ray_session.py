"""The Ray that a search runs on: one of this process's own, or the cluster's."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from search.processes import own_modules
from search.run.ray_compat import PRELOADED

__all__ = ["cluster_ray", "local_ray"]

_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Nothing reads Tune's snapshots of its own state, and a failed one would end the search.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": str(10**9),
    # A new trial need not wait until the process of the one before has started; `Capacity` bounds them.
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def local_ray(cpus: int | None = None, gpus: int | None = None, *, preloaded: bool = False) -> Iterator[None]:
    """A Ray of this process's own, which ends with the outermost of such blocks.

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
    with own_modules():
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=256 * 2**20,
        )
    for name in PRELOADED:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        ray.shutdown()


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
