"""MLflow, which people see: the runs and models of a search, and where to find them.

All writes are idempotent: a metric's timestamp follows from trial and epoch, parameters are set once, and
runs and models are looked up by the search's id before they are made again. So whatever is not known to
have arrived is sent again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

import search
from search.errors import TrackingError
from search.home import Home
from search.spec.search_spec import SearchSpec
from search.study.refit import named
from search.study.storage import settle
from search.study.trials import ENDINGS, Ending
from search.tracking.client import (
    DAMAGE_TAG,
    MOVES_TAG,
    SEARCH_TAG,
    STATE_TAG,
    is_refusal,
    number_tag,
    prepared,
    refuse,
)
from search.tracking.events import (
    Close,
    DamageFound,
    Data,
    End,
    Epochs,
    Event,
    Failed,
    Moved,
    Start,
    Summary,
)
from search.tracking.models import Models, as_text
from search.tracking.notes import NOTE_TAG, ensemble_note, refit_note, search_note, shared_view, trial_note
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import model_metric
from trainables.provenance import code_version
from trainables.record import APPLIED_FILE, MODEL_FOLDER, RECORD_FOLDER, TEST_METRICS
from trainables.training.keeping import value_of

if TYPE_CHECKING:
    from mlflow.entities import Metric

__all__ = ["Runs"]

_BATCH = 1000
_SOURCE = {
    "mlflow.source.name": f"transfer-search {search.__version__}",
    "mlflow.source.type": "LOCAL",
}


class Runs:
    """Writes one search's runs, an event at a time.

    Args:
        spec: the search's spec, already launched.
        home: where trials leave what is logged.
        search_id: what tags all runs of the search.
        role: what the study's trials are to the search, as `SearchStudy.role` says.
        parent: the run that holds theirs; None: found, or made.

    Raises:
        Refused: if MLflow does not know the user.
        TrackingError: if it cannot be written.
    """

    def __init__(
        self, spec: SearchSpec, home: Home, search_id: str, *, role: str = "trial", parent: str | None = None
    ) -> None:
        self._spec = spec
        self._home = home
        self._search_id = search_id
        self._role = role
        self._tag = number_tag(role)
        self._client = prepared(spec)
        self._runs: dict[int, str] = {}
        self._places: dict[int, str] = {}  # where the files of the runs go
        self._began: dict[int, int] = {}
        self._told: dict[int, set[tuple[str, int]]] = {}  # metric and epoch
        self._params: dict[int, dict[str, Any]] = {}
        self._unsent: set[int] = set()  # whose parameters go with what is sent next
        self.experiment, self.parent = self._open_parent(parent)
        self._models = Models(self._client, spec.tracking_uri, self.experiment)

    def write(self, event: Event) -> None:
        """Writes an event; raises whatever MLflow does where it is away."""
        match event:
            case Start():
                self._start(event)
            case Epochs(trial=number, epochs=epochs):
                self._log(number, epochs, {})
            case Failed(trial=number, reason=reason):
                self._client.log_text(self._runs[number], reason, "traceback.txt")
            case Moved(trial=number, moves=moves):
                self._client.set_tag(self._runs[number], MOVES_TAG, moves)
            case DamageFound(trial=number, what=what):
                self._tell_damage(self._runs[number], what)
            case End():
                self._end(event)
            case Data():
                self._describe_data(event)
            case Summary():
                self._summarize(event)
            case Close(state=state):
                self._client.set_tag(self.parent, STATE_TAG, state)
                self._client.set_terminated(self.parent, "FINISHED" if state == "FINISHED" else "KILLED")

    def forget(self, number: int) -> None:
        """Forgets a trial's run, which is then found or made again with its start."""
        for known in (self._runs, self._places, self._began, self._told, self._params):
            known.pop(number, None)

    def settle(self) -> None:
        """Leaves nothing beside SQLite's file, so that a copy of it alone is whole."""
        if self._spec.tracking_uri.startswith("sqlite:"):
            settle(make_url(self._spec.tracking_uri).database or ":memory:")

    def of(self, number: int) -> str | None:
        """The run of a trial that has started."""
        return self._runs.get(number)

    def _open_parent(self, run: str | None) -> tuple[str, str]:
        from mlflow.entities import Param

        name = self._spec.tracking.experiment
        try:
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            run = run if run and self._is_there(run) else self._find_run(experiment, trial=None)
            if run is None:
                run = self._client.create_run(
                    experiment,
                    run_name=self._spec.name,
                    tags={
                        SEARCH_TAG: self._search_id,
                        STATE_TAG: "RUNNING",
                        "code": code_version(),
                        **_SOURCE,
                    },
                ).info.run_id
                params = [Param(key, value) for key, value in _search_params(self._spec).items()]
                self._client.log_batch(run, params=params)
                self._client.log_text(run, self._spec.to_yaml(), "spec.yaml")
                self._client.set_tag(run, NOTE_TAG, search_note(self._spec))
                self._client.set_experiment_tag(experiment, *shared_view(self._spec, self._search_id))
            else:
                self._client.update_run(run, status="RUNNING")
        except Exception as error:
            refuse(error, self._spec.tracking.uri)
            raise TrackingError(
                f"MLflow at {self._spec.tracking.uri} cannot be written: {error}; check that it runs, "
                "or give another with --set tracking.uri=…"
            ) from error
        return str(experiment), str(run)

    def _is_there(self, run: str) -> bool:
        """Whether a run exists and was not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if is_refusal(error):
                return False
            raise

    def _find_run(self, experiment: str, trial: int | None) -> str | None:
        """The run of a trial (None: the parent) that an earlier driver made, by its tags."""
        condition = f"tags.`{SEARCH_TAG}` = '{self._search_id}'"
        if trial is not None:
            condition += f" and tags.`{self._tag}` = '{trial}'"
        else:
            condition += f" and attributes.run_name = '{self._spec.name}'"
        for run in self._client.search_runs([experiment], condition, max_results=1000):
            if (self._tag in run.data.tags) == (trial is not None):
                return str(run.info.run_id)
        return None

    def _start(self, event: Start) -> None:
        number, again = event.trial, event.begun or event.replayed
        run = self._find_run(self.experiment, number) if again else None
        if run is None:
            self._began[number] = event.at
            made = self._client.create_run(
                self.experiment,
                start_time=event.at,
                run_name=self._title(number),
                tags={
                    "mlflow.parentRunId": self.parent,
                    SEARCH_TAG: self._search_id,
                    self._tag: str(number),
                    STATE_TAG: "RUNNING",
                    **_SOURCE,
                    **event.tags,
                },
            )
            run = str(made.info.run_id)
        else:
            made = self._client.get_run(run)
            self._began[number] = made.info.start_time
            self._told[number] = {
                (name, point.step)
                for name in made.data.metrics
                for point in self._client.get_metric_history(run, name)
            }
            self._client.update_run(run, status="RUNNING")
            self._client.set_tag(run, STATE_TAG, "RUNNING")
            self._client.set_tag(run, "mlflow.runName", self._title(number))
            self._client.set_tag(run, "resumed", event.begun)
        self._params[number] = dict(event.params)
        self._unsent.add(number)
        self._runs[number], self._places[number] = run, str(made.info.artifact_uri)

    def _title(self, number: int) -> str:
        """What MLflow calls a trial's run and model."""
        return (
            f"{self._spec.name}-{number}"
            if self._role == "trial"
            else f"{self._spec.name}-{self._role}-{number}"
        )

    def _log(
        self,
        number: int,
        epochs: Iterable[tuple[int, Mapping[str, float]]],
        tags: Mapping[str, str],
        scores: Sequence[Metric] = (),
    ) -> None:
        """Sends a trial's epochs and tags, its model's scores, and its parameters with what is sent first."""
        from mlflow.entities import Metric, Param, RunTag

        known = {(each.key, each.step) for each in scores} | self._told.get(number, set())
        points = [
            *scores,
            *(
                Metric(name, value, self._began[number] + epoch, epoch)
                for epoch, metrics in epochs
                for name, value in ((named(each, self._role), value) for each, value in metrics.items())
                if (name, epoch) not in known
            ),
        ]
        unsent = self._params.get(number, {}) if number in self._unsent else {}
        params = [Param(key, as_text(value)) for key, value in unsent.items()]
        self._client.log_batch(
            self._runs[number],
            metrics=points[:_BATCH],
            params=params,
            tags=[RunTag(*tag) for tag in tags.items()],
        )
        for first in range(_BATCH, len(points), _BATCH):
            self._client.log_batch(self._runs[number], metrics=points[first : first + _BATCH])
        self._unsent.discard(number)

    def _end(self, event: End) -> None:
        number, ending, best = event.trial, event.ending, event.best
        run, epochs = self._runs[number], list(event.epochs)
        tags = {STATE_TAG: ending.value, NOTE_TAG: self._note(event)}
        if event.reason and ending is not Ending.COMPLETED:
            tags["reason"] = event.reason[-500:]
        if ending not in (Ending.COMPLETED, Ending.INTERRUPTED):
            tags["mlflow.runName"] = f"{self._title(number)} ({ending.value.lower().replace('_', ' ')})"
        model = None
        if ending is not Ending.INTERRUPTED:
            again = event.replayed or number in self._told
            model = self._log_files(number, run, self._params.get(number, {}), again=again)
            tags |= _provenance(self._home.trial(number))
        if best:
            tags["best_epoch"] = str(int(best["epoch"]))
            own = self._spec.search.objective if self._role != "refit" else ()
            told = {f"best_{name}": value_of(best, name) for name in own}
            told |= {name: best[name] for name in TEST_METRICS if name in best}
            epochs.append((int(best["epoch"]), told))
        self._log(number, epochs, tags, self._scores(number, model, best) if best and model else ())
        self._client.set_terminated(run, ENDINGS[ending].mlflow, end_time=event.at)
        self._params.pop(number, None)

    def _note(self, event: End) -> str:
        if self._role == "refit":
            return refit_note(self._spec, event.ending, event.reason)
        if self._role == "ensemble":
            return ensemble_note(self._spec)
        return trial_note(self._spec, event.ending, event.reason, event.best)

    def _log_files(self, number: int, run: str, params: Mapping[str, Any], *, again: bool) -> str | None:
        """Logs what the trial left in its folder, what it applied and its model; returns the id of that."""
        folder = self._home.trial(number)
        if (folder / RECORD_FOLDER).is_dir():
            self._models.store(self._places[number], folder / RECORD_FOLDER)
        try:
            is_there = model_metric(folder) is not None
        except Damaged as damage:  # nobody is to load it from MLflow
            self._tell_damage(run, str(damage))
            is_there = False
        if is_there:
            tags = {SEARCH_TAG: self._search_id, self._tag: str(number)}
            name = self._title(number)
            return self._models.log(run, folder / MODEL_FOLDER, name, tags=tags, params=params, again=again)
        return None

    def _tell_damage(self, run: str, what: str) -> None:
        self._client.set_tag(run, DAMAGE_TAG, what[-500:])

    def _scores(self, number: int, model: str, best: Mapping[str, float]) -> list[Metric]:
        """A model's metrics, by which MLflow's table of models sorts: points of its run that name it."""
        from mlflow.entities import Metric

        run, epoch = self._runs[number], int(best["epoch"])
        at = self._began[number] + epoch
        return [
            Metric(named(name, self._role), value, at, epoch, model_id=model, run_id=run)
            for name, value in best.items()
            if name.startswith(("val_", "test_"))
        ]

    def _summarize(self, event: Summary) -> None:
        from mlflow.entities import Metric, RunTag

        began = self._client.get_run(self.parent).info.start_time
        points = [Metric(name, value, began + step, step) for name, step, value in event.points]
        tags = [RunTag(key, str(value)) for key, value in event.tags.items()]
        for first in range(0, max(1, len(points)), _BATCH):
            self._client.log_batch(self.parent, metrics=points[first : first + _BATCH], tags=tags)
        for file, text in event.texts.items():
            self._client.log_text(self.parent, text, file)

    def _describe_data(self, event: Data) -> None:
        """Tells what the search's run was trained on; a second time changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self._client.log_inputs(
            self.parent,
            datasets=[
                DatasetInput(
                    Dataset(
                        name=event.name,
                        digest=event.digest,
                        source_type="transfer-search",
                        source=json.dumps(event.source),
                        profile=json.dumps(event.profile),
                    ),
                    [InputTag("mlflow.data.context", "training")],
                )
            ],
        )


def _provenance(folder: Path) -> dict[str, str]:
    """What a trial was made with and of, as tags; its seed is among the parameters."""
    try:
        applied = json.loads((folder / APPLIED_FILE).read_bytes())
        with_what = dict(applied["made_with"])
        code, data = with_what.pop("transfer-search"), with_what.pop("data")
        libraries = ", ".join(f"{name} {version}" for name, version in with_what.items())
        return {"code": code, "data": data, "weights": applied["weights_hash"], "made_with": libraries}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # it ended before it built anything, or an earlier version ran it


def _search_params(spec: SearchSpec) -> dict[str, Any]:
    """The spec's settings as flat parameters of the parent run; the space is in its artifact."""
    sections = spec.model_dump(mode="json", include={"data", "search", "resources", "cache"})
    return {
        f"{section}.{key}": as_text(value)
        for section, values in sections.items()
        for key, value in values.items()
        if value is not None
    }
