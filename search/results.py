"""What a search has found, as plain rows for people and programs."""

from __future__ import annotations

from typing import Any

from search.errors import BadInput
from search.home import Home
from search.runs import Links
from search.spec import SearchSpec, read_spec
from search.study import Ending, SearchStudy, TrialRecord

__all__ = ["best_rows", "chosen", "summary", "trial_rows"]


def opened(home: Home) -> tuple[SearchSpec, SearchStudy]:
    """The spec and the study of a search that was launched."""
    spec = read_spec(home.spec)
    return spec, SearchStudy.open(spec, home)


def summary(home: Home) -> dict[str, Any]:
    """One search in a row: its state, its counts, its best."""
    _, study = opened(home)
    progress, leader = study.progress(), study.leader()
    state = "RUNNING" if home.driver() else ("FINISHED" if not progress.left else "STOPPED")
    return {
        "search": home.name,
        "state": state,
        **vars(progress),
        "counted": progress.counted,
        "best_trial": leader[0] if leader else None,
        "value": leader[1] if leader else None,
    }


def trial_rows(home: Home, *, linked: bool = True) -> list[dict[str, Any]]:
    """Every trial that was begun, by number, with its state as Optuna's storage says.

    Links to MLflow are left out where not `linked`, which is quicker.
    """
    spec, study = opened(home)
    links = Links(spec, study) if linked else None
    return [_row(home, spec, record, links) for record in study.records()]


def best_rows(home: Home) -> list[dict[str, Any]]:
    """The best trial; several where there are several objectives.

    Raises:
        BadInput: if no trial has completed.
    """
    spec, study = opened(home)
    numbers = {trial.number for trial in study.best()}
    if not numbers:
        raise BadInput(
            f"no trial of {home.name!r} has completed yet; see `transfer-search status {home.name}`"
        )
    links = Links(spec, study)
    return [_row(home, spec, record, links) for record in study.records() if record.number in numbers]


def chosen(home: Home, trial: int | None) -> dict[str, Any]:
    """The row of a trial that has a model: the given one, or the best.

    Raises:
        BadInput: if there is no such trial, or it has no model.
    """
    if trial is None:
        return best_rows(home)[0]
    rows = {row["trial"]: row for row in trial_rows(home)}
    if trial not in rows:
        raise BadInput(f"{home.name!r} has no trial {trial}; it has 0 to {max(rows, default=-1)}")
    if rows[trial]["epoch"] is None:
        raise BadInput(f"trial {trial} of {home.name!r} ended before its first epoch: it has no model")
    return rows[trial]


def _row(home: Home, spec: SearchSpec, record: TrialRecord, links: Links | None) -> dict[str, Any]:
    return {
        "search": home.name,
        "trial": record.number,
        "state": record.state,
        "ending": None if record.ending is None else record.ending.value,
        "value": record.value,
        "epoch": record.best_epoch,
        "epochs": record.epochs,
        "params": record.params,
        "sampled": [name for name in record.params if spec.domain(name).sampled],
        "mlflow_run_id": record.mlflow_run_id,
        "mlflow_run_url": links and links.url(record.mlflow_run_id),
        "model_uri": links and links.model(record.mlflow_run_id),
        "reason": record.reason if record.ending is not Ending.COMPLETED else "",
    }
