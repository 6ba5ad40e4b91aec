"""The models that MLflow keeps of trials: each made once, whole, and found again."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import search
from search.tracking.client import all_models

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

__all__ = ["Models", "as_text"]


class Models:
    """Logs the models of trials into an experiment of the store at `uri`."""

    def __init__(self, client: MlflowClient, uri: str, experiment: str) -> None:
        self._client = client
        self._uri = uri
        self._experiment = experiment

    def log(
        self,
        run: str,
        delta: Path,
        name: str,
        *,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        again: bool,
    ) -> str:
        """Logs the model in the folder `delta` as a run's; returns its id.

        Args:
            run: the trial's.
            delta: what the trial saved.
            name: what MLflow calls it.
            tags, params: of the model.
            again: whether the run may have it already; then it is looked for first.
        """
        from mlflow.entities import LoggedModelOutput

        model = self._known(run) if again else None
        if model is not None and model.status == "READY":
            return str(model.model_id)
        model = model or self._client.create_logged_model(
            self._experiment,
            name=name.replace(".", "_"),  # MLflow allows no dot there
            source_run_id=run,
            tags=dict(tags),
            params={key: as_text(value) for key, value in params.items()},
        )
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(delta, Path(folder) / "data")
            _describe(Path(folder), run, model.model_id)
            self.store(model.artifact_location, Path(folder))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run, [LoggedModelOutput(model.model_id, 0)])
        return str(model.model_id)

    def store(self, location: str, folder: Path) -> None:
        """Writes a folder's files to where a run or a model keeps its own.

        The client's own methods ask the server for that place each time, which we know.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(location, tracking_uri=self._uri).log_artifacts(str(folder))

    def _known(self, run: str) -> LoggedModel | None:
        """The model that a run has: a whole one, or one that was made and never finished."""
        known = list(all_models(self._client, self._experiment, f"source_run_id = '{run}'"))
        whole = [model for model in known if model.status == "READY"]
        pending = [model for model in known if model.status != "READY"]
        for other in pending[0 if whole else 1 :]:
            self._client.delete_logged_model(other.model_id)
        return next(iter([*whole, *pending]), None)


def as_text(value: Any) -> str:
    """A value as MLflow's parameters and tags have it."""
    return value if isinstance(value, str) else json.dumps(value)


def _describe(folder: Path, run: str, model_id: str) -> None:
    """Writes the `MLmodel` file that lets `mlflow.pyfunc.load_model` open a delta."""
    from mlflow import pyfunc
    from mlflow.models import Model

    model = Model(run_id=run, model_id=model_id)
    pyfunc.add_to_model(model, loader_module="trainables.serving", data="data", python_env="python_env.yaml")
    (folder / "python_env.yaml").write_text(
        json.dumps({"dependencies": ["-r requirements.txt"]}), encoding="utf-8"
    )
    (folder / "requirements.txt").write_text(f"transfer-search=={search.__version__}\n", encoding="utf-8")
    model.save(str(folder / "MLmodel"))
