"""A cluster's health, as a Ray of one node has it; `test_cluster` asks one of three hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.answers import said
from search.cluster.health import Check, checks, versions
from tests.search.commands import transfer_search

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture
def head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a head where all is well."""
    monkeypatch.setenv("TRANSFER_SEARCH_HOME", str(folder / "searches"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("TRANSFER_SEARCH_STORAGE", f"sqlite:///{folder}/optuna.db")
    return monkeypatch


def found(caller: str | None = None) -> dict[str, Check]:
    return {check.subject.partition(" ")[0]: check for check in checks(caller or versions(), node_seconds=30)}


def test_all_is_well(head: pytest.MonkeyPatch, folder: Path) -> None:
    told = found()
    assert list(told) == ["versions", "searches", "node", "MLflow", "Optuna"]
    assert [check.wrong for check in told.values()] == [""] * 5
    assert "GPU 1" in told["node"].told
    assert list((folder / "searches").iterdir()) == []
    printed = said(transfer_search("doctor", "--caller", versions()), "examined")
    assert printed is not None
    assert [check["subject"] for check in printed["cluster"]][:2] == ["versions", "searches"]
    assert printed["searches"] == {}


def test_what_is_wrong_says_what_to_set(head: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "file").touch()
    head.setenv("TRANSFER_SEARCH_HOME", str(folder / "file" / "searches"))
    head.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    head.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    head.setenv("TRANSFER_SEARCH_STORAGE", "postgresql://me:hunter2@127.0.0.1:9/searches")
    told = found("Ray 1.0, Python 2.7")
    assert list(told) == ["versions", "searches", "MLflow", "Optuna"]
    assert "you have Ray 1.0, Python 2.7; install the same on both" in told["versions"].wrong
    assert "set TRANSFER_SEARCH_HOME" in told["searches"].wrong
    assert "MLflow at http://127.0.0.1:9 does not answer" in told["MLflow"].wrong
    assert "TRANSFER_SEARCH_STORAGE cannot be opened" in told["Optuna"].wrong
    assert "hunter2" not in str(told)
    head.delenv("MLFLOW_TRACKING_URI")
    assert "MLFLOW_TRACKING_URI is not set" in found()["MLflow"].wrong


def test_a_folder_that_nodes_do_not_share_is_told(head: pytest.MonkeyPatch, folder: Path) -> None:
    from search.cluster import health

    # The head looks for what the node wrote in another place, as it does where each has a disk of its own.
    head.setattr(health, "_own", lambda probe, node: folder / "elsewhere" / probe.name)
    assert "is not shared: the node cannot write there: No such file" in found()["node"].wrong
