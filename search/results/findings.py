"""Where the records of a search disagree: Optuna's study, the trials' folders, and MLflow's runs.

Every invariant of a trial is looked at point by point. Optuna is the truth about trials and their values; the
record in a trial's folder, which carries a digest, is the truth about the rest of its metrics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from search.home import Home
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.study.trials import ENDINGS, Ending, TrialRecord
from search.tracking.outbox import Outbox
from search.tracking.reader import ChildRun, child_runs
from trainables.files.sealed import Damaged, unsealed
from trainables.files.trial_folder import Epochs, model_metric, read_epochs
from trainables.record import METRICS, STATE_FILE
from trainables.training.keeping import value_of

__all__ = ["Cure", "Finding", "findings"]


class Cure(Enum):
    """What mends a disagreement."""

    RETELL = "MLflow is told the trial once more"
    REMAKE = "its run is made again"
    RELOG = "its model is logged again"
    SEND = "the outbox is sent"
    CLEAR = "what is left over is removed"
    RESUME = "`resume` mends it"
    NONE = "nothing mends it"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One disagreement.

    Attributes:
        number: the trial's; None: of the search.
        text: for people.
        cure: what mends it.
        runs: MLflow's runs that it is about.
    """

    number: int | None
    text: str
    cure: Cure
    runs: tuple[ChildRun, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """All that is known of a trial by its study and its folder."""

    name: str
    record: TrialRecord
    told: Mapping[int, Mapping[str, float]]
    recorded: Epochs


def findings(home: Home, spec: SearchSpec, study: SearchStudy) -> Iterator[Finding]:
    """What is wrong with a study that no driver works on."""
    outbox = Outbox(home.outbox)
    for number in outbox.numbers():
        refusal = outbox.refusals().get(number)
        why = f"MLflow refused it: {refusal.splitlines()[0]}" if refusal else "MLflow has not acknowledged it"
        yield Finding(number=None, text=f"the outbox holds {number:05d}.jsonl: {why}", cure=Cure.SEND)
        if damaged := outbox.events(number)[1]:
            told = f"the outbox's {number:05d}.jsonl has {damaged} damaged lines"
            yield Finding(number=number, text=told, cure=Cure.RETELL)
    runs = child_runs(spec, study)
    for record in study.records():
        mine = runs.pop(record.number, [])
        found, trial = _of_folder(home, spec, study, record)
        yield from found
        if len(mine) != 1:
            told = f"{trial.name} has {len(mine)} runs in MLflow, not one"
            yield _finding(record, told, Cure.REMAKE if mine else Cure.RETELL, *mine)
            continue
        yield from _of_run(spec, study, trial, mine[0], home)
    for number in runs:
        told = f"MLflow has a run of {study.role} {number}, which Optuna does not have"
        yield Finding(number=None, text=told, cure=Cure.NONE)
    known = {record.number for record in study.records()}
    for folder in sorted(home.checkpoints.glob("[0-9]*")):
        if folder.name.isdigit() and int(folder.name) not in known:
            told = f"{folder} is of a {study.role} that Optuna does not have"
            yield Finding(number=None, text=told, cure=Cure.NONE)


def _finding(record: TrialRecord, text: str, cure: Cure, *runs: ChildRun) -> Finding:
    return Finding(number=record.number, text=text, cure=cure, runs=runs)


# The study and the folder


def _of_folder(
    home: Home, spec: SearchSpec, study: SearchStudy, record: TrialRecord
) -> tuple[list[Finding], _Trial]:
    """What is wrong with a trial but for MLflow, and the trial."""
    name, number = f"{study.role} {record.number}", record.number
    found: list[Finding] = []
    recorded: Epochs = {}
    try:
        recorded = read_epochs(home.trial(number))
    except Damaged as damage:
        cure = Cure.RESUME if record.ending is None else Cure.NONE
        found.append(_finding(record, f"{name}: {damage}", cure))
    reported, epochs = study.reported(number), study.told(number)
    metric = next(iter(spec.search.objective))
    for epoch in sorted(epochs | set(reported)):
        value = reported.get(epoch)
        known = recorded.get(epoch, {}).get(metric)
        if value is not None and known is not None and not _same(value, known):
            told = f"{name}: {metric} of epoch {epoch} is {value:g} in Optuna, but {known:g} in its folder"
            found.append(_finding(record, told, Cure.NONE))
    holes = sorted(set(range(1, max(epochs, default=0) + 1)) - epochs)
    if holes:
        told = f"{name}: Optuna lacks epoch {', '.join(map(str, holes))} of {max(epochs)}"
        mends = record.ending is None and set(holes) <= recorded.keys()
        found.append(_finding(record, told, Cure.RESUME if mends else Cure.NONE))
    found += _of_value(study, name, record)
    found += _of_model(home, name, record, seen=study.tells_expected(number))
    state = home.trial(number) / STATE_FILE
    if state.is_file():
        found += _of_state(state, name, record)
    told_metrics = {
        epoch: recorded.get(epoch, {metric: reported[epoch]} if epoch in reported else {})
        for epoch in sorted(epochs)
    }
    return found, _Trial(name=name, record=record, told=told_metrics, recorded=recorded)


def _of_value(study: SearchStudy, name: str, record: TrialRecord) -> Iterator[Finding]:
    values = study.values(record.number)
    if record.ending is not Ending.COMPLETED or record.best is None or values is None:
        return
    for metric, value in zip(study.spec.search.objective, values, strict=True):
        known = value_of(record.best, metric) if metric in record.best else None
        if known is not None and not _same(value, known):
            told = f"{name}: its value is {value:g} in Optuna, but its ending was told with {known:g}"
            yield _finding(record, told, Cure.NONE)


def _of_model(home: Home, name: str, record: TrialRecord, *, seen: bool) -> Iterator[Finding]:
    """Where a model's card and the record of its run disagree; of validation images `seen` they may."""
    try:
        metric = model_metric(home.trial(record.number))
    except Damaged as damage:
        cure = Cure.RESUME if record.ending is None else Cure.NONE
        yield _finding(record, f"{name}: {damage}", cure)
        return
    if metric is None or record.ending is None or record.best is None:
        return
    for key in sorted(metric.keys() & record.best.keys()):
        if not (seen and key.startswith("val_")) and not _same(metric[key], record.best[key]):
            told = f"{name}: its model has {key} {metric[key]:g}, but its ending was told with"
            yield _finding(record, f"{told} {record.best[key]:g}", Cure.NONE)
            return


def _of_state(state: Path, name: str, record: TrialRecord) -> Iterator[Finding]:
    if record.ending is not None:
        yield _finding(record, f"{name} has ended, but {state} is left", Cure.CLEAR)
        return
    try:
        unsealed(state)
    except Damaged as damage:
        yield _finding(record, f"{name}: {damage}", Cure.RESUME)


# MLflow's run


def _of_run(
    spec: SearchSpec, study: SearchStudy, trial: _Trial, run: ChildRun, home: Home
) -> Iterator[Finding]:
    record, name = trial.record, trial.name
    ending = record.ending or Ending.INTERRUPTED
    as_before = ending is Ending.PRUNED and run.status == "KILLED"  # so earlier versions told it
    if run.status != ENDINGS[ending].mlflow and not as_before:
        told = f"{name} is {ending.value} in Optuna, but its run is {run.status}"
        yield _finding(record, told, Cure.RETELL, run)
    elif run.state != ending.value:
        told = f"{name} is {ending.value} in Optuna, but its run says {run.state or 'nothing'}"
        yield _finding(record, told, Cure.RETELL, run)
    if record.mlflow_run_id not in (None, run.run_id):
        told = f"{name} ran as {record.mlflow_run_id} by Optuna, but its run is {run.run_id}"
        yield _finding(record, told, Cure.RETELL, run)
    if record.ending and record.best:
        epoch = f"{record.best['epoch']:g}"
        if run.tags.get("best_epoch") != epoch:
            told = f"the run of {name} says that epoch {run.tags.get('best_epoch')} is best, not {epoch}"
            yield _finding(record, told, Cure.RETELL, run)
    yield from _of_params(study, trial, run)
    yield from _of_points(trial, run)
    yield from _of_models(trial, run, home)


def _of_params(study: SearchStudy, trial: _Trial, run: ChildRun) -> Iterator[Finding]:
    begun, written = study.begun(trial.record.number), study.written_hparams(trial.record.number)
    for key, value in (begun.hparams.active if begun else {}).items():
        if key not in written:
            continue  # of a later version than the trial
        known, meant = run.params.get(key), value if isinstance(value, str) else json.dumps(value)
        if known != meant:
            told = f"the run of {trial.name} has {key} {known or 'not'}, but it is {meant}"
            yield _finding(trial.record, told, Cure.REMAKE if known else Cure.RETELL, run)


def _of_points(trial: _Trial, run: ChildRun) -> Iterator[Finding]:
    for name in dict.fromkeys([*METRICS, *(name for told in trial.told.values() for name in told)]):
        points = run.points.get(name, [])
        steps = [step for step, _ in points]
        where = f"the run of {trial.name}, {name}"
        if len(set(steps)) < len(steps):
            twice = sorted({step for step in steps if steps.count(step) > 1})
            yield _finding(trial.record, f"{where}: two points of epoch {_listed(twice)}", Cure.REMAKE, run)
        missing = [epoch for epoch, told in trial.told.items() if name in told and epoch not in steps]
        if missing:
            yield _finding(trial.record, f"{where}: no point of epoch {_listed(missing)}", Cure.RETELL, run)
        changed = [
            step
            for step, value in points
            if name in trial.told.get(step, {}) and not _same(value, trial.told[step][name])
        ]
        if changed:
            told = f"{where}: another value at epoch {_listed(changed)}"
            yield _finding(trial.record, told, Cure.REMAKE, run)
        unknown = sorted(set(steps) - trial.told.keys())
        if unknown and trial.record.ending not in (None, Ending.DIVERGED):
            told = f"{where}: a point of epoch {_listed(unknown)}, of which Optuna knows nothing"
            yield _finding(trial.record, told, Cure.REMAKE, run)


def _of_models(trial: _Trial, run: ChildRun, home: Home) -> Iterator[Finding]:
    record, name = trial.record, trial.name
    try:
        own = model_metric(home.trial(record.number))
    except Damaged:
        own = None  # told already
    if record.ending is None:
        return
    if own is not None and not run.models:
        yield _finding(record, f"{name} has a model that MLflow does not have", Cure.RELOG, run)
    if len(run.models) > 1:
        told = f"the run of {name} has {len(run.models)} models, not one"
        yield _finding(record, told, Cure.RELOG if own else Cure.NONE, run)
    for model in run.models:
        told = ""
        if not model.is_ready:
            told = f"the model of {name} in MLflow was never finished"
        elif model.damage:
            told = f"the model of {name} in MLflow: {model.damage}"
        elif own is not None and model.metric is not None and model.metric.get("epoch") != own.get("epoch"):
            told = f"the model of {name} in MLflow is of another epoch than that in its folder"
        if told:
            yield _finding(record, told, Cure.RELOG if own else Cure.NONE, run)


def _same(one: float, other: float) -> bool:
    return one == other or math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))
