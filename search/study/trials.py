"""How trials end, and what the study knows of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from trainables.training.hparams import HParams

__all__ = ["ENDINGS", "STARTED", "Assignment", "Ending", "Progress", "Row", "TrialRecord", "seconds_of"]

STARTED = "started"
"""What Optuna's trial has under this name: with what it was begun, how often, and when the last time."""


class Ending(Enum):
    """What can happen to a trial."""

    COMPLETED = "COMPLETE"
    PRUNED = "PRUNED"
    DIVERGED = "DIVERGED"
    ERRORED = "ERRORED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    INTERRUPTED = "INTERRUPTED"
    ABANDONED = "ABANDONED"


@dataclass(frozen=True)
class Row:
    """What an ending is to Optuna and to MLflow, and whether it counts toward the budget of trials.

    `optuna` is None where the trial stays RUNNING, for `resume` to go on with.
    """

    optuna: TrialState | None
    mlflow: str
    counts: bool


ENDINGS: Mapping[Ending, Row] = {
    Ending.COMPLETED: Row(TrialState.COMPLETE, "FINISHED", True),
    # MLflow draws FAILED and KILLED as the same red cross. A pruned trial did what it should: its run is
    # FINISHED, and is called pruned in its name and its tag.
    Ending.PRUNED: Row(TrialState.PRUNED, "FINISHED", True),
    Ending.DIVERGED: Row(TrialState.FAIL, "FAILED", True),
    Ending.ERRORED: Row(TrialState.FAIL, "FAILED", True),
    Ending.OUT_OF_MEMORY: Row(TrialState.FAIL, "FAILED", True),
    Ending.INTERRUPTED: Row(None, "KILLED", False),
    Ending.ABANDONED: Row(TrialState.FAIL, "KILLED", True),
}


@dataclass(frozen=True)
class Assignment:
    """A trial to run: its number, hyperparameters, how often it was begun, and its last epoch so far."""

    number: int
    hparams: HParams
    begun: int
    epoch: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a search is."""

    completed: int
    pruned: int
    failed: int
    running: int
    budget: int

    @property
    def counted(self) -> int:
        return self.completed + self.pruned + self.failed

    @property
    def left(self) -> int:
        return max(0, self.budget - self.counted)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What the study knows of a trial.

    Attributes:
        number: Optuna's.
        state: Optuna's, by name.
        ending: None while it runs.
        reason: why it was pruned or failed.
        value: what its kept model is expected to have of the first objective; None before the first epoch.
        best_epoch: the number of the epoch whose model is kept, from 1.
        epochs: how many epochs were reported.
        best: metrics of that epoch, as far as the study was told, with its number as `epoch`; and what
            they are expected to be (`trainables.training.keeping`), where that is another value.
        params: the hyperparameters that something read.
        mlflow_run_id: None where MLflow has not told it yet, or was away.
        violated: the constraints of the search that it misses, in words.
    """

    number: int
    state: str
    ending: Ending | None
    reason: str
    value: float | None
    best_epoch: int | None
    epochs: int
    best: Mapping[str, float] | None
    params: Mapping[str, Any]
    mlflow_run_id: str | None
    violated: tuple[str, ...] = ()


def seconds_of(trial: FrozenTrial) -> float:
    """How long a trial ran since it was begun last; nothing while it does."""
    if trial.datetime_start is None or trial.datetime_complete is None:
        return 0.0
    begun = trial.user_attrs.get(STARTED, {}).get("at")
    start = trial.datetime_start if begun is None else datetime.fromisoformat(begun)
    return max(0.0, (trial.datetime_complete - start).total_seconds())
