"""A trial's model on its way into MLflow's registry: judged first, exported, then registered."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from search.errors import BadInput
from search.results.evaluation import validation_logits
from search.results.export import opened_model
from search.results.rows import model_told
from search.search import Search
from search.tracking.moved import missing_store
from search.tracking.registry import Candidate, check_names, defended, registered

__all__ = ["Registration"]

_FORMAT = "onnx"


class Registration:
    """What `export --register` asks for.

    Args:
        search: whose model it is.
        trial, finalist: which model, as `opened_model` takes them.
        name: of the registered model.
        alias: that the new version is to have.

    Raises:
        BadInput: if MLflow would not take the name or the alias, or knows no run of the trial.
    """

    def __init__(
        self, search: Search, trial: int | None, finalist: int | None, name: str, alias: str | None
    ) -> None:
        check_names(name, alias)
        self._name, self._alias = name, alias
        self._search = search
        self._model = opened_model(search, trial, finalist)
        assert self._model.data is not None
        self._data = self._model.data
        kind = self._model.modality
        if _FORMAT not in kind.export_files:
            raise BadInput(f"a model of {kind.name} cannot be registered: it cannot be exported as {_FORMAT}")
        self._exporter = kind.exporter(self._model.loaded)
        if gone := missing_store(search.spec.tracking_uri):
            raise BadInput(
                f"MLflow's store {gone} is not there; if it has moved, say where with --set tracking.uri=URL"
            )
        if self._model.row.mlflow_run_id is None:
            raise BadInput(
                f"MLflow has no run of trial {self._model.row.trial}; send it with "
                f"`transfer-search doctor {search.name} --repair`"
            )

    @cached_property
    def _candidate(self) -> Candidate:
        row, data = self._model.row, self._data
        assert row.mlflow_run_id is not None
        assert row.epoch is not None
        assert row.value is not None
        metric, direction = next(iter(self._search.spec.search.objective.items()))
        card = self._model.loaded.card
        metrics = dict(card.metric)
        if card.has_seen_validation:
            metrics = {name: value for name, value in metrics.items() if not name.startswith("val_")}
        metrics |= row.test
        told = f"{metric} {row.value:.4f} at epoch {row.epoch}"
        items = f"{self._model.modality.item}s"
        return Candidate(
            search=self._search.name,
            search_id=self._search.study.search_id,
            trial=row.trial,
            run=row.mlflow_run_id,
            epoch=row.epoch,
            metric=metric,
            direction=direction,
            value=row.value,
            data=data.fingerprint,
            metrics=metrics,
            params=row.params,
            description=(
                f"{model_told(row).capitalize()} of the search "
                f"**{self._search.name}**: {told}, on "
                f"{len(data.splits['validation']):,} validation {items} of `{self._search.spec.data.source}` "
                f"(fingerprint `{data.fingerprint}`).\n\n"
                f"{self._taken}; gives `label`, `probability` and `probabilities` of "
                f"{', '.join(data.classes[:20])}" + ("…" if len(data.classes) > 20 else ".")
            ),
        )

    @property
    def _taken(self) -> str:
        """What a served model takes, in words."""
        ((column, example),) = self._exporter.sample(self._data).items()
        if isinstance(example, bytes):
            return f"Takes the bytes of {column} files in the column `{column}` (base64 over HTTP)"
        return f"Takes texts in the column `{column}`"

    def check(self, *, force: bool) -> None:
        """Checks that the alias may move to this model.

        Raises:
            BadInput: if a better model has it, with both values, unless `force`.
        """
        if self._alias is not None and not force:
            defended(self._search.spec, self._candidate, self._name, self._alias, self._measure)

    def make(self, exported: Path | None) -> str:
        """Registers the model, with the graph in the folder if it is there; returns the version."""
        with tempfile.TemporaryDirectory(prefix="register-") as temporary:
            folder = exported
            graph, code = self._exporter.names(_FORMAT)
            if folder is None or not (folder / graph).exists():
                folder = Path(temporary)
                self._exporter.write(_FORMAT, folder)
            return registered(
                self._search.spec,
                self._candidate,
                self._name,
                self._alias,
                graph=folder / graph,
                code=folder / code,
                example=self._exporter.sample(self._data),
                needs=self._exporter.needs,
            )

    def _measure(self, graph: Path) -> float | None:
        """The value of another graph on this model's validation images; None where it tells other classes."""
        kind, data = self._model.modality, self._data
        predictor = kind.read_export(_FORMAT, graph)
        if predictor.card.classes != data.classes:
            return None
        labels = data.labels[data.splits["validation"]]
        scores: Mapping[str, float] = kind.scores(validation_logits(predictor, data), labels).named("val")
        return scores.get(self._candidate.metric)
