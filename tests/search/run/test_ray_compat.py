"""What this project relies on in Ray beside its public interface, as Ray 2.60 has it.

A test that fails against a newer Ray names what `search.run.ray_compat` must learn.
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray import cloudpickle, tune
from ray._private.authentication import authentication_token_setup as setup
from ray.core.generated.autoscaler_pb2 import ClusterConfig
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from search.run import ray_compat
from search.run.failures import Failure, FailureKind
from tests.search import toys


def test_ray_is_the_version_that_this_was_written_for() -> None:
    assert ray.__version__.startswith(f"{ray_compat.WRITTEN_FOR}."), "run this file, then set WRITTEN_FOR"


def test_2_60_the_raylet_knows_what_makes_its_processes_import_early() -> None:
    raylet = Path(ray.__file__).parent / "core/src/ray/raylet/raylet"
    with raylet.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
        for variable in ray_compat.PRELOADED:
            assert program.find(variable.removeprefix("RAY_").encode()) >= 0, variable


@pytest.mark.usefixtures("shared_ray")
def test_2_60_the_drivers_of_a_ray_and_their_command_lines() -> None:
    mine = Path(f"/proc/{os.getpid()}/cmdline").read_text().split("\0")[0]
    assert any(command.startswith(mine) for command in ray_compat.driver_commands())


@pytest.mark.usefixtures("shared_ray")
def test_2_60_what_a_ray_would_find_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_compat.machine_resources()["CPU"] == ray.nodes()[0]["Resources"]["CPU"]
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 4, "GPU": 2}')
    assert ray_compat.machine_resources() == {"CPU": 4, "GPU": 2}


def _four_workers() -> ClusterConfig:
    config = ClusterConfig()
    for most in (4, -1):
        config.node_group_configs.add(resources={"CPU": 8}, max_count=most)
    return config


@pytest.mark.usefixtures("shared_ray")
def test_2_60_the_nodes_that_an_autoscaler_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_compat.autoscaled_nodes() == []
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", _four_workers)
    assert ray_compat.autoscaled_nodes() == [({"CPU": 8.0}, 4), ({"CPU": 8.0}, 2**20)]


def _died(message: str, reason: int = NodeDeathInfo.UNSPECIFIED) -> ActorDiedError:
    context = ActorDiedErrorContext(error_message=message, actor_id=b"0" * 16)
    context.node_death_info.reason = reason
    return ActorDiedError(context)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_died("The actor died because its node has died. Node Id: 1f"), FailureKind.NODE_LOST),
        (_died("gone", NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED), FailureKind.NODE_LOST),
        (ActorUnavailableError("RpcError", b"0" * 16), FailureKind.NODE_LOST),
        (_died("The actor is dead because its worker process has died."), FailureKind.OTHER),
        (None, FailureKind.OTHER),
    ],
)
def test_2_60_what_becomes_of_an_actor(error: Exception | None, kind: FailureKind) -> None:
    assert ray_compat.failure(error).kind is kind


@ray.remote(max_retries=0)
def _raising(kind: str) -> None:
    if kind == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
    if kind == "chained":
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("no features") from error
    if kind == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    raise RuntimeError("torch.OutOfMemoryError: CUDA out of memory")


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("kind", ["memory", "chained", "mentioned", "full"])
def test_2_60_a_task_that_ran_out_of_gpu_memory(kind: str) -> None:
    with pytest.raises(RayTaskError) as raised:
        ray.get(_raising.remote(kind))
    found = ray_compat.failure(raised.value)
    if kind == "full":
        assert found.kind is FailureKind.NO_ROOM
    elif kind == "mentioned":
        assert found.kind is FailureKind.OTHER
        assert found.message == "RuntimeError: torch.OutOfMemoryError: CUDA out of memory"
    else:
        assert found.kind is FailureKind.OUT_OF_GPU_MEMORY
        assert found.message == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB."


class _Noting(FIFOScheduler):  # type: ignore[misc]
    """Prepares Tune as the search's scheduler does, and notes what it sees there."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Failure] = []
        self.processes: set[int] = set()
        self.missing: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        controller = tune_controller._tune_controller
        names = {
            "_maybe_reuse_cached_actor", "_process_trial_failure", "_trial_to_actor", "_actor_manager",
            "_class_cache", "_cleanup_cached_actors",
        }  # fmt: skip
        self.missing |= {name for name in names if not hasattr(controller, name)}
        assert callable(controller._actor_manager.is_actor_started)
        ray_compat.prepare(tune_controller)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.failures.append(ray_compat.failure_of(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self.processes.add(result["pid"])
        return str(self.STOP if result["epoch"] == 3 else self.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        trial: Trial | None = super().choose_trial_to_run(tune_controller)
        if trial is None:
            ray_compat.end_idle_processes(tune_controller)
        return trial


@pytest.mark.usefixtures("shared_ray")
def test_2_60_tune_keeps_its_failures_for_the_scheduler(folder: Path) -> None:
    (folder / "script.json").write_text(json.dumps({"0": "raise once", "1": "kill once", "2": "memory"}))
    scheduler = _Noting()
    cloudpickle.register_pickle_by_value(toys)
    try:
        tune.run(
            toys.Toy,
            config={
                "number": tune.grid_search([0, 1, 2]),
                "folder": tune.sample_from(
                    lambda spec: str(folder / "checkpoints" / str(spec.config.number))
                ),
                "hparams": {"lr": 0.1},
            },
            storage_path=str(folder),
            scheduler=scheduler,
            resources_per_trial={"cpu": 1},
            max_failures=1,
            raise_on_failed_trial=False,
            verbose=0,
        )
    finally:
        cloudpickle.unregister_pickle_by_value(toys)
    assert scheduler.missing == set()
    assert scheduler.processes
    told = {failure.message.partition(":")[0]: failure.kind for failure in scheduler.failures}
    assert told.pop("ValueError") is FailureKind.OTHER
    assert told.pop("torch.OutOfMemoryError") is FailureKind.OUT_OF_GPU_MEMORY
    assert len(scheduler.failures) == 4  # the third fails twice
    assert all("Failure # 1" in failure.traceback for failure in scheduler.failures)
    assert not any(folder.rglob("*failure*"))


def test_2_60_the_output_in_a_jobs_log() -> None:
    log = "INFO -- Runtime env is ready.\nINFO -- Running entrypoint for job j-1: python -m search\nhi\n"
    assert ray_compat.output_of_job("j-1", log) == "hi\n"
    assert ray_compat.output_of_job("j-2", log) == ""


def test_2_60_the_words_of_a_token_refused() -> None:
    from ray._private.authentication import http_token_authentication as server

    source = Path(server.__file__).read_text()
    assert "Unauthorized: Missing authentication token" in source
    assert ray_compat.asks_for_token(Exception("Unauthorized: Missing authentication token"))
    assert not ray_compat.asks_for_token(Exception("Forbidden: Invalid authentication token"))


def test_2_60_the_names_of_loggers_and_of_a_variable() -> None:
    import ray.dashboard.modules.dashboard_sdk
    import ray.dashboard.modules.job.job_manager as jobs
    import ray.dashboard.modules.job.sdk  # noqa: F401

    assert set(ray_compat.NOISY_LOGGERS) - set(logging.root.manager.loggerDict) <= {
        "ray._private.runtime_env"
    }
    assert ray_compat.JOB_STOP_SECONDS in Path(jobs.__file__).with_name("job_supervisor.py").read_text()


def test_2_60_a_local_ray_listens_on_loopback_alone(shared_ray: None) -> None:
    ray.get(_process.remote())  # one of each kind of process is there
    own = psutil.Process()
    mine = {str(each.pid) for each in [own, *own.children(recursive=True)]}
    listed = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    ports = [line.split() for line in listed.splitlines() if mine & set(re.findall(r"pid=(\d+)", line))]
    assert len(ports) > 3
    assert {port[3].rpartition(":")[0].replace("[::ffff:127.0.0.1]", "127.0.0.1") for port in ports} == {
        "127.0.0.1"
    }


def test_2_60_a_local_ray_has_no_process_that_nobody_asks(shared_ray: None) -> None:
    commands = [" ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    assert not any("monitor.py" in command for command in commands), "an autoscaler, or a reader of logs"
    assert all("--minimal" in command for command in commands if "dashboard.py" in command)


@ray.remote
def _process() -> int:
    return os.getpid()


def test_2_60_the_token_of_a_local_ray_is_its_users_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    token = folder / ".ray" / "auth_token"
    ray_compat.keep_token_private()
    assert len(token.read_text()) == 64
    token.chmod(0o644)
    known = token.read_text()
    ray_compat.keep_token_private()
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == known
    assert [each.name for each in token.parent.iterdir()] == ["auth_token"]
    assert str(setup._get_default_token_path()) == str(token)


def test_2_60_a_run_starts_without_importing_mlflow() -> None:
    """Tune imports MLflow only to count the kinds of its callbacks."""
    code = """
import sys
from ray.tune import Callback
from ray.air._internal import usage
from ray.tune.tune import air_usage
from search.run.ray_compat import without_usage_tags
with without_usage_tags():
    assert air_usage.tag_callbacks([Callback()]) is False
assert "mlflow" not in sys.modules
assert usage.tag_callbacks is air_usage.tag_callbacks
assert usage.tag_callbacks([]) is False
"""
    subprocess.run([sys.executable, "-c", code], check=True)
