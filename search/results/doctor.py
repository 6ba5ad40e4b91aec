"""Do the home, Optuna and MLflow agree? What does not is named, and mended where Optuna knows better."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from search.home import Home
from search.search import Search
from search.spec.search_spec import SearchSpec
from search.study.search_study import ENDINGS, Ending, SearchStudy, TrialRecord
from search.tracking.reader import child_runs
from search.tracking.tracker import Tracker
from trainables.record import MODEL_FOLDER

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["all_well", "examine", "show"]


def examine(search: Search, *, repair: bool = False) -> list[str]:
    """What is wrong with a search that no driver runs, in words; with `repair`, what is left of it.

    A search that is being run is not looked at: its driver is ahead of MLflow by design.
    """
    home, spec = search.home, search.spec
    if home.driver() is not None:
        return []
    found = [list(_findings(place, spec, study)) for place, study in search.studies]
    if repair and any(found):
        with home.lock():
            tracker = Tracker(spec, home, search.study)
            for (place, study), wrong in zip(search.studies, found, strict=True):
                own = tracker if study is search.study else Tracker(spec, place, study, within=tracker)
                _mend(own, spec, study, {record.number: record for record, _ in wrong if record})
                if own is not tracker:
                    own.close("")
            tracker.close("STOPPED" if search.study.progress().left else "FINISHED")
        found = [list(_findings(place, spec, study)) for place, study in search.studies]
    return [text for each in found for _, text in each]


def show(found: Mapping[str, Any], console: Console, *, as_json: bool) -> None:
    """Prints a cluster's checks (`search.health`), where there are any, and the findings of each search."""
    if as_json:
        shown = found if found["cluster"] else found["searches"]
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return
    lines = [f"{each['subject']}: {each['wrong'] or 'ok, ' + each['told']}" for each in found["cluster"]]
    for search, findings in found["searches"].items():
        lines += [f"{search}: {finding}" for finding in findings or ["all agree"]]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def all_well(found: Mapping[str, Any]) -> bool:
    """Whether nothing was found wrong."""
    return not any(check["wrong"] for check in found["cluster"]) and not any(found["searches"].values())


def _findings(home: Home, spec: SearchSpec, study: SearchStudy) -> Iterator[tuple[TrialRecord | None, str]]:
    role = study.role
    for file in sorted(home.outbox.glob("*.jsonl")):
        yield None, f"the outbox holds {file.name}: MLflow has not acknowledged it"
    runs = child_runs(spec, study)
    for record in study.records():
        found = runs.pop(record.number, [])
        if len(found) != 1:
            yield record, f"{role} {record.number} has {len(found)} runs in MLflow, not one"
            continue
        (run,) = found
        ending = record.ending or Ending.INTERRUPTED
        if run.status != ENDINGS[ending].mlflow:
            yield record, f"{role} {record.number} is {ending.value} in Optuna, but its run is {run.status}"
        if run.repeated:
            yield None, f"the run of {role} {record.number} has two points of {run.repeated} at one epoch"
        has_model = (home.trial(record.number) / MODEL_FOLDER).is_dir()
        if record.ending and has_model and not run.model:
            yield record, f"{role} {record.number} has a model that MLflow does not have"
    for number in runs:
        yield None, f"MLflow has a run of {role} {number}, which Optuna does not have"


def _mend(tracker: Tracker, spec: SearchSpec, study: SearchStudy, wrong: dict[int, TrialRecord]) -> None:
    """Sends what the outbox holds, then tells MLflow the trials that are wrong once more."""
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
        tracker.trial_ended(number, ending, record.best, record.reason)
