"""What a search has found, as plain rows for people and programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from search.errors import BadInput, TransferSearchError
from search.home import Home
from search.search import Search
from search.study.agenda import PHASE
from search.study.ensemble import made_of
from search.study.finalists import Finalist, candidates
from search.study.trials import Ending, TrialRecord
from trainables.record import MODEL_FOLDER, TEST_METRICS
from trainables.training.keeping import value_of

__all__ = [
    "BrokenRow",
    "FinalistRow",
    "FinalistRuns",
    "SearchRow",
    "TrialRow",
    "WinnerRow",
    "best_rows",
    "chosen",
    "made_told",
    "missed_told",
    "model_folder",
    "model_told",
    "summaries",
    "summary",
    "told",
    "trial_rows",
]


@dataclass(frozen=True, kw_only=True)
class FinalistRuns:
    """How many runs a search's finalists have, and how many have ended."""

    runs: int
    ended: int


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """One search: its state, its counts, its best.

    Attributes:
        search: its name.
        state: RUNNING, STOPPED or FINISHED.
        completed, pruned, failed, running: trials that are so.
        budget: trials that it may count.
        counted: trials that count.
        best_trial: number of the best trial; None before one completes.
        value: the best trial's value of the first objective.
        finalists: None where the search has none.
    """

    search: str
    state: str
    completed: int
    pruned: int
    failed: int
    running: int
    budget: int
    counted: int
    best_trial: int | None
    value: float | None
    finalists: FinalistRuns | None

    def document(self) -> dict[str, Any]:
        """The row as programs get it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class BrokenRow:
    """A search that cannot be opened, and why."""

    search: str
    wrong: str

    def document(self) -> dict[str, Any]:
        """The row as programs get it."""
        return {"search": self.search, "state": "BROKEN", "wrong": self.wrong}


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial.

    Attributes:
        search: the search's name.
        trial: its number in the study.
        state: as Optuna's storage says.
        ending: how it ended; None while it runs.
        value: what its kept model is expected to have of the first objective.
        model_value: what that model had of it, at `epoch`.
        epoch: whose model it keeps.
        epochs: how many it ran.
        params: its hyperparameters.
        sampled: the names of those that the search varies.
        mlflow_run_id, mlflow_run_url: its run.
        model_uri: under which MLflow loads its model.
        reason: why it did not complete.
        model_of: whose run and model these are: those of the `trial`; of a `finalist`, its run on a fresh
            seed; the winner's `refit`; or the `ensemble` of the best trials. The value is the trial's or the
            finalist's in any case: a refit has seen the validation images.
        corrected: of the best trial, its accuracy without what it owes to being the best of many; None where
            that is not known.
        test: the model's scores on the test split, where it was scored there.
        shares: of an ensemble, what part each trial has in it.
        chance: of the best trial, the share of the most frequent class where it does not beat that: nothing
            was found.
        objectives: what the trial has of each objective and of what is constrained.
        violated: the constraints of the search that it misses, in words; such a trial is never the best.
        phase: `screen` or `tune`, where it came before the sampler drew; else nothing.
    """

    search: str
    trial: int
    state: str
    ending: str | None
    value: float | None
    model_value: float | None
    epoch: int | None
    epochs: int
    params: Mapping[str, Any]
    sampled: tuple[str, ...]
    mlflow_run_id: str | None
    mlflow_run_url: str | None
    model_uri: str | None
    reason: str
    model_of: str = "trial"
    corrected: float | None = None
    test: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[int, float] = field(default_factory=dict)
    chance: float | None = None
    objectives: Mapping[str, float] = field(default_factory=dict)
    violated: tuple[str, ...] = ()
    phase: str = ""

    def document(self) -> dict[str, Any]:
        """The row as programs get it."""
        return {**asdict(self), "sampled": list(self.sampled), "violated": list(self.violated)}


@dataclass(frozen=True, kw_only=True)
class FinalistRow(TrialRow):
    """A finalist: `trial` is the search's, the rest is of its run on the first fresh seed.

    Attributes:
        finalist_run: the number of that run in the finalists' study.
        objective: the first objective.
    """

    finalist_run: int
    objective: str


@dataclass(frozen=True, kw_only=True)
class WinnerRow(FinalistRow):
    """The winner among a search's finalists.

    Attributes:
        finalists: all of them, the winner first.
    """

    finalists: tuple[Finalist, ...]

    def document(self) -> dict[str, Any]:
        return {**super().document(), "finalists": [finalist.row() for finalist in self.finalists]}


def summary(search: Search) -> SearchRow:
    """One search in a row."""
    progress, leader, finalists = search.study.progress(), search.study.leader(), _finalist_runs(search)
    is_over = (
        not progress.left
        and not progress.running
        and (finalists is None or finalists.ended == finalists.runs)
        and not search.lacks_ensemble
        and search.to_refit is None
    )
    state = "RUNNING" if search.home.driver() else ("FINISHED" if is_over else "STOPPED")
    return SearchRow(
        search=search.name,
        state=state,
        **vars(progress),
        counted=progress.counted,
        best_trial=leader[0] if leader else None,
        value=leader[1] if leader else None,
        finalists=finalists,
    )


def summaries(homes: Iterable[Home]) -> list[SearchRow | BrokenRow]:
    """Every search in a row; one that cannot be opened is a `BrokenRow`, and ends no other."""
    rows: list[SearchRow | BrokenRow] = []
    for home in homes:
        try:
            rows.append(summary(Search.open(home)))
        except Exception as error:  # of whatever a damaged file makes its reader stumble on
            rows.append(BrokenRow(search=home.name, wrong=told(error)))
    return rows


def told(error: Exception) -> str:
    """An error of a search, in the words that are for people."""
    if isinstance(error, TransferSearchError):
        return str(error)
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _finalist_runs(search: Search) -> FinalistRuns | None:
    wanted, chosen = search.spec.search.finalists, candidates(search.study)
    is_over = search.study.is_over
    if wanted is None or (not chosen and is_over):
        return None
    latest = search.finalists.latest() if search.finalists else {}
    ended = [pair for pair, run in latest.items() if pair[0] in chosen and run.state != "RUNNING"]
    return FinalistRuns(runs=(len(chosen) if is_over else wanted.top) * wanted.seeds, ended=len(ended))


def trial_rows(search: Search, *, linked: bool = True) -> list[TrialRow]:
    """Every trial that was begun, by number, with its state as Optuna's storage says.

    `value` is what the trial's kept model is expected to have, `model_value` what it had, at `epoch`. Where
    not `linked`, MLflow is not asked for the models, which is quicker.
    """
    return [_row(search, record, linked) for record in search.study.records()]


def best_rows(search: Search, *, linked: bool = True) -> list[TrialRow]:
    """The best trial; several where there are several objectives. Its value is the mean of all its repeats.

    Where the search's finalists have run, the winner among them, as a `WinnerRow`. Where not `linked`, MLflow
    is not asked for the models.

    Raises:
        BadInput: if no trial has completed.
    """
    numbers = {trial.number for trial in search.study.best()}
    if not numbers and (missed := missed_told(search)):
        raise BadInput(missed)
    if not numbers:
        raise BadInput(
            f"no trial of {search.name!r} has completed yet; see `transfer-search status {search.name}`"
        )
    ranked = search.standings
    if ranked:
        row: TrialRow = WinnerRow(**_finalist_values(search, ranked[0], linked), finalists=tuple(ranked))
        return [_crowned(search, row, linked)]
    records = [record for record in search.study.records() if record.number in numbers]
    rows = [_row(search, record, linked) for record in records]
    if search.spec.multi_objective:
        return rows
    told = search.study.corrected
    return [
        _crowned(
            search,
            replace(
                row,
                value=search.study.worth(row.trial),
                corrected=told["value"] if told.get("trial") == row.trial else None,
                chance=search.study.chance,
            ),
            linked,
        )
        for row in rows
    ]


def missed_told(search: Search) -> str:
    """What to say of a search of which no completed trial meets its constraints; empty where one does."""
    records = [record for record in search.study.records() if record.state == "COMPLETE"]
    if not records or any(not record.violated for record in records):
        return ""
    shown = "; ".join(f"trial {record.number}: {', '.join(record.violated)}" for record in records[:3])
    return (
        f"none of the {len(records)} completed trials of {search.name!r} meets search.constraints ({shown}); "
        "launch another search with wider bounds, or with smaller backbones or images in its space"
    )


def _crowned(search: Search, row: TrialRow, linked: bool) -> TrialRow:
    """The row of a winner, with the run and the model of what takes its place, if that is made."""
    champion = search.champion
    if champion is None:
        return row
    own = _values(search, champion.record, linked)
    names = ("mlflow_run_id", "mlflow_run_url", "model_uri", "epoch", "epochs", "test")
    told = {name: own[name] for name in names}
    value = None if champion.has_seen_validation else own["model_value"]
    return replace(row, **told, model_of=champion.role, model_value=value, shares=champion.shares)


def _finalist_values(search: Search, finalist: Finalist, linked: bool) -> dict[str, Any]:
    """The fields of a `FinalistRow`: of the finalist's run on the first fresh seed."""
    assert search.finalists is not None, "finalists stand only where their study is"
    run = next(record for record in search.finalists.records() if record.number == finalist.run)
    return {
        **_values(search, run, linked),
        "trial": finalist.trial,
        "model_of": "finalist",
        "finalist_run": run.number,
        "objective": search.metric,
    }


def model_told(row: TrialRow) -> str:
    """Whose model a row names, in words."""
    if row.model_of in ("ensemble", "refit"):
        return f"the {made_of(row.model_of, row.trial, row.shares)}"
    return f"trial {row.trial}"


def made_told(row: TrialRow) -> str:
    """In a sentence, what was made of the winner, which `export` gives, and what it has on the test split."""
    if row.model_of == "refit":
        told = "won: its refit on the training and validation splits, which `export` gives"
    elif row.model_of == "ensemble":
        told = f"won: {model_told(row)}, which `export` gives"
    else:
        return ""
    accuracy = row.test.get("test_accuracy")
    return told if accuracy is None else f"{told}; test_accuracy {accuracy:.4f}"


def model_folder(search: Search, row: TrialRow) -> Path:
    """Where the model of a row of `chosen` lies."""
    champion = search.champion
    if champion is not None and row.model_of == champion.role:
        return champion.home.trial(champion.record.number) / MODEL_FOLDER
    return trial_folder(search, row) / MODEL_FOLDER


def trial_folder(search: Search, row: TrialRow) -> Path:
    """The folder of a row's trial, or of its run among the finalists, whatever was made of it."""
    if isinstance(row, FinalistRow):
        return search.home.finalists.trial(row.finalist_run)
    return search.home.trial(row.trial)


def chosen(search: Search, trial: int | None, finalist: int | None = None) -> TrialRow:
    """The row of a trial that has a model: the given one, or the best, as `best_rows` gives it.

    Args:
        search: whose trial.
        trial: its number, for the model of the search itself.
        finalist: the number of a trial among the finalists, for its run on the first fresh seed.

    Raises:
        BadInput: if there is no such trial, or it has no model.
    """
    if finalist is not None:
        ranked = {each.trial: each for each in search.standings if each.run is not None}
        if finalist not in ranked:
            known = f"it has {', '.join(map(str, ranked))}" if ranked else "none have ended"
            raise BadInput(f"{search.name!r} has no finalist {finalist}; {known}")
        return FinalistRow(**_finalist_values(search, ranked[finalist], linked=True))
    if trial is None:
        return best_rows(search)[0]
    rows = {row.trial: row for row in trial_rows(search)}
    if trial not in rows:
        raise BadInput(f"{search.name!r} has no trial {trial}; it has 0 to {max(rows, default=-1)}")
    if rows[trial].epoch is None:
        raise BadInput(f"trial {trial} of {search.name!r} ended before its first epoch: it has no model")
    return rows[trial]


def _row(search: Search, record: TrialRecord, linked: bool) -> TrialRow:
    phase = search.study.tags(record.number).get(PHASE, "")
    return TrialRow(**_values(search, record, linked), phase=phase)


def _values(search: Search, record: TrialRecord, linked: bool) -> dict[str, Any]:
    return {
        "search": search.name,
        "trial": record.number,
        "state": record.state,
        "ending": None if record.ending is None else record.ending.value,
        "value": record.value,
        "model_value": record.best[search.metric] if record.best else None,
        "epoch": record.best_epoch,
        "epochs": record.epochs,
        "params": record.params,
        "sampled": tuple(name for name in record.params if search.spec.domain(name).sampled),
        "mlflow_run_id": record.mlflow_run_id,
        "mlflow_run_url": search.links.url(record.mlflow_run_id),
        "model_uri": search.links.model(record.mlflow_run_id) if linked else None,
        "reason": record.reason if record.ending is not Ending.COMPLETED else "",
        "objectives": {
            name: value_of(record.best, name)
            for name in {**search.spec.search.objective, **search.spec.search.constraints}
            if record.best and name in record.best
        },
        "violated": record.violated,
        "test": {name: record.best[name] for name in TEST_METRICS if record.best and name in record.best},
    }
