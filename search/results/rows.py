"""What a search has found, as plain rows for people and programs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from search.errors import BadInput, TransferSearchError
from search.home import Home
from search.spec.search_spec import SearchSpec, read_spec
from search.study.finalists import Finalist, FinalistStudy, candidates, standings
from search.study.search_study import Ending, SearchStudy, TrialRecord
from search.tracking.links import Links
from trainables.record import MODEL_FOLDER

__all__ = ["best_rows", "chosen", "model_folder", "summaries", "summary", "told", "trial_rows"]


def opened(home: Home) -> tuple[SearchSpec, SearchStudy]:
    """The spec and the study of a search that was launched.

    Raises:
        BadInput: if one of them is not there, or damaged.
    """
    if not home.spec.exists():
        home.check_free()
    spec = read_spec(home.spec)
    return spec, SearchStudy.open(spec, home)


def summary(home: Home) -> dict[str, Any]:
    """One search in a row: its state, its counts, its best."""
    _, study = opened(home)
    progress, leader, finalists = study.progress(), study.leader(), _finalists(study, home)
    over = (
        not progress.left
        and not progress.running
        and (finalists is None or finalists["ended"] == finalists["runs"])
    )
    state = "RUNNING" if home.driver() else ("FINISHED" if over else "STOPPED")
    return {
        "search": home.name,
        "state": state,
        **vars(progress),
        "counted": progress.counted,
        "best_trial": leader[0] if leader else None,
        "value": leader[1] if leader else None,
        "finalists": finalists,
    }


def summaries(homes: Iterable[Home]) -> list[dict[str, Any]]:
    """Every search in a row; one that cannot be opened says why under `wrong`, and ends no other."""
    rows = []
    for home in homes:
        try:
            rows.append(summary(home))
        except Exception as error:  # of whatever a damaged file makes its reader stumble on
            rows.append({"search": home.name, "state": "BROKEN", "wrong": told(error)})
    return rows


def told(error: Exception) -> str:
    """An error of a search, in the words that are for people."""
    if isinstance(error, TransferSearchError):
        return str(error)
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _finalists(search: SearchStudy, home: Home) -> dict[str, int] | None:
    """How many runs the search's finalists have, and how many have ended; None where it has none."""
    wanted, chosen = search.spec.search.finalists, candidates(search)
    if wanted is None or (not chosen and not search.progress().left):
        return None
    study = FinalistStudy.within(search, home)
    latest = study.latest() if study else {}
    ended = [pair for pair, run in latest.items() if pair[0] in chosen and run.state != "RUNNING"]
    runs = (len(chosen) if not search.progress().left else wanted.top) * wanted.seeds
    return {"runs": runs, "ended": len(ended)}


def trial_rows(home: Home, *, linked: bool = True) -> list[dict[str, Any]]:
    """Every trial that was begun, by number, with its state as Optuna's storage says.

    Where not `linked`, MLflow is not asked for the models, which is quicker.
    """
    spec, study = opened(home)
    links = Links(spec, study)
    return [_row(home, spec, record, links, linked) for record in study.records()]


def best_rows(home: Home, *, linked: bool = True) -> list[dict[str, Any]]:
    """The best trial; several where there are several objectives.

    Where the search's finalists have run, the winner among them: `trial` is the search's, the rest is of
    its fresh run with the best validation value, and `finalists` has all of them, the winner first. Where
    not `linked`, MLflow is not asked for the models.

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
    ranked = standings(study, home)
    if ranked:
        row = _finalist_row(home, spec, study, ranked[0], links, linked)
        return [{**row, "finalists": [finalist.row() for finalist in ranked]}]
    return [_row(home, spec, record, links, linked) for record in study.records() if record.number in numbers]


def _finalist_row(
    home: Home, spec: SearchSpec, study: SearchStudy, finalist: Finalist, links: Links, linked: bool
) -> dict[str, Any]:
    """The row of a finalist's fresh run with the best validation value."""
    runs = FinalistStudy.within(study, home)
    assert runs is not None, "finalists stand only where their study is"
    run = next(record for record in runs.records() if record.number == finalist.run)
    return {
        **_row(home, spec, run, links, linked),
        "trial": finalist.trial,
        "finalist_run": run.number,
        "objective": next(iter(spec.search.objective)),
    }


def model_folder(home: Home, row: dict[str, Any]) -> Path:
    """Where the model of a row of `chosen` lies."""
    run = row.get("finalist_run")
    folder = home.trial(row["trial"]) if run is None else home.finalists.trial(run)
    return folder / MODEL_FOLDER


def chosen(home: Home, trial: int | None, finalist: int | None = None) -> dict[str, Any]:
    """The row of a trial that has a model: the given one, or the best, as `best_rows` gives it.

    Args:
        home: the search's.
        trial: its number, for the model of the search itself.
        finalist: the number of a trial among the finalists, for the best of its fresh runs.

    Raises:
        BadInput: if there is no such trial, or it has no model.
    """
    if finalist is not None:
        spec, study = opened(home)
        ranked = {each.trial: each for each in standings(study, home) if each.run is not None}
        if finalist not in ranked:
            known = f"it has {', '.join(map(str, ranked))}" if ranked else "none have ended"
            raise BadInput(f"{home.name!r} has no finalist {finalist}; {known}")
        return _finalist_row(home, spec, study, ranked[finalist], Links(spec, study), True)
    if trial is None:
        return best_rows(home)[0]
    rows = {row["trial"]: row for row in trial_rows(home)}
    if trial not in rows:
        raise BadInput(f"{home.name!r} has no trial {trial}; it has 0 to {max(rows, default=-1)}")
    if rows[trial]["epoch"] is None:
        raise BadInput(f"trial {trial} of {home.name!r} ended before its first epoch: it has no model")
    return rows[trial]


def _row(home: Home, spec: SearchSpec, record: TrialRecord, links: Links, linked: bool) -> dict[str, Any]:
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
        "mlflow_run_url": links.url(record.mlflow_run_id),
        "model_uri": links.model(record.mlflow_run_id) if linked else None,
        "reason": record.reason if record.ending is not Ending.COMPLETED else "",
    }
