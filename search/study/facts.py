"""What a study has written down of its search, beside the trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from search.study.intervals import Sample
from trainables.training.keeping import BEST_EPOCH

__all__ = ["ID", "LOOKS_FOR_ENSEMBLE", "REFIT", "RULE", "StudyFacts"]

ID = "search_id"
RULE = "rule"
REFIT = "refit"
LOOKS_FOR_ENSEMBLE = "looks_for_ensemble"
_CORRECTED = "corrected"
_ENSEMBLE = "ensemble"
_SAMPLES = "samples"


class StudyFacts:
    """The facts of a search, each an attribute of its Optuna study."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    @property
    def search_id(self) -> str:
        """Names the search for ever, whatever its folder is called."""
        return str(self._study.user_attrs[ID])

    @property
    def rule(self) -> str:
        """Which epoch's model is kept, and what it is worth; a search of old keeps the rule that it had."""
        return str(self._study.user_attrs.get(RULE, BEST_EPOCH))

    @property
    def was_to_be_refitted(self) -> bool:
        """Whether the search was launched to have its winner refitted; one of old was not."""
        return bool(self._study.user_attrs.get(REFIT, False))

    @property
    def looks_for_ensemble(self) -> bool:
        """Whether the search was launched to look for an ensemble by itself; one of old was not."""
        return bool(self._study.user_attrs.get(LOOKS_FOR_ENSEMBLE, False))

    @property
    def corrected(self) -> dict[str, Any]:
        """The best `trial`, and its `value` without what it owes to being chosen; empty: unknown."""
        return dict(self._study.user_attrs.get(_CORRECTED, {}))

    @corrected.setter
    def corrected(self, found: Mapping[str, Any]) -> None:
        self._study.set_user_attr(_CORRECTED, dict(found))

    @property
    def ensemble(self) -> dict[str, Any]:
        """The `pool` that an ensemble was last looked for in, and what was found, as `told`; empty: never."""
        return dict(self._study.user_attrs.get(_ENSEMBLE, {}))

    @ensemble.setter
    def ensemble(self, found: Mapping[str, Any]) -> None:
        self._study.set_user_attr(_ENSEMBLE, dict(found))

    @property
    def samples(self) -> dict[str, Sample]:
        """The images of the validation and the test split; none where a search of old wrote none down."""
        known = self._study.user_attrs.get(_SAMPLES, {})
        return {split: Sample(**each) for split, each in known.items() if each["count"]}

    @samples.setter
    def samples(self, samples: Mapping[str, Sample]) -> None:
        told = {split: vars(each) for split, each in samples.items()}
        if self._study.user_attrs.get(_SAMPLES) != told:
            self._study.set_user_attr(_SAMPLES, told)

    @property
    def budget(self) -> int:
        """Trials that the search may count; `resume --trials` raises it."""
        return int(self._study.user_attrs["budget"])

    @budget.setter
    def budget(self, trials: int) -> None:
        self._study.set_user_attr("budget", trials)

    @property
    def seconds_spent(self) -> float:
        """Time that drivers have worked on the search."""
        return float(self._study.user_attrs.get("seconds_spent", 0.0))

    @seconds_spent.setter
    def seconds_spent(self, seconds: float) -> None:
        self._study.set_user_attr("seconds_spent", seconds)

    @property
    def device_seconds(self) -> float:
        """Seconds that trials have held a device: a GPU, or a CPU where they take no GPU."""
        return float(self._study.user_attrs.get("device_seconds", 0.0))

    @device_seconds.setter
    def device_seconds(self, seconds: float) -> None:
        self._study.set_user_attr("device_seconds", seconds)

    @property
    def closed_at(self) -> int | None:
        """How many trials counted when the time of the search was over; None: it was not."""
        count = self._study.user_attrs.get("closed_at")
        return None if count is None else int(count)

    @closed_at.setter
    def closed_at(self, count: int) -> None:
        self._study.set_user_attr("closed_at", count)

    @property
    def premises(self) -> dict[str, Any] | None:
        """What the search was launched on; None where that was not written down."""
        known: dict[str, Any] | None = self._study.user_attrs.get("premises")
        return known

    @premises.setter
    def premises(self, premises: Mapping[str, Any]) -> None:
        self._study.set_user_attr("premises", dict(premises))

    @property
    def parent_run(self) -> str | None:
        """MLflow's id of the search's parent run."""
        run = self._study.user_attrs.get("mlflow_run_id")
        return None if run is None else str(run)

    @parent_run.setter
    def parent_run(self, run: str) -> None:
        self._study.set_user_attr("mlflow_run_id", run)

    @property
    def experiment(self) -> str | None:
        """MLflow's id of the experiment that holds the runs."""
        known = self._study.user_attrs.get("mlflow_experiment_id")
        return None if known is None else str(known)

    @experiment.setter
    def experiment(self, experiment: str) -> None:
        self._study.set_user_attr("mlflow_experiment_id", experiment)
