"""Do the home, Optuna and MLflow agree? What does not is named, and mended from Optuna and the folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from search.errors import ExperimentDeleted
from search.home import Home
from search.results.findings import Cure, Finding, findings
from search.search import Search
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.study.trials import Ending, TrialRecord
from search.tracking.moved import missing_store, moved_store
from search.tracking.reader import delete_models, delete_run, parent_run
from search.tracking.stores import check_store
from search.tracking.tracker import Tracker
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import read_epochs
from trainables.record import STATE_FILE

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["all_well", "examine", "show"]

_FLUSH_SECONDS = 600.0
_CHECKED = ("cluster", "machine")


Tell = Callable[[str], None]


def examine(search: Search, *, repair: bool = False, tell: Tell = lambda text: None) -> list[str]:
    """What is wrong with a search that no driver runs, in words; with `repair`, what is left of it.

    A search that is being run is not looked at: its driver is ahead of MLflow by design.

    Args:
        search: the one to look at.
        repair: whether to mend what can be mended, from Optuna's study and the trials' folders.
        tell: is told what is mended, and how.
    """
    home, spec = search.home, search.spec
    if home.driver() is not None:
        return []
    if told := _of_store(search, repair=repair, tell=tell):
        return [told]
    found = [list(findings(place, spec, study)) for place, study in search.studies]
    found[0] += _of_parent(spec, search.study)
    if repair and any(found):
        with home.lock():
            tracker = Tracker(spec, home, search.study)
            for (place, study), wrong in zip(search.studies, found, strict=True):
                own = tracker if study is search.study else Tracker(spec, place, study, within=tracker)
                _mend(own, place, spec, study, wrong, tell)
                if own is not tracker:
                    own.close("")
            tracker.close("STOPPED" if search.study.progress().left else "FINISHED")
        return examine(Search.open(home))
    every = [each for wrong in found for each in wrong]
    return [f"{each.text} ({each.cure.value})" if each.cure in _TOLD else each.text for each in every]


def _of_store(search: Search, *, repair: bool, tell: Tell) -> str | None:
    """What keeps MLflow's store from being compared at all, unless it is mended now."""
    uri, name = search.spec.tracking_uri, search.name
    if gone := missing_store(uri):
        if not repair:
            return (
                f"MLflow's store {gone} is not there; if it has moved, `transfer-search resume {name} --set "
                f"tracking.uri=URL` says where; else `transfer-search doctor {name} --repair` makes it anew"
            )
        tell(f"MLflow's store {gone} is not there: it is made anew")
    try:
        check_store(search.spec)
    except ExperimentDeleted as error:
        return str(error)
    if moved := moved_store(uri):
        if not repair:
            return f"{moved} (`resume`, or `doctor {name} --repair`, mends it)"
        tell(f"{moved}: its tables are given the new addresses")
        moved.mend()
    return None


_TOLD = (Cure.RESUME, Cure.NONE)


def _of_parent(spec: SearchSpec, search: SearchStudy) -> list[Finding]:
    """What is wrong with the search's own run."""
    parent = parent_run(spec, search)
    told = ""
    if not parent.is_there and search.records():
        told = "the search has no run of its own in MLflow, or it was deleted"
    elif parent.status == "RUNNING":
        told = "the search's run in MLflow is RUNNING, but no driver runs it"
    return [Finding(number=None, text=told, cure=Cure.RETELL)] if told else []


def show(found: Mapping[str, Any], console: Console, *, as_json: bool) -> None:
    """Prints the checks of a cluster or of this machine, if any, and of each search what is wrong."""
    checks = {name: found[name] for name in _CHECKED if found.get(name)}
    if as_json:
        shown = {**checks, "searches": found["searches"]} if checks else found["searches"]
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return
    every = [each for told in checks.values() for each in told]
    lines = [f"{each['subject']}: {each['wrong'] or 'ok, ' + each['told']}" for each in every]
    for search, wrong in found["searches"].items():
        lines += [f"{search}: {finding}" for finding in wrong or ["all agree"]]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def all_well(found: Mapping[str, Any]) -> bool:
    """Whether nothing was found wrong."""
    every = [each for name in _CHECKED for each in found.get(name, ())]
    return not any(each["wrong"] for each in every) and not any(found["searches"].values())


def _mend(
    tracker: Tracker, home: Home, spec: SearchSpec, study: SearchStudy, wrong: list[Finding], tell: Tell
) -> None:
    """Sends what the outbox holds, then tells MLflow the trials that are wrong once more."""
    for finding in wrong:
        mends = finding.cure not in (Cure.RESUME, Cure.NONE)
        tell(f"{finding.text}: {finding.cure.value}" if mends else f"{finding.text}; {finding.cure.value}")
        if finding.cure is Cure.CLEAR and finding.number is not None:
            (home.trial(finding.number) / STATE_FILE).unlink(missing_ok=True)
    remade = {each.run_id: each for finding in wrong if finding.cure is Cure.REMAKE for each in finding.runs}
    for run in remade.values():
        delete_run(spec, run)
    relogged = {each.run_id: each for finding in wrong if finding.cure is Cure.RELOG for each in finding.runs}
    for name in relogged.keys() - remade.keys():
        delete_models(spec, relogged[name])
    tracker.replay()
    again = {each.number for each in wrong if each.cure in (Cure.RETELL, Cure.REMAKE, Cure.RELOG)}
    for record in study.records():
        if record.number in again:
            _retell(tracker, home, spec, study, record)
    tracker.flush(_FLUSH_SECONDS)
    for number in again - {None}:
        if number is not None and (run_id := tracker.run_of(number)):
            study.ran_as(number, run_id)


def _retell(tracker: Tracker, home: Home, spec: SearchSpec, study: SearchStudy, record: TrialRecord) -> None:
    """Tells MLflow a trial from its start to its end; what it has is not doubled."""
    number = record.number
    begun = study.begun(number)
    if begun is None:
        return
    tracker.trial_started(begun, again=True)
    try:
        recorded = read_epochs(home.trial(number))
    except Damaged:
        recorded = {}
    metric = next(iter(spec.search.objective))
    for epoch, value in study.reported(number).items():
        if epoch not in recorded:  # the tracker tells those that are
            tracker.epoch_ended(number, epoch, {metric: value})
    tracker.trial_ended(number, record.ending or Ending.INTERRUPTED, record.best, record.reason)
