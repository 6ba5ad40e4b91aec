"""What must be true of a search that has ended, whatever happened to it: Optuna, MLflow, the disk, by point.

It is written apart from the doctor, who is asked too: each is held to the other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from search.home import Home
from search.results.findings import findings
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.study.trials import ENDINGS, Ending, TrialRecord
from search.tracking.client import all_models
from trainables.files.trial_folder import Epochs, checked_model, model_metric, read_epochs
from trainables.record import METRICS, MODEL_FOLDER, RECORD_FOLDER

__all__ = ["Losses", "losses", "seen"]

Seen = Mapping[tuple[int, int], float]


@dataclass
class Losses:
    """Where a search is not what it must be; each is a list of sentences."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        return [each for name in fields(self) for each in getattr(self, name.name)]


def seen(home: Home) -> dict[tuple[int, int], float]:
    """What a user who looks at the study now sees: the value of each trial's epochs."""
    query = (
        "select number, step, intermediate_value from trial_intermediate_values join trials using (trial_id)"
    )
    with closing(sqlite3.connect(home.root / "study.db")) as connection:
        return {(number, step): value for number, step, value in connection.execute(query)}


def losses(spec: SearchSpec, home: Home, before: Seen = {}) -> Losses:  # noqa: B006  never changed
    """Where the ended search in `home` breaks an invariant.

    Args:
        spec: the search's.
        home: its own.
        before: what users have seen of it, ever.
    """
    found, study, now = Losses(), SearchStudy.open(spec, home), seen(home)
    for (number, step), value in before.items():
        if now.get((number, step)) != value:
            found.lost.append(f"epoch {step} of trial {number} was {value}, and is {now.get((number, step))}")
    records = study.records()
    trials = len(records) if any(each.ending is Ending.ABANDONED for each in records) else spec.search.trials
    if [record.number for record in records] != list(range(trials)):
        found.others.append(f"trials {[record.number for record in records]}")
    runs, models = _in_mlflow(spec, study, found)
    for record in records:
        name, folder = f"trial {record.number}", home.trial(record.number)
        if record.ending is None:
            found.running.append(f"{name} in Optuna")
            continue
        recorded, card = read_epochs(folder), model_metric(folder)
        _in_folder(found, name, folder, record, study.reported(record.number), recorded, card)
        if record.ending is Ending.COMPLETED and len(recorded) != spec.search.max_epochs:
            found.lost.append(f"{name} is complete with epochs {sorted(recorded)}")
        mine = runs.get(record.number, [])
        if len(mine) != 1:
            found.doubled.append(f"{name} has {len(mine)} runs")
            continue
        _in_run(found, name, record, mine[0], _points(spec, mine[0]), recorded)
        logged = models.get(mine[0].info.run_id, [])
        if len(logged) != (card is not None) or any(status != "READY" for status, _ in logged):
            found.models.append(f"{name}: MLflow has the models {logged}")
        elif logged and checked_model(logged[0][1] / "data") != card:
            found.models.append(f"{name}: its model in MLflow is another")
    found.others += [each.text for each in findings(home, spec, study)]
    return found


def _in_mlflow(
    spec: SearchSpec, study: SearchStudy, found: Losses
) -> tuple[dict[int, list[Run]], dict[str, list[tuple[str, Path]]]]:
    """The runs of each trial; and of each run the models, with their states and places."""
    client, experiment = MlflowClient(spec.tracking_uri), str(study.experiment)
    condition = f"tags.`transfer_search.search_id` = '{study.search_id}'"
    every = client.search_runs([experiment], condition, max_results=1000)
    found.running += [f"run {run.info.run_name}" for run in every if run.info.status == "RUNNING"]
    runs: dict[int, list[Run]] = {}
    for run in every:
        if (tag := run.data.tags.get("transfer_search.trial")) is not None:
            runs.setdefault(int(tag), []).append(run)
    if (own := len(every) - sum(map(len, runs.values()))) != 1:
        found.doubled.append(f"{own} runs of the search itself")
    models: dict[str, list[tuple[str, Path]]] = {}
    for model in all_models(client, experiment, condition):
        place = Path(model.artifact_location.removeprefix("file://"))
        models.setdefault(str(model.source_run_id), []).append((str(model.status), place))
    return runs, models


def _points(spec: SearchSpec, run: Run) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient(spec.tracking_uri)
    return {
        metric: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, metric)]
        for metric in METRICS
    }


def _in_folder(
    found: Losses,
    name: str,
    folder: Path,
    record: TrialRecord,
    reported: Mapping[int, float],
    recorded: Epochs,
    card: Mapping[str, float] | None,
) -> None:
    """Holds a trial's folder to the study."""
    if sorted(reported) != list(range(1, len(reported) + 1)):
        found.lost.append(f"{name} has epochs {sorted(reported)}")
    if reported != {epoch: metrics["val_accuracy"] for epoch, metrics in recorded.items()}:
        found.lost.append(f"{name}: Optuna has {reported}, and its record {recorded}")
    if stray := {each.name for each in folder.iterdir()} - {MODEL_FOLDER, RECORD_FOLDER}:
        found.others.append(f"{name} has left {stray}")
    if (card is None) != (record.best is None):
        found.models.append(f"{name}: model {card}, ending {record.best}")
    elif card is not None and any(card[key] != (record.best or {}).get(key) for key in card):
        found.models.append(f"{name}: its model and its ending differ")
    elif card is not None and recorded[int(card["epoch"])]["val_accuracy"] != card["val_accuracy"]:
        found.models.append(f"{name}: its model and its record differ")


def _in_run(
    found: Losses,
    name: str,
    record: TrialRecord,
    run: Run,
    points: Mapping[str, list[tuple[int, float]]],
    recorded: Epochs,
) -> None:
    """Holds a trial's run to its ending and its record."""
    assert record.ending is not None
    status, state = run.info.status, run.data.tags["state"]
    if (status, state) != (ENDINGS[record.ending].mlflow, record.ending.value):
        found.running.append(f"{name} is {record.ending}, its run {status} {state}")
    for metric, mine in points.items():
        if len({step for step, _ in mine}) < len(mine):
            found.doubled.append(f"{name}: {metric} has the points {mine}")
        if dict(mine) != {epoch: metrics[metric] for epoch, metrics in recorded.items()}:
            found.lost.append(f"{name}: MLflow has {metric} {mine}, and its record {recorded}")
