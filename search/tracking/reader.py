"""What MLflow knows of a search's trials."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.spec.search_spec import SearchSpec
from search.study.refit import SEEN
from search.study.search_study import SearchStudy
from search.tracking.client import SEARCH_TAG, STATE_TAG, all_models, all_runs, connect, number_tag
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import checked_model

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

__all__ = ["ChildRun", "ParentRun", "RunModel", "child_runs", "delete_models", "delete_run", "parent_run"]


@dataclass(frozen=True, kw_only=True)
class RunModel:
    """A logged model of a run.

    Attributes:
        model_id: MLflow's.
        is_ready: whether it was finished.
        metric: what its card names, with its epoch; None where it cannot be read.
        damage: why its files are no whole model; "": they are.
    """

    model_id: str
    is_ready: bool
    metric: Mapping[str, float] | None
    damage: str


@dataclass(frozen=True, kw_only=True)
class ChildRun:
    """What MLflow knows of a trial.

    Attributes:
        run_id, status: MLflow's.
        state: the tag.
        params, tags: by name.
        points: step and value of every point of a metric, by its name.
        models: every logged model that is not deleted.
    """

    run_id: str
    status: str
    state: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: Mapping[str, list[tuple[int, float]]]
    models: tuple[RunModel, ...]


@dataclass(frozen=True, kw_only=True)
class ParentRun:
    """What MLflow knows of the search: status, and whether it is there."""

    status: str
    is_there: bool


def parent_run(spec: SearchSpec, study: SearchStudy) -> ParentRun:
    """The search's own run."""
    from mlflow.exceptions import MlflowException

    if study.parent_run is None:
        return ParentRun(status="", is_there=False)
    try:
        info = connect(spec.tracking_uri).get_run(study.parent_run).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ParentRun(status="", is_there=False)
    return ParentRun(status=info.status, is_there=info.lifecycle_stage == "active")


def child_runs(spec: SearchSpec, study: SearchStudy) -> dict[int, list[ChildRun]]:
    """The child runs of a study, by trial number."""
    client = connect(spec.tracking_uri)
    models: dict[str, list[RunModel]] = {}
    experiment = client.get_experiment_by_name(spec.tracking.experiment)
    condition = f"tags.`{SEARCH_TAG}` = '{study.search_id}'"
    for model in all_models(client, experiment.experiment_id, condition) if experiment else ():
        models.setdefault(model.source_run_id or "", []).append(_read(spec, model))
    found: dict[int, list[ChildRun]] = {}
    for run in all_runs(client, spec, study):
        number = run.data.tags.get(number_tag(study.role))
        if number is None:
            continue
        points = {
            name.removeprefix(SEEN): [
                (point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        found.setdefault(int(number), []).append(
            ChildRun(
                run_id=run.info.run_id,
                status=run.info.status,
                state=run.data.tags.get(STATE_TAG, ""),
                params=dict(run.data.params),
                tags=dict(run.data.tags),
                points=points,
                models=tuple(models.get(run.info.run_id, ())),
            )
        )
    return found


def _read(spec: SearchSpec, model: LoggedModel) -> RunModel:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    metric, damage = None, ""
    with tempfile.TemporaryDirectory(prefix="transfer-search-") as folder:
        try:
            files = get_artifact_repository(model.artifact_location, tracking_uri=spec.tracking_uri)
            metric = checked_model(Path(files.download_artifacts("data", folder)))
        except Damaged as error:
            damage = str(error).replace(f"{folder}/", "")
        except Exception as error:  # of any of its stores
            damage = f"its files cannot be read: {error}"
    return RunModel(model_id=model.model_id, is_ready=model.status == "READY", metric=metric, damage=damage)


def delete_run(spec: SearchSpec, run: ChildRun) -> None:
    """Deletes a run and its models; MLflow can restore it."""
    delete_models(spec, run)
    connect(spec.tracking_uri).delete_run(run.run_id)


def delete_models(spec: SearchSpec, run: ChildRun) -> None:
    """Deletes the models of a run."""
    for model in run.models:
        connect(spec.tracking_uri).delete_logged_model(model.model_id)
