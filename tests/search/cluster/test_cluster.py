"""A search on a cluster of hosts with addresses of their own, asked from a host that is not part of it.

Real Ray with token authentication, real MLflow with users, real PostgreSQL. See `hosts`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.search.hosts import Host, Network, answers, mlflow, network, postgresql, refusal, until
from tests.search.specs import SMALL

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

TOKEN = "a-token-that-only-the-cluster-and-its-users-know"
PASSWORD = "a-password-of-the-database"
MLFLOW_PASSWORD = "a-password-of-mlflow"
KNOWN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": MLFLOW_PASSWORD}
DASHBOARD = 8265

TRIALS, EPOCHS = 4, 96
SLOW = (
    "name=moved",
    f"search.trials={TRIALS}",
    f"search.max_epochs={EPOCHS}",
    "search.pruner=none",
    "cache=off",
    "space.policy=classic",
    "space.batch_size=32",
)
"""Trials that take at least 18 s, since nothing of them is cached: their states are saved every 10 s."""


@dataclass
class Cluster:
    """A head and two workers, and a client outside."""

    network: Network
    head: Host
    workers: list[Host]
    client: Host
    tracking: str

    @property
    def address(self) -> str:
        return f"http://{self.head.address}:{DASHBOARD}"

    @property
    def searches(self) -> Path:
        return Path(self.head.environment["TRANSFER_SEARCH_HOME"])

    def join(self, name: str) -> Host:
        """A new worker with one CPU."""
        worker = self.network.host(name)
        worker.ray("--address", f"{self.head.address}:6379", cpus=1)
        return worker

    def command(self, *words: str) -> tuple[str, ...]:
        return ("python", "-m", "search", *words, "--address", self.address)

    def run(self, *words: str, code: int = 0, **environment: str) -> str:
        """What a command prints to the client."""
        ended = self.client.run(*self.command(*words), **environment)
        assert ended.returncode == code, f"{words}\n{ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr + ended.stdout
        return ended.stdout if code == 0 else ended.stderr

    def rows(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def ran_on(self, worker: Host) -> bool:
        """Whether a trial was run on a worker: it then has the images in its cache."""
        return (worker.folder / "cache" / "transfer-search" / "data").exists()

    def states(self, search: str) -> set[Path]:
        """The states from which trials of a search can go on."""
        return set((self.searches / search / "checkpoints").glob("*/state.pt"))

    def begun(self, search: str) -> int:
        """How many trials have a folder; to ask by a command takes as long as a trial."""
        return len(list((self.searches / search / "checkpoints").glob("[0-9]*")))

    def driver(self, search: str) -> int | None:
        """The process that drives a search."""
        try:
            return int(json.loads((self.searches / search / "driver.json").read_text())["pid"])
        except FileNotFoundError:
            return None


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := refusal():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="hosts"))  # Ray's sockets need a short path
    folder.chmod(0o755)
    quick = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000"}
    shared = {
        "TRANSFER_SEARCH_HOME": str(folder / "searches"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_health_check_timeout_ms": "2000",
        **quick,
    }
    try:
        with network(folder, **shared) as hosts:
            yield _started(hosts)
    finally:
        shutil.rmtree(folder)


def _started(hosts: Network) -> Cluster:
    head, client = hosts.host("head"), hosts.host("client")
    database = f"postgresql+psycopg://postgres:{PASSWORD}@{head.address}"
    postgresql(head, PASSWORD, "mlflow", "optuna")
    tracking = mlflow(head, f"{database}/mlflow", "admin", MLFLOW_PASSWORD)
    secrets = {
        "MLFLOW_TRACKING_URI": tracking,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": MLFLOW_PASSWORD,
        "TRANSFER_SEARCH_STORAGE": f"{database}/optuna",
    }
    head.environment.update(secrets)
    head.ray("--head", "--port", "6379", "--dashboard-host", head.address, cpus=0)
    made = Cluster(hosts, head, [], client, tracking)
    until(lambda: head.joined() and answers(client, made.address), "Ray's dashboard")
    made.workers += [made.join("one"), made.join("two")]
    until(lambda: answers(client, f"{tracking}/health"), "MLflow's server")
    until(lambda: all([each.joined() for each in made.workers]), "the workers")
    (client.folder / "small.yaml").write_text(SMALL)
    return made


def test_a_stranger_is_told_what_to_set(cluster: Cluster) -> None:
    without = cluster.run("list", code=2, RAY_AUTH_MODE="disabled")
    assert "asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN" in without
    wrong = cluster.run("list", code=2, RAY_AUTH_TOKEN="a-token-of-another-cluster")
    assert "does not know this token; set RAY_AUTH_TOKEN" in wrong
    health = cluster.rows("doctor")
    assert [check["wrong"] for check in health["cluster"]] == [""] * 7
    nodes = {check["subject"] for check in health["cluster"] if check["subject"].startswith("node ")}
    assert nodes == {f"node {host.address}" for host in (cluster.head, *cluster.workers)}
    assert health["searches"] == {}


@pytest.mark.long
def test_what_no_node_could_give_is_an_error_and_not_a_wait(cluster: Cluster) -> None:
    words = ("launch", "small.yaml", "--set", "resources.gpu=1", "--detach")
    assert "no node could ever give that" in cluster.run(*words, code=2)
    words = ("launch", "small.yaml", "--set", "data.source=./flowers")
    assert "must be an absolute path that every node" in cluster.run(*words, code=2)
    assert not (cluster.searches / "small").exists()


def test_a_search_runs_there_and_is_taken_home(cluster: Cluster, tmp_path: Path) -> None:
    changes = ("name=plain", "search.trials=2", "search.max_epochs=4", "search.pruner=none")
    printed = cluster.run("launch", "small.yaml", *(f"--set={each}" for each in changes))
    assert "2 completed, 0 pruned, 0 failed" in printed
    assert [row["epochs"] for row in cluster.rows("trials", "plain")] == [4, 4]
    _exported(cluster, "plain", tmp_path)


@pytest.mark.long
def test_a_search_outlives_hosts_and_drivers(cluster: Cluster) -> None:
    launch = ("launch", "small.yaml", *(f"--set={each}" for each in SLOW), "--detach")
    said = cluster.run(*launch)
    (job,) = re.findall(r"the job (\S+)", said)
    assert f"was launched before, as the job {job}" in cluster.run(*launch)

    one, two = cluster.workers
    until(lambda: cluster.ran_on(one) and cluster.ran_on(two), "trials on both workers")
    until(lambda: len(cluster.states("moved")) == 2, "a state of each trial")
    two.cut()
    three = cluster.join("three")
    until(lambda: three.joined() and cluster.ran_on(three), "a trial on the new worker")
    assert "is stopped; `transfer-search resume moved` goes on" in cluster.run("stop", "moved")
    assert cluster.driver("moved") is None  # it ended in order, within the time that Ray gives it
    before = {row["trial"]: row for row in cluster.rows("trials", "moved")}

    resumed = cluster.client.start(*cluster.command("resume", "moved"))
    until(lambda: cluster.driver("moved") is not None, "a driver")
    until(lambda: cluster.begun("moved") > len(before), "another trial")
    driver = cluster.driver("moved")
    assert driver is not None
    os.kill(driver, signal.SIGKILL)
    assert resumed.wait(60) != 0

    printed = cluster.run("resume", "moved")
    assert f"{TRIALS} completed, 0 pruned, 0 failed" in printed
    _agree(cluster, "moved", [EPOCHS] * TRIALS, before)
    _reported(cluster, "moved")


def _agree(cluster: Cluster, name: str, epochs: list[int], before: dict[int, dict[str, Any]]) -> None:
    """One Optuna trial and one MLflow run a trial, no point twice, none running, and no secret kept."""
    rows = cluster.rows("trials", name)
    assert [(row["trial"], row["state"], row["epochs"]) for row in rows] == [
        (number, "COMPLETE", each) for number, each in enumerate(epochs)
    ]
    for number, row in before.items():
        assert rows[number]["mlflow_run_id"] == row["mlflow_run_id"]
        assert rows[number]["params"] == row["params"]
    assert all(row["model_uri"] for row in rows)
    status = cluster.rows("status", name)
    assert (status["state"], status["counted"], status["running"]) == ("FINISHED", len(epochs), 0)
    assert cluster.rows("doctor", name) == {name: []}
    kept = [path for path in (cluster.searches / name).rglob("*") if path.is_file()]
    for secret in (PASSWORD, MLFLOW_PASSWORD, TOKEN):
        assert not [path for path in kept if secret.encode() in path.read_bytes()]


def _reported(cluster: Cluster, name: str) -> None:
    refused = cluster.run("export", name, "--to", "out", "--format", "safetensors", code=2)
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused
    assert "report written to page.html" in cluster.run("report", name, "--to", "page.html", **KNOWN)
    assert "<svg" in (cluster.client.folder / "page.html").read_text()


def _exported(cluster: Cluster, name: str, tmp_path: Path) -> None:
    printed = cluster.run("export", name, "--to", "out", "--format", "pt2", **KNOWN)
    assert printed.count("as recorded") == 1
    digits = load_digits()
    images = []
    for index in range(4):
        images.append(tmp_path / f"{index}.png")
        grey = (digits.images[index] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(grey).save(images[-1])
    words = ("predict", "out", *map(str, images), "--json")
    told: subprocess.CompletedProcess[str] = cluster.client.run("python", "-m", "search", *words)
    labels = [row["label"] for row in json.loads(told.stdout)]
    assert sum(label == str(true) for label, true in zip(labels, digits.target[:4], strict=True)) >= 2
