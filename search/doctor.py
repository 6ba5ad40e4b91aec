"""Do the home, Optuna and MLflow agree? What does not is named, and mended where Optuna knows better."""

from __future__ import annotations

from collections.abc import Iterator

from search.home import Home
from search.results import opened
from search.runs import child_runs
from search.spec import SearchSpec
from search.study import ENDINGS, Ending, SearchStudy, TrialRecord
from search.tracking import Tracker
from trainables.record import MODEL_FOLDER

__all__ = ["examine"]


def examine(home: Home, *, repair: bool = False) -> list[str]:
    """What is wrong with a search that no driver runs, in words; with `repair`, what is left of it.

    A search that is being run is not looked at: its driver is ahead of MLflow by design.
    """
    if home.driver() is not None:
        return []
    spec, study = opened(home)
    found = list(_findings(home, spec, study))
    if repair and found:
        with home.lock():
            _mend(home, spec, study, {record.number: record for record, _ in found if record})
        found = list(_findings(home, spec, study))
    return [text for _, text in found]


def _findings(home: Home, spec: SearchSpec, study: SearchStudy) -> Iterator[tuple[TrialRecord | None, str]]:
    for file in sorted(home.outbox.glob("*.jsonl")):
        yield None, f"the outbox holds {file.name}: MLflow has not acknowledged it"
    runs = child_runs(spec, study)
    for record in study.records():
        found = runs.pop(record.number, [])
        if len(found) != 1:
            yield record, f"trial {record.number} has {len(found)} runs in MLflow, not one"
            continue
        (run,) = found
        ending = record.ending or Ending.INTERRUPTED
        if run.status != ENDINGS[ending].mlflow:
            yield record, f"trial {record.number} is {ending.value} in Optuna, but its run is {run.status}"
        if run.repeated:
            yield None, f"the run of trial {record.number} has two points of {run.repeated} at one epoch"
        has_model = (home.trial(record.number) / MODEL_FOLDER).is_dir()
        if record.ending and has_model and not run.model:
            yield record, f"trial {record.number} has a model that MLflow does not have"
    for number in runs:
        yield None, f"MLflow has a run of trial {number}, which Optuna does not have"


def _mend(home: Home, spec: SearchSpec, study: SearchStudy, wrong: dict[int, TrialRecord]) -> None:
    """Sends what the outbox holds, then tells MLflow the trials that are wrong once more."""
    tracker = Tracker(spec, home, study)
    tracker.replay()
    metric = next(iter(spec.search.objective))
    for number, record in wrong.items():
        begun = study.begun(number)
        if begun is None:
            continue
        tracker.trial_started(begun, again=True)
        for epoch, value in study.reported(number).items():
            tracker.epoch_ended(number, epoch, {metric: value})
        ending = record.ending or Ending.INTERRUPTED
        tracker.trial_ended(number, ending, study.best_epoch(number), record.reason)
    tracker.close("STOPPED" if study.progress().left else "FINISHED")
