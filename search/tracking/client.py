"""MLflow's client, and what all that reads or writes there shares."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from sqlalchemy import make_url

from search.errors import Refused, TrackingError
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.tracking.moved import moved_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

__all__ = [
    "DAMAGE_TAG",
    "MOVES_TAG",
    "SEARCH_TAG",
    "STATE_TAG",
    "all_models",
    "all_runs",
    "ask_server",
    "connect",
    "experiment_stage",
    "is_refusal",
    "load_mlflow",
    "number_tag",
    "prepared",
    "refuse",
    "without_secrets",
]

log = logging.getLogger(__name__)

SEARCH_TAG = "transfer_search.search_id"
STATE_TAG = "state"
MOVES_TAG = "moves"
DAMAGE_TAG = "damage"


_REFUSALS = (
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "BAD_REQUEST",
    "NOT_FOUND",
)
"""How MLflow says that it will never take something, as of a run that was deleted."""


def number_tag(role: str) -> str:
    """The tag that holds the number of a run in its study: a trial's, or a finalist's."""
    return f"transfer_search.{role}"


def load_mlflow(*, whole: bool = False) -> None:
    """Imports MLflow, which takes seconds; the `whole` of what a search uses, or the rest when it is used."""
    # Without these, a server that is away holds each call for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    if whole:
        import mlflow.models
        import mlflow.pyfunc
        import mlflow.store.artifact.artifact_repository_registry
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def connect(uri: str) -> MlflowClient:
    load_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def prepared(spec: SearchSpec) -> MlflowClient:
    """A client whose store has its tables, with the addresses that its files have now.

    Raises:
        TrackingError: if MLflow cannot open it.
    """
    uri = spec.tracking_uri
    file = Path((uri.startswith("sqlite:") and make_url(uri).database) or ":memory:")
    try:
        if moved := moved_store(uri):
            log.warning("%s; the tables are given the new addresses", moved)
            moved.mend()
        lock = file.with_name(f".{file.name}.lock")
        if str(file) == ":memory:" or not file.parent.is_dir() or (file.exists() and not lock.exists()):
            return connect(uri)
        with FileLock(lock):  # two that make the same tables at a time break each other's work
            client = connect(uri)
            client.search_experiments(max_results=1)
            lock.unlink(missing_ok=True)
            return client
    except Exception as error:  # of any of its stores
        refuse(error, spec.tracking.uri)
        said = next(iter(str(error).splitlines()), "")
        raise TrackingError(
            f"MLflow at {spec.tracking.uri} cannot be opened: {type(error).__name__}: {said}; see that it is "
            "right, or give another with --set tracking.uri=…"
        ) from error


def is_refusal(error: Exception) -> bool:
    """Whether an event failed for good: what it names is gone, or is not allowed. Else MLflow is away."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    # A damaged event, or files that are gone.
    return isinstance(error, KeyError | TypeError | ValueError | AttributeError | FileNotFoundError)


def refuse(error: Exception, uri: str) -> None:
    """Raises `Refused` where `error` says that a server does not take the caller."""
    if any(code in str(error) for code in ("error code 401", "error code 403", "PERMISSION_DENIED")):
        raise Refused(
            f"MLflow at {uri} wants a user and a password that it knows; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
        ) from error


def ask_server(uri: str) -> str:
    """Asks MLflow for an experiment; returns its address, without what is secret in it.

    Raises:
        Refused: if it does not know the user.
        TrackingError: if it does not answer.
    """
    shown = without_secrets(uri)
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception as error:  # of any of its stores
        refuse(error, shown)
        said = next(iter(str(error).replace(uri, shown).splitlines()), type(error).__name__)
        raise TrackingError(
            f"MLflow at {shown} does not answer: {said}; see that it runs, and that its address is right"
        ) from error
    return shown


def experiment_stage(uri: str, name: str) -> tuple[str | None, str]:
    """`active` or `deleted`, or None where a store has no such experiment; and its id."""
    found = connect(uri).get_experiment_by_name(name)
    return (None, "") if found is None else (str(found.lifecycle_stage), str(found.experiment_id))


def without_secrets(uri: str) -> str:
    """An address without a user and a password."""
    return re.sub("://[^/]*@", "://", uri)


def all_models(client: MlflowClient, experiment: str, condition: str) -> Iterator[LoggedModel]:
    token = None
    while True:
        page = client.search_logged_models(
            [experiment], filter_string=condition, max_results=500, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def all_runs(client: MlflowClient, spec: SearchSpec, study: SearchStudy) -> Iterator[Run]:
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    token = None
    while experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id],
            f"tags.`{SEARCH_TAG}` = '{study.search_id}'",
            max_results=500,
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return
