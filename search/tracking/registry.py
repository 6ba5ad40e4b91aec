"""Registered models: an exported graph that serves anywhere, and an alias that only moves to what is better.

What is registered needs onnxruntime, MLflow and what reads an example, and not this package: its code is the
`classify.py` of an export. It takes texts, or bytes of image files, in base64 over HTTP; it opens no path.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import BadInput, TrackingError
from search.spec.search_spec import SearchSpec
from search.tracking.client import SEARCH_TAG, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

__all__ = ["Candidate", "check_names", "defended", "registered", "served_model"]

Example = Mapping[str, bytes | str]

LOADER = "transfer_search_classify"
_REQUIRED = ("mlflow", "pandas")
_NAME = re.compile(r"[^/:]+")
_ALIAS = re.compile(r"(?!v\d+$|latest$)[A-Za-z0-9_-]+", re.IGNORECASE)

DATA_TAG = "transfer_search.data"
METRIC_TAG = "transfer_search.metric"
VALUE_TAG = "transfer_search.value"
TRIAL_TAG = "transfer_search.trial"
NAME_TAG = "transfer_search.search"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that asks for a name, and perhaps for an alias that another has.

    Attributes:
        search, search_id, trial: where it comes from.
        run: MLflow's run of the trial.
        epoch: of its weights.
    metric, direction: what it is judged by.
        value: its value on the validation images.
        data: their fingerprint.
        metrics, params: what else is known of it.
        description: in Markdown, for people.
    """

    search: str
    search_id: str
    trial: int
    run: str
    epoch: int
    metric: str
    direction: str
    value: float
    data: str
    metrics: Mapping[str, float]
    params: Mapping[str, Any]
    description: str

    def is_worse_than(self, value: float) -> bool:
        return self.value < value if self.direction == "maximize" else self.value > value


def check_names(name: str, alias: str | None) -> None:
    """Checks a registered model's name and alias.

    Raises:
        BadInput: for what MLflow does not take.
    """
    if not _NAME.fullmatch(name) or name != name.strip():
        raise BadInput(
            f"the model's name is {name!r}, but must be text without / and : and without blanks around it; "
            "give another with --register"
        )
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise BadInput(
            f"the alias is {alias!r}, but must be letters, digits, dashes and underscores, and neither "
            "latest nor v with a number; give another with --alias"
        )


def defended(
    spec: SearchSpec, candidate: Candidate, name: str, alias: str, measure: Callable[[Path], float | None]
) -> None:
    """Checks that an alias may move to the candidate.

    Args:
        spec: says where MLflow is.
        candidate: the model that is to have the alias.
        name, alias: of the registered model.
        measure: the value, on the candidate's validation images, of a graph in a file; None where it cannot
            be measured. Asked where the holder of the alias was judged on other images.

    Raises:
        BadInput: if the model that has it is better, or cannot be compared.
    """
    holder = _holder(connect(spec.tracking_uri), name, alias)
    if holder is None:
        return
    origin = f"trial {holder.tags.get(TRIAL_TAG, '?')} of {holder.tags.get(NAME_TAG, '?')}"
    who = f"version {holder.version} ({origin})"
    is_same = (holder.tags.get(DATA_TAG), holder.tags.get(METRIC_TAG)) == (candidate.data, candidate.metric)
    if is_same:
        value = float(holder.tags[VALUE_TAG])
    else:
        measured = _measured(spec, holder, measure)
        if measured is None:
            raise BadInput(
                f"{name}@{alias} is {who}, which cannot be compared with trial {candidate.trial} on the same "
                f"validation {spec.items}; move the alias all the same with --force"
            )
        value = measured
    if candidate.is_worse_than(value):
        raise BadInput(
            f"{name}@{alias} is {who} with {candidate.metric} {value:.4f}, and trial {candidate.trial} has "
            f"{candidate.value:.4f} on the same validation {spec.items}, which is worse; nothing was "
            "registered. Move the alias all the same with --force"
        )


def _holder(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise TrackingError(f"MLflow did not tell who has {name}@{alias}: {error}") from error


def _measured(
    spec: SearchSpec, holder: ModelVersion, measure: Callable[[Path], float | None]
) -> float | None:
    """The value of a version's graph on the candidate's images; None where it has none of ours."""
    import mlflow

    with tempfile.TemporaryDirectory(prefix="champion-") as folder:
        try:
            fetched = mlflow.artifacts.download_artifacts(
                holder.source, dst_path=folder, tracking_uri=spec.tracking_uri
            )
        except Exception:  # of any of its stores: whatever it is, there is nothing to compare
            return None
        graphs = sorted(Path(fetched).rglob("model.onnx"))
        return measure(graphs[0]) if graphs else None


def served_model(
    graph: Path, code: Path, example: Example, needs: Sequence[str], folder: Path, **identity: Any
) -> None:
    """Writes the MLflow model of an exported graph to a new folder.

    Args:
        graph: `model.onnx` of an export.
        code: its `classify.py`.
        example: by the column's name the bytes of a file, or text.
        needs: the packages that the code needs.
        folder: what is written.
        identity: `run_id` and `model_id`, where they are known.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as temporary:
        # Of its own name, since a process may open models of several kinds.
        loader = LOADER if "image" in example else "_".join([LOADER, *example])
        renamed = shutil.copyfile(code, Path(temporary) / f"{loader}.py")
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=loader,
            data_path=str(graph),
            code_paths=[str(renamed)],
            signature=_signature(example),
            input_example=pd.DataFrame({column: [cell] for column, cell in example.items()}),
            pip_requirements=[f"{name}=={version(name)}" for name in sorted({*_REQUIRED, *needs})],
            mlflow_model=Model(**identity),
        )


def _signature(example: Example) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.binary if isinstance(cell, bytes) else DataType.string, column)
                for column, cell in example.items()
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.double), "probabilities"),
            ]
        ),
    )


def registered(
    spec: SearchSpec,
    candidate: Candidate,
    name: str,
    alias: str | None,
    *,
    graph: Path,
    code: Path,
    example: Example,
    needs: Sequence[str],
) -> str:
    """Logs an exported graph as a model of its trial's run and registers it; returns the version.

    Raises:
        TrackingError: if MLflow refuses, with its reason.

    `graph`, `code`, `example` and `needs` are as `served_model` takes them.
    """
    from mlflow.exceptions import MlflowException

    client = connect(spec.tracking_uri)
    try:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model_id = _logged(client, candidate, graph, code, example, needs)
        made = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=candidate.run,
            model_id=model_id,
            description=candidate.description,
            tags=_tags(candidate),
        ).version
        if alias is not None:
            client.set_registered_model_alias(name, alias, made)
    except MlflowException as error:
        raise TrackingError(f"MLflow did not register {name!r}: {error}") from error
    return str(made)


def _tags(candidate: Candidate) -> dict[str, str]:
    return {
        SEARCH_TAG: candidate.search_id,
        NAME_TAG: candidate.search,
        TRIAL_TAG: str(candidate.trial),
        DATA_TAG: candidate.data,
        METRIC_TAG: candidate.metric,
        VALUE_TAG: repr(candidate.value),
    }


def _logged(
    client: MlflowClient,
    candidate: Candidate,
    graph: Path,
    code: Path,
    example: Example,
    needs: Sequence[str],
) -> str:
    """The id of a new logged model that serves the graph."""
    from mlflow.entities import Metric

    run = client.get_run(candidate.run)
    model = client.create_logged_model(
        run.info.experiment_id,
        name=f"{candidate.search}-{candidate.trial}-export".replace(".", "_"),
        source_run_id=candidate.run,
        tags={SEARCH_TAG: candidate.search_id, TRIAL_TAG: str(candidate.trial)},
        params={key: str(value) for key, value in candidate.params.items()},
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            served_model(graph, code, example, needs, folder, run_id=candidate.run, model_id=model.model_id)
            client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    at = run.info.start_time + candidate.epoch  # the point that the trial told: another changes nothing
    client.log_batch(
        candidate.run,
        metrics=[
            Metric(key, value, at, candidate.epoch, model_id=model.model_id, run_id=candidate.run)
            for key, value in candidate.metrics.items()
        ],
    )
    return str(model.model_id)
