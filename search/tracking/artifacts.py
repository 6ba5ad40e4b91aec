"""Files of a search that MLflow keeps: reports and exports."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from search.errors import TrackingError
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.tracking.client import connect, refuse, without_secrets
from search.tracking.moved import missing_store

__all__ = ["REPORT", "fetch_files", "log_report", "store_files", "stored_report"]

REPORT = "report.html"
"""The report's name on the search's parent run."""


def log_report(spec: SearchSpec, study: SearchStudy, text: str, file: str) -> str | None:
    """Puts a file of text on the search's parent run; returns why MLflow did not take it, if so."""
    if study.parent_run is None:
        return "the search has no run there"
    if gone := missing_store(spec.tracking_uri):
        return f"its store {gone} is not there"
    try:
        connect(spec.tracking_uri).log_text(study.parent_run, text, file)
    except Exception as error:  # of any of its stores; the report itself is written
        return str(error).splitlines()[0]
    return None


def stored_report(spec: SearchSpec, study: SearchStudy, refused: str | None) -> dict[str, str]:
    """What `fetch_files` needs to find a report that was logged.

    Raises:
        TrackingError: if MLflow did not take it, for the reason `refused`.
    """
    if refused or study.parent_run is None:
        raise TrackingError(f"the report goes through MLflow, which did not take it: {refused}")
    return {"uri": without_secrets(spec.tracking_uri), "run": study.parent_run, "path": REPORT}


def store_files(spec: SearchSpec, run: str, folder: Path, path: str) -> dict[str, str]:
    """Keeps a folder's files as artifacts of a run; returns what `fetch_files` needs to find them."""
    connect(spec.tracking_uri).log_artifacts(run, str(folder), path)
    return {"uri": without_secrets(spec.tracking_uri), "run": run, "path": path}


def fetch_files(stored: Mapping[str, str], to: Path) -> None:
    """Brings the folder or the file that MLflow keeps to `to`, in place of what is there.

    MLflow is asked at MLFLOW_TRACKING_URI, or else where the cluster knows it.

    Raises:
        Refused: if MLflow does not know the user.
        TrackingError: if it cannot be reached from here.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or stored["uri"]
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".export-") as folder:
        try:
            fetched = connect(uri).download_artifacts(stored["run"], stored["path"], folder)
        except Exception as error:
            refuse(error, stored["uri"])
            raise TrackingError(
                f"the files cannot be fetched from MLflow at {stored['uri']}: {error}; if it has another "
                "address here, set MLFLOW_TRACKING_URI to that"
            ) from error
        shutil.rmtree(to, ignore_errors=True)
        os.replace(fetched, to)
