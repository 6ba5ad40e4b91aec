"""Where a person or a program finds a search's runs and models in MLflow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from sqlalchemy import make_url

from search.processes import python
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.tracking.client import SEARCH_TAG, all_models, connect
from search.tracking.moved import missing_store

__all__ = ["DEFAULT_PORT", "Links", "served_port", "told_port", "ui_command", "view_url"]

DEFAULT_PORT = 5000
_TRAINING = "workflowType=machine_learning"  # else MLflow opens an experiment without Runs and Models


class Links:
    """Where a search's runs and models are; only for models MLflow is asked, when it first comes to them."""

    def __init__(self, spec: SearchSpec, study: SearchStudy) -> None:
        self._spec = spec
        self._search_id = study.search_id
        self._experiment = study.experiment

    def url(self, run: str | None) -> str | None:
        """Where a person sees a run: at the server, or at `transfer-search ui`."""
        if run is None or self._experiment is None:
            return None
        return f"{self._host}/#/experiments/{self._experiment}/runs/{run}?{_TRAINING}"

    @property
    def view(self) -> str | None:
        """Where a person sees all trials of the search, the best first."""
        if self._experiment is None:
            return None
        return view_url(self._host, self._experiment, self._search_id)

    @property
    def is_served(self) -> bool:
        """Whether something answers where the links lead, as far as this machine knows."""
        return self._spec.tracking_uri.startswith("http") or served_port(self._spec.tracking_uri) is not None

    @cached_property
    def _host(self) -> str:
        uri = self._spec.tracking_uri
        if uri.startswith("http"):
            return uri.rstrip("/")
        return f"http://127.0.0.1:{served_port(uri) or DEFAULT_PORT}"

    def model(self, run: str | None) -> str | None:
        """The URI under which MLflow loads the model of a run; None if it has none."""
        model = self._models.get(run or "")
        return None if model is None else f"models:/{model}"

    @cached_property
    def _models(self) -> dict[str, str]:
        if self._experiment is None or missing_store(self._spec.tracking_uri):
            return {}
        condition = f"tags.`{SEARCH_TAG}` = '{self._search_id}'"
        found = all_models(connect(self._spec.tracking_uri), self._experiment, condition)
        return {model.source_run_id or "": model.model_id for model in found if model.status == "READY"}


def view_url(host: str, experiment: str, search_id: str) -> str:
    """The table of a search's trials that `notes.shared_view` describes, on a server."""
    return f"{host}/#/experiments/{experiment}/runs?{_TRAINING}&viewStateShareKey={search_id}"


def ui_command(uri: str, port: int) -> list[str]:
    """The command that serves MLflow's pages on a store, on this machine alone, by one process."""
    words = ("server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port))
    return python("mlflow", *words, "--workers", "1")


def served_port(uri: str) -> int | None:
    """The port at which `transfer-search ui` serves a SQLite store now; None where it does not."""
    note = _note(uri)
    try:
        told = json.loads(note.read_text(encoding="utf-8")) if note else {}
        os.kill(int(told["pid"]), 0)
        return int(told["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def told_port(uri: str, port: int) -> Iterator[None]:
    """Lets `served_port` know, while the block runs, where this process serves a store."""
    note = _note(uri)
    if note is None:
        yield
        return
    with suppress(OSError):  # links then lead to the usual port
        note.write_text(json.dumps({"pid": os.getpid(), "port": port}), encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _note(uri: str) -> Path | None:
    """The file beside a SQLite store that says who serves it."""
    file = make_url(uri).database if uri.startswith("sqlite:") else None
    return Path(f"{file}.ui.json") if file and file != ":memory:" else None
