"""What a study knows of its trials; nothing here changes it."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from typing import cast

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.spec.search_spec import SearchSpec
from search.study.agenda import PHASE, pool_size
from search.study.constraints import is_feasible, violated
from search.study.facts import StudyFacts
from search.study.intervals import beats_majority
from search.study.trials import STARTED, Assignment, Ending, Progress, TrialRecord, seconds_of
from trainables.training.keeping import BEST_EPOCH, counted, expected_name, value_of
from trainables.training.phases import phases

__all__ = ["ENDING", "EPOCHS", "REFIT_ON", "RUN", "StudyResults"]

REFIT_ON = ("train", "validation")
"""The splits that a refit is trained on."""

_FEW = 4  # different values, of which an importance says something
ENDING = "ending"
RUN = "mlflow_run_id"
EPOCHS = "epochs"


class StudyResults(StudyFacts):
    """The trials of one search's Optuna study: what was handed out, reported, and what they are worth."""

    def __init__(self, study: optuna.Study, spec: SearchSpec) -> None:
        super().__init__(study)
        self.spec = spec
        self._ahead: Assignment | None = None
        """A trial that is drawn already and that nobody is told of yet."""

    @property
    def is_refitted(self) -> bool:
        """Whether the winner is trained again on all images; in a search of old only if its spec says so."""
        (metric, *others) = self.spec.search.objective
        asked = "refit" in self.spec.search.model_fields_set
        wanted = self.spec.search.refit if asked else self.was_to_be_refitted
        return wanted and not others and metric.startswith("val_")

    @property
    def pool_size(self) -> int:
        """How many of the best an ensemble is chosen from; in a search of old only if its spec says so."""
        asked = "ensemble" in self.spec.search.model_fields_set
        return pool_size(self.spec) if asked or self.looks_for_ensemble else 0

    @property
    def refit_times(self) -> float:
        """How many times as long as its trial the winner's refit takes, by the images; 0: there is none."""
        images = (self.premises or {}).get("images", {})
        if not self.is_refitted or not images.get(REFIT_ON[0]):
            return 0.0
        return float(sum(images.get(split, 0) for split in REFIT_ON) / images[REFIT_ON[0]])

    def seconds_of(self, number: int) -> float:
        """How long a trial ran since it was begun last; nothing while it does."""
        return seconds_of(self._frozen(number))

    def trials(self) -> list[FrozenTrial]:
        """Every trial that was begun, by number."""
        ahead = self._ahead.number if self._ahead else None
        return [
            trial
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and trial.number != ahead
        ]

    def progress(self) -> Progress:
        states = [trial.state for trial in self.trials()]
        return Progress(
            completed=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.FAIL),
            running=states.count(TrialState.RUNNING),
            budget=self.budget,
        )

    @property
    def is_over(self) -> bool:
        """Whether no more trials are to run, as the budget is met or the time was over."""
        progress = self.progress()
        return not progress.left or self.closed_at == progress.counted

    def best(self) -> list[FrozenTrial]:
        """The best trial, or the Pareto front of several objectives; empty before one completes."""
        if self.spec.multi_objective:
            return sorted(self._study.best_trials, key=lambda trial: trial.number)
        return self.ranked()[:1]

    def ranked(self) -> list[FrozenTrial]:
        """The completed trials by what their parameters are worth, best first; ties go to the earlier.

        Those that miss a constraint are none of them.
        """
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        sign = -1 if self._study.direction == StudyDirection.MAXIMIZE else 1
        worth = _worth(complete)
        feasible = filter(is_feasible, complete)
        return sorted(feasible, key=lambda trial: (sign * worth[trial.number], trial.number))

    def worth(self, number: int) -> float | None:
        """What a completed trial's hyperparameters are worth: the mean of all trials that drew the same.

        A small space is drawn again and again, each time on a fresh seed: the best of many is the luckiest.
        """
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return _worth(complete).get(number)

    def leader(self) -> tuple[int, float] | None:
        """Number and value (of the first objective) of the best trial so far."""
        best = self.best()
        if not best:
            return None
        number = best[0].number
        return number, best[0].values[0] if self.spec.multi_objective else cast(float, self.worth(number))

    @property
    def chance(self) -> float | None:
        """The share of the most frequent class, where the best trial does not beat always naming that.

        It is the best of all trials, among which the level of the test is divided; None where it does, or
        where the objective is another than accuracy.
        """
        sample, leader = self.samples.get("validation"), self.leader()
        if sample is None or leader is None or list(self.spec.search.objective) != ["val_accuracy"]:
            return None
        return None if beats_majority(leader[1], sample, self.progress().counted) else sample.majority

    def kept(self, number: int) -> dict[str, float] | None:
        """The epoch whose model a trial keeps, as far as the study was told: its number and its value."""
        values = self._frozen(number).intermediate_values
        if not values or self.spec.multi_objective:
            return None
        ((metric, direction),) = self.spec.search.objective.items()
        begun = self.begun(number)
        if self.rule == BEST_EPOCH or begun is None:
            best = max if direction == "maximize" else min
            epoch = best(values, key=lambda each: values[each])
            return {"epoch": epoch, metric: values[epoch]}
        epoch = max(values)
        window = [values[each] for each in counted(phases(begun.hparams), epoch) if each in values]
        return {"epoch": epoch, metric: values[epoch], expected_name(metric): statistics.fmean(window)}

    def importances(self) -> dict[str, float]:
        """What share of the objective's variance each drawn parameter explains; empty where unknown.

        By PED-ANOVA (Watanabe, Bansal and Hutter, 2023), of the completed trials alone.
        """
        values = {trial.value for trial in self.ranked()} if not self.spec.multi_objective else set()
        if len(values) < _FEW:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return optuna.importance.get_param_importances(self._study)

    def label(self, number: int) -> str:
        """What a person is shown for a trial's number."""
        return str(number)

    def tells_expected(self, number: int) -> bool:
        """Whether its record has what was expected of its model on validation images, which trained that."""
        return False

    def tags(self, number: int) -> dict[str, str]:
        """What MLflow is told of a trial beside its number."""
        phase = self._frozen(number).user_attrs.get(PHASE)
        return {PHASE: phase} if phase else {}

    def records(self) -> list[TrialRecord]:
        """Every trial that was begun, by number."""
        return [self._record(trial) for trial in self.trials()]

    def record(self, number: int) -> TrialRecord:
        """A trial that was begun."""
        return self._record(self._frozen(number))

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        told = trial.user_attrs.get(ENDING)
        if trial.state == TrialState.RUNNING:
            told = None
        best = told["best"] if told else self.kept(trial.number)
        metric = next(iter(self.spec.search.objective))
        started = trial.user_attrs.get(STARTED)
        return TrialRecord(
            number=trial.number,
            state=trial.state.name,
            ending=Ending(told["ending"]) if told else None,
            reason=told["reason"] if told else "",
            value=value_of(best, metric) if best else None,
            best_epoch=int(best["epoch"]) if best else None,
            epochs=max(self.told(trial.number), default=int(best["epoch"]) if best else 0),
            best=best,
            violated=tuple(violated(best, self.spec.search.constraints)),
            params=self.spec.hparams.from_dict(started["hparams"]).active if started else trial.params,
            mlflow_run_id=self._study.user_attrs.get(f"{RUN} {trial.number}")
            or (told["run"] if told else None)
            or trial.user_attrs.get(RUN),
        )

    # One trial

    def begun(self, number: int) -> Assignment | None:
        """The trial as it was handed out last; None where its driver died while it drew."""
        known = self._frozen(number).user_attrs
        if STARTED not in known:
            return None
        started = known[STARTED]
        hparams = self.spec.hparams.from_dict(started["hparams"])
        return Assignment(number, hparams, started["times"], max(self.told(number), default=0))

    def written_hparams(self, number: int) -> frozenset[str]:
        """The hyperparameters that were written down with a trial: none that a later version added."""
        return frozenset(self._frozen(number).user_attrs.get(STARTED, {}).get("hparams", ()))

    def reported(self, number: int) -> dict[int, float]:
        """The values of the first objective that were reported, by epoch."""
        return dict(self._frozen(number).intermediate_values)

    def values(self, number: int) -> list[float] | None:
        """The values of the objectives that a trial ended with; None where it has none."""
        trial = self._frozen(number)
        return list(trial.values) if trial.state == TrialState.COMPLETE else None

    def told(self, number: int) -> frozenset[int]:
        """The epochs that were reported."""
        trial = self._frozen(number)
        return frozenset(trial.intermediate_values) | frozenset(trial.user_attrs.get(EPOCHS, ()))

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def _worth(complete: Sequence[FrozenTrial]) -> dict[int, float]:
    """By trial, the mean value of all completed trials of the same drawn parameters."""
    values: dict[str, list[float]] = {}
    drawn = {trial.number: repr(sorted(trial.params.items())) for trial in complete}
    for trial in complete:
        values.setdefault(drawn[trial.number], []).append(cast(float, trial.value))
    return {number: statistics.fmean(values[key]) for number, key in drawn.items()}
