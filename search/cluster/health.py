"""Is a cluster fit for searches? Asked on its head: Ray, each node, MLflow, Optuna's storage."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.errors import TransferSearchError
from search.home import searches_root
from search.run.machine import Check
from search.run.ray_session import cluster_ray
from search.study.storage import opened
from search.tracking.client import ask_server

__all__ = ["Check", "checks", "versions"]

_NODE_SECONDS = 60.0


def versions() -> str:
    """The versions on which the two ends of a cluster must agree."""
    major, minor, _ = platform.python_version_tuple()
    return f"Ray {ray.__version__}, Python {major}.{minor}"


def checks(caller: str, node_seconds: float = _NODE_SECONDS) -> Iterator[Check]:
    """Examines the cluster on whose head this runs.

    Args:
        caller: `versions` of whoever asks.
        node_seconds: how long nodes have to answer.
    """
    own = versions()
    wrong = f"the cluster has {own}, but you have {caller}; install the same on both" if own != caller else ""
    yield Check(subject="versions", wrong=wrong, told=own)
    cluster_ray()
    yield from _nodes(searches_root(), node_seconds)
    yield _tracking()
    yield _storage()


def _nodes(root: Path, seconds: float) -> Iterator[Check]:
    """The folder of searches as the head sees it, and each living node with what it has and sees."""
    probe = root / f".probe-{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        wrong = f"{root} cannot be written on the head: {error.strerror}; set TRANSFER_SEARCH_HOME there"
        yield Check(subject="searches", wrong=wrong)
        return
    yield Check(subject="searches", told=str(root))
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        asked = {_seen(node, probe): node for node in nodes}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
        for answer, node in asked.items():
            yield Check(
                subject=f"node {node['NodeManagerAddress']}",
                wrong=_node_problem(answer, _own(probe, node), root)
                if answer in answered
                else f"gave no answer within {seconds:g} s; see `ray status` and that node's load and logs",
                told=_resources(node["Resources"]),
            )
    finally:
        for path in root.glob(f"{probe.name}*"):
            path.unlink(missing_ok=True)


def _own(probe: Path, node: Mapping[str, Any]) -> Path:
    """What a node writes beside the head's probe."""
    return probe.with_name(f"{probe.name}-{node['NodeID']}")


def _seen(node: Mapping[str, Any], probe: Path) -> Any:
    """What comes to be the answer of a task on one node: what is wrong there with the folder of searches."""
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_tried)
    return task.remote(str(probe), str(_own(probe, node)))


def _tried(probe: str, own: str) -> str:
    """Looks for the head's probe and leaves one of this node's; what is wrong with that."""
    if not Path(probe).exists():
        return "does not see there what the head wrote"
    try:
        Path(own).touch()
    except OSError as error:
        return f"cannot write there: {error.strerror}"
    return ""


def _node_problem(answer: Any, own: Path, root: Path) -> str:
    try:
        said = str(ray.get(answer))
    except ray.exceptions.RayError as error:
        return f"runs no task: {str(error).strip().splitlines()[-1]}"
    if not said and not own.exists():
        said = "writes there what the head does not see"
    return f"{root} is not shared: the node {said}; mount the same storage there on all nodes" if said else ""


def _resources(have: Mapping[str, float]) -> str:
    cpus, gpus, memory = (have.get(kind, 0.0) for kind in ("CPU", "GPU", "memory"))
    return f"CPU {cpus:g}, GPU {gpus:g}, memory {memory / 2**30:.1f} GiB"


def _tracking() -> Check:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        wrong = "MLFLOW_TRACKING_URI is not set on the head; set it there, or tracking.uri in each spec"
        return Check(subject="MLflow", wrong=wrong)
    try:
        return Check(subject="MLflow", told=ask_server(uri))
    except TransferSearchError as error:
        return Check(subject="MLflow", wrong=str(error))


def _storage() -> Check:
    url = os.environ.get("TRANSFER_SEARCH_STORAGE")
    if not url:
        return Check(subject="Optuna", told="each search's own file in its home")
    try:
        opened(url, "TRANSFER_SEARCH_STORAGE").engine.dispose()
    except TransferSearchError as error:
        return Check(subject="Optuna", wrong=str(error))
    return Check(subject="Optuna", told="TRANSFER_SEARCH_STORAGE opens")
