"""Every private name and every wording of Ray and Tune that this project relies on, written for Ray 2.60.

A new version of Ray may change any of them without notice. So `pyproject.toml` bounds Ray by what was tested,
and each of these has a test in `tests/search/run/test_ray_compat.py`: run that first against a new version.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ray
from ray._private import parameter, ray_constants, utils
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.air._internal import usage
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from search.run.failures import Failure, FailureKind

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

__all__ = [
    "JOB_STOP_SECONDS",
    "NOISY_LOGGERS",
    "PRELOADED",
    "WRITTEN_FOR",
    "asks_for_token",
    "autoscaled_nodes",
    "driver_commands",
    "end_idle_processes",
    "failure",
    "failure_of",
    "few_processes",
    "keep_token_private",
    "kill_process",
    "machine_resources",
    "no_signal_handlers",
    "on_loopback",
    "output_of_job",
    "own_session",
    "prepare",
    "without_usage_tags",
]

WRITTEN_FOR = "2.60"

# Ray's start

PRELOADED: Mapping[str, str] = {
    "RAY_preload_python_modules": "trainables.image_transfer",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # else Ray ends them before a plan is made
}
"""Environment of a starting Ray whose processes import what trials need before anybody asks for one."""


@contextmanager
def on_loopback() -> Iterator[dict[str, str]]:
    """What a local Ray is started with so that it listens on this machine's loopback alone.

    Ray takes a local address for one that others can reach, but where it believes that it can have no
    cluster: as it does by default on systems whose firewall asks about each port.
    """
    with _replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield {"_node_ip_address": "127.0.0.1"}


@contextmanager
def few_processes() -> Iterator[None]:
    """Keeps a local Ray from starting what nobody asks: an autoscaler, a reader of its logs, its pages.

    Each is a Python of its own. What is left of the pages' processes is what Ray without `ray[default]` has.
    """
    made = functools.partialmethod(parameter.RayParams.__init__, no_monitor=True, include_log_monitor=False)
    with (
        _replaced(parameter.RayParams, "__init__", made),
        _replaced(utils, "get_dashboard_dependency_error", lambda: ImportError("not wanted here")),
    ):
        yield


@contextmanager
def no_signal_handlers() -> Iterator[None]:
    """Leaves the handlers of signals as they are, where a Ray that starts would set its own."""
    with _replaced(utils, "set_sigterm_handler", lambda handler: None):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an attribute of Ray's, in the block alone."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def keep_token_private() -> None:
    """Makes the token that a local Ray wants of its clients, or the one that is there, its user's alone.

    Ray itself writes it for everybody to read.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return  # the user's own
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # of a home that cannot be written Ray says more
        file.parent.mkdir(mode=0o700, exist_ok=True)
        if file.exists():
            file.chmod(0o600)
            return
        with NamedTemporaryFile("w", dir=file.parent, encoding="ascii") as token:  # of mode 0600
            token.write(secrets.token_hex(32))
            token.flush()
            os.link(token.name, file)  # unless another search has just done so


def own_session() -> str:
    """The folder of sockets and logs of the Ray that this process has started."""
    return str(ray._private.worker._global_node.get_session_dir_path())


def machine_resources() -> dict[str, float]:
    """The CPUs and GPUs that a Ray that is started on this machine would find there."""
    found = ResourceAndLabelSpec().resolve(is_head=False, node_ip_address="127.0.0.1")
    return {"CPU": float(found.num_cpus), "GPU": float(found.num_gpus)}


# Who and what is on a Ray


def driver_commands() -> list[str]:
    """The command lines of the drivers that are connected to this Ray, this process among them."""
    return [str(job["Entrypoint"]) for job in ray._private.state.jobs() if not job["IsDead"]]


def autoscaled_nodes() -> list[tuple[dict[str, float], int]]:
    """The nodes that an autoscaler may start: resources of a kind, and how many; none without one."""
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [(dict(each.resources), each.max_count if each.max_count >= 0 else 2**20) for each in groups]


# Tune's run and its controller

_GRACE_SECONDS = 1.0
"""How long the processes of trials may take to end by themselves when a search ends."""


@contextmanager
def without_usage_tags() -> Iterator[None]:
    """Lets Tune start without counting the kinds of its callbacks, for which it imports MLflow: a second."""
    with _replaced(usage, "tag_callbacks", lambda callbacks: False):
        yield


def prepare(tune_controller: Any) -> None:
    """Mends how Tune starts the processes of trials, and keeps failures for `failure_of`; once a controller.

    It also takes no more snapshots, which nobody reads and which grow with the number of trials.

    Args:
        tune_controller: what Tune gives to a scheduler.
    """
    controller = tune_controller._tune_controller
    if "_maybe_reuse_cached_actor" in vars(controller):
        return
    reuse, process_failure = controller._maybe_reuse_cached_actor, controller._process_trial_failure

    def reuse_unless_started(trial: Trial) -> bool:
        # Tune kills a process that starts for a trial when another falls free for it. Where a start takes
        # longer than a trial, a new node would never get one.
        own = controller._trial_to_actor.get(trial)
        if own is not None and controller._actor_manager.is_actor_started(own):
            return False
        return bool(reuse(trial))

    def process_kept_failure(trial: Trial, exception: Exception) -> None:
        trial.temporary_state.failure = exception  # Tune's own copy is a pickle on the disk
        process_failure(trial, exception)

    def end_processes() -> None:
        # Tune waits ten seconds for epochs that are under way. What they would write is not lost: a trial
        # goes on from its state, and tells then what the study lacks.
        for tracked in list(controller._actor_to_trial):
            controller._schedule_trial_stop(controller._actor_to_trial[tracked])
        controller._cleanup_cached_actors(force_all=True)
        until = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < until and controller._actor_manager.num_total_actors:
            controller._actor_manager.next(timeout=0.1)
        controller._actor_manager.cleanup()  # which kills

    controller._cleanup_trials = end_processes
    controller._maybe_reuse_cached_actor = reuse_unless_started
    controller._process_trial_failure = process_kept_failure
    controller.checkpoint(force=True, wait=True)  # one, since the end of `tune.run` looks for it
    controller.checkpoint = lambda force=False, wait=False: None
    # Tune gives its actors an environment of their own: Ray then starts a process instead of taking one
    # that waits, and a cluster's users may read the keys that are in it.
    controller._class_cache = SimpleNamespace(get=functools.cache(ray.remote))


def end_idle_processes(tune_controller: Any) -> None:
    """Ends the processes that Tune keeps for trials to come."""
    tune_controller._tune_controller._cleanup_cached_actors(force_all=True)


def kill_process(tune_controller: Any, trial: Trial) -> None:
    """Kills the process of a trial that has one; Tune then tells that the trial's attempt failed."""
    controller = tune_controller._tune_controller
    tracked = controller._trial_to_actor.get(trial)
    found = controller._actor_manager._live_actors_to_ray_actors_resources.get(tracked)
    if found is not None:
        ray.kill(found[0])


# How a trial's attempt failed

_NODE_DIED = "its node has died"
"""In the words of an `ActorDiedError`; Ray has no class for it."""
_CHAINED_MEMORY = re.compile(r"^torch\.OutOfMemoryError: .*", re.MULTILINE)
"""In the traceback of a task whose exception has another as its cause: Ray keeps the class of the last."""
_NO_ROOM = re.compile(r"^OSError: \[Errno (28|122)\]", re.MULTILINE)
"""In a traceback that says of a file that its disk, or its user's part of it, is full."""
_KEPT_CHARACTERS = 20_000
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def failure_of(trial: Trial) -> Failure:
    """The failure that Tune tells a scheduler of now, on a controller that is prepared."""
    return failure(getattr(trial.temporary_state, "failure", None), _written(trial.error_file))


def failure(error: Exception | None, traceback: str = "") -> Failure:
    """What an exception that Ray raised for a trial's attempt means.

    Args:
        error: the exception; None where Tune has none.
        traceback: what is shown of it; "": its own text.
    """
    said = _COLOUR.sub("", str(error or "the trial's process ended without a word"))
    traceback = _COLOUR.sub("", traceback) or said
    last = next(reversed((said if error else traceback).strip().splitlines()), "")
    kind = FailureKind.OTHER
    match error:
        case ActorUnavailableError():
            kind = FailureKind.NODE_LOST
        case RayActorError() if error.preempted or _NODE_DIED in str(error):
            kind = FailureKind.NODE_LOST
        case RayTaskError() if memory := _out_of_memory(error):
            kind, last = FailureKind.OUT_OF_GPU_MEMORY, memory
        case RayTaskError() if _NO_ROOM.search(str(error)):
            kind = FailureKind.NO_ROOM
    return Failure(kind=kind, message=last, traceback=traceback)


def _out_of_memory(error: RayTaskError) -> str | None:
    """What PyTorch said where a GPU's memory did not suffice."""
    cause = type(error.cause)
    if (cause.__module__, cause.__qualname__) == ("torch", "OutOfMemoryError"):  # torch is not imported here
        return f"torch.OutOfMemoryError: {error.cause}".splitlines()[0]
    found = _CHAINED_MEMORY.search(str(error))
    return None if found is None else found[0]


def _written(file: str | None) -> str:
    """The end of the file to which Tune adds each failure of a trial."""
    if not file or not os.path.exists(file):
        return ""
    with open(file, encoding="utf-8", errors="replace") as text:
        return text.read()[-_KEPT_CHARACTERS:]


# Jobs on a cluster

NOISY_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env",
)
"""Loggers that tell a job's submitter what nobody asked for."""

JOB_STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable of a job: how long a stopped one has until Ray kills it; 3 s unless set."""


def output_of_job(job: str, log: str) -> str:
    """What the command of a job itself printed, of all that is in the job's log."""
    _, _, rest = log.partition(f"Running entrypoint for job {job}:")
    return rest.partition("\n")[2]


def asks_for_token(error: Exception) -> bool:
    """Whether an `AuthenticationError` is of a caller without a token; else the token is a wrong one."""
    return "Missing" in str(error)
