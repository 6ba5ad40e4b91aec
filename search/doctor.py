"""Do the home, Optuna and MLflow agree? What does not is named, and mended where Optuna knows better."""

from __future__ import annotations

from search.home import Home
from search.results import opened
from search.study import ENDINGS, Ending
from search.tracking import STATE_TAG, Tracker, child_runs
from trainables.record import MODEL_FOLDER

__all__ = ["examine"]


def examine(home: Home, *, repair: bool = False) -> list[str]:
    """What is wrong with a search that no driver runs, in words; with `repair`, mended on the way.

    A search that is being run is not looked at: its driver is ahead of MLflow by design.
    """
    if home.driver() is not None:
        return []
    spec, study = opened(home)
    if repair:
        with home.lock():
            tracker = Tracker(spec, home, study)
            tracker.replay()
            tracker.close("STOPPED" if study.progress().left else "FINISHED")
    findings = [
        f"the outbox holds {file.name}: MLflow has not acknowledged it"
        for file in sorted(home.outbox.glob("*.jsonl"))
    ]
    runs = child_runs(spec, study)
    for record in study.records():
        found = runs.pop(record.number, [])
        if len(found) != 1:
            findings.append(f"trial {record.number} has {len(found)} runs in MLflow, not one")
            continue
        (run,) = found
        ending = record.ending or Ending.INTERRUPTED
        if run.status != ENDINGS[ending].mlflow:
            findings.append(
                f"trial {record.number} is {ending.value} in Optuna, but its run is {run.status}"
                f" ({STATE_TAG} {run.state})"
            )
        if run.repeated:
            findings.append(f"the run of trial {record.number} has two points of {run.repeated}")
        has_model = (home.trial(record.number) / MODEL_FOLDER).is_dir()
        if record.ending and has_model and not run.model:
            findings.append(f"trial {record.number} has a model that MLflow does not have")
    findings += [f"MLflow has a run of trial {number}, which Optuna does not" for number in runs]
    return findings
