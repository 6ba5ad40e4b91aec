"""Whether MLflow's store can be used, asked before anything is written, and told in its reader's words."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from search.errors import ExperimentDeleted, TrackingError
from search.tracking.client import ask_server, experiment_stage, without_secrets

if TYPE_CHECKING:
    from search.spec.search_spec import SearchSpec

__all__ = ["check_store"]

_ELSE = "or use another store with --set tracking.uri=sqlite:///other.db"
_SCHEMES = "sqlite, postgresql, mysql, mssql, http, https, databricks"
_DATABASES = ("postgresql", "postgres", "mysql", "mssql")


def check_store(spec: SearchSpec) -> None:
    """Checks that runs can be written to the spec's store; makes nothing there.

    Raises:
        Refused: if a server does not know the user.
        ExperimentDeleted: if somebody deleted the experiment.
        TrackingError: if it cannot be used, with what to do.
    """
    uri, shown = spec.tracking_uri, spec.tracking.uri
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if re.match(r"[\w.-]+:\d+(/|$)", uri):
        raise TrackingError(f"tracking.uri is {shown}, which names no protocol; write http://{uri}")
    if scheme in ("", "file"):
        raise TrackingError(
            f"tracking.uri is {shown}, a folder of files, which MLflow no longer writes; move what it holds "
            f"with `mlflow migrate-filestore`, {_ELSE}"
        )
    if scheme == "sqlite":
        _check_sqlite(uri, shown, spec.tracking.experiment)
        return
    if scheme not in (*_DATABASES, "http", "https", "databricks", "databricks-uc", "uc"):
        raise TrackingError(f"tracking.uri is {shown}, but its protocol must be one of {_SCHEMES}")
    if scheme in _DATABASES:
        _check_database(uri, shown)
    else:
        ask_server(uri)
    stage, number = experiment_stage(uri, spec.tracking.experiment)
    if stage == "deleted":
        raise _deleted(spec.tracking.experiment, uri, number)


def _check_database(uri: str, shown: str) -> None:
    """Connects once; MLflow itself tries for minutes."""
    try:
        create_engine(uri).connect().close()
    except (ImportError, SQLAlchemyError) as error:
        said = error.orig if isinstance(error, DBAPIError) else error
        reason = next(iter(str(said).strip().splitlines()), type(error).__name__)
        raise TrackingError(
            f"MLflow's database {shown} (tracking.uri) cannot be opened: {reason}; see that it runs and "
            f"takes this user, and that its driver is installed, {_ELSE}"
        ) from error


def _check_sqlite(uri: str, shown: str, experiment: str) -> None:
    try:
        name = make_url(uri).database
    except ArgumentError as error:
        raise TrackingError(f"tracking.uri is {shown}, which is no address; write sqlite:///FILE") from error
    file = Path(name or ":memory:")
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=20)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
            versions = (
                [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
                if "alembic_version" in tables
                else []
            )
            stages = (
                connection.execute(
                    "SELECT lifecycle_stage, experiment_id FROM experiments WHERE name = ?", (experiment,)
                ).fetchall()
                if versions and "experiments" in tables
                else []
            )
    except sqlite3.Error as error:
        raise TrackingError(
            f"MLflow's store {file} (tracking.uri) cannot be read: {error}; if it is no database of "
            f"MLflow's, move it away, {_ELSE}"
        ) from error
    if not versions:
        if tables & {"experiments", "runs", "metrics", "params"}:
            raise TrackingError(f"{file} (tracking.uri) is a database of something else than MLflow; {_ELSE}")
        return
    known, head = _revisions()
    if head and versions[0] not in known:
        raise TrackingError(
            f"MLflow's store {file} (tracking.uri) was written by a newer MLflow than the one installed "
            f"here; install that, {_ELSE}"
        )
    if head and versions[0] != head:
        raise TrackingError(
            f"MLflow's store {file} (tracking.uri) was written by an older MLflow; copy the file, then bring "
            f"it up to date with `mlflow db upgrade sqlite:///{file}`, {_ELSE}"
        )
    if stages and stages[0][0] == "deleted":
        raise _deleted(experiment, uri, stages[0][1])


def _deleted(experiment: str, uri: str, number: object) -> ExperimentDeleted:
    return ExperimentDeleted(
        f"MLflow's experiment {experiment!r} was deleted; restore it with `MLFLOW_TRACKING_URI="
        f"{without_secrets(uri)} mlflow experiments restore --experiment-id {number}`, or write to another "
        "with --set tracking.experiment=NAME"
    )


def _revisions() -> tuple[set[str], str | None]:
    """The versions of a database that the installed MLflow knows, and the one that it writes."""
    found, before = set(), set()
    for text in _migrations():
        own = re.search(r"^revision(?::.*)? = ['\"](\w+)['\"]", text, re.MULTILINE)
        down = re.search(r"^down_revision(?::.*)? = ['\"](\w+)['\"]", text, re.MULTILINE)
        if own:
            found.add(own[1])
        if down:
            before.add(down[1])
    heads = found - before
    return found, heads.pop() if len(heads) == 1 else None


def _migrations() -> Iterator[str]:
    package = find_spec("mlflow")  # not imported: that takes seconds
    for place in (package.submodule_search_locations or []) if package else []:
        for file in Path(place, "store", "db_migrations", "versions").glob("*.py"):
            yield file.read_text(encoding="utf-8")
