"""What MLflow's pages say of a search in words, and how they first show its trials."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from search.console import short
from search.spec.search_spec import SearchSpec
from search.study.finalists import Finalist, Summary, interval_text, nothing_told, verdict
from search.study.search_study import SearchStudy
from search.study.trials import Ending, TrialRecord
from search.tracking.client import SEARCH_TAG, STATE_TAG

__all__ = [
    "NOTE_TAG",
    "ensemble_note",
    "refit_note",
    "result_note",
    "search_note",
    "shared_view",
    "trial_note",
]

NOTE_TAG = "mlflow.note.content"
_VIEW_TAG = "mlflow.sharedViewState."
_COLUMNS = ("policy", "strategy", "lr", "backbone")
_WIDTHS = {"tags": 90, "metrics": 120, "params": 100}
_BEST = 5


def search_note(spec: SearchSpec) -> str:
    """The description of a search's run, in Markdown, before anything is known of its trials."""
    metric, direction = next(iter(spec.search.objective.items()))
    sampled = ", ".join(f"`{name}`" for name in spec.sampled)
    return (
        f"**{spec.name}** searches {spec.search.trials} trials of at most {spec.search.max_epochs} epochs on "
        f"`{spec.data.source}` to {direction} `{metric}`, over {sampled}."
    )


def result_note(
    study: SearchStudy, records: Sequence[TrialRecord], finalists: Sequence[Finalist], made: str = ""
) -> str:
    """The description of a search's run, in Markdown: what won, by how much, on what, and what to do next.

    Args:
        study: the search's own.
        records: of all its trials.
        finalists: the winner first; empty where there are none.
        made: what was made of the winner, if anything.
    """
    best = _ranked(study, records)
    metric = next(iter(study.spec.search.objective))
    told = [_won(finalists, metric)] if finalists else [_best(study, best, metric)]
    told += [f"What `export` gives: the {made}."] if made else []
    told += [_searched(study), _table(study, best, metric), _commands(study.spec)]
    return "\n\n".join(part for part in told if part)


def _won(finalists: Sequence[Finalist], metric: str) -> str:
    winner = finalists[0]
    scores = {metric: winner.validation, **winner.test}
    parts = [
        _score(name, scores[name]) for name in (metric, "test_accuracy", "test_macro_f1") if name in scores
    ]
    if len(finalists) > 1 and winner.validation.mean is not None and finalists[1].validation.mean is not None:
        gap = abs(winner.validation.mean - finalists[1].validation.mean)
        parts.append(f"{gap:.4f} from trial {finalists[1].trial}, the next")
    told = verdict(finalists)
    return f"**Trial {winner.trial} won**: {', '.join(parts)}. {told[:1].upper()}{told[1:]}."


def _score(name: str, summary: Summary) -> str:
    covered = interval_text(summary)
    return f"`{name}` {summary.mean:.4f}" + (f" (95 %: {covered})" if covered else "")


def _best(study: SearchStudy, best: Sequence[TrialRecord], metric: str) -> str:
    leader = study.leader()
    if leader is None:
        return "**No trial has completed.**"
    number, value = leader
    others = [record for record in best if record.number != number]
    told = f"**Trial {number} is best**: `{metric}` {value:.4f} (selected)"
    if others and others[0].value is not None and not study.spec.multi_objective:
        told += f", {abs(value - others[0].value):.4f} from trial {others[0].number}, the next"
    if study.chance is not None:
        told += f". Nothing was found: it {nothing_told(study.chance)}"
    return told + "."


def _searched(study: SearchStudy) -> str:
    """What was searched, on what, and how the trials ended."""
    spec, progress, known = study.spec, study.progress(), study.premises or {}
    sampled = ", ".join(f"`{name}`" for name in spec.sampled)
    images = known.get("images", {})
    counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
    data = f" ({counts} {spec.items} in {len(known['classes'])} classes)" if counts else ""
    return (
        f"{progress.counted} of {study.budget} trials of at most {spec.search.max_epochs} epochs on "
        f"`{spec.data.source}`{data}, over {sampled}: {progress.completed} completed, {progress.pruned} "
        f"pruned, {progress.failed} failed."
    )


def _ranked(study: SearchStudy, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records of the completed trials, the best first."""
    known = {record.number: record for record in records}
    best = study.best() if study.spec.multi_objective else study.ranked()
    return [known[trial.number] for trial in best]


def _table(study: SearchStudy, ranked: Sequence[TrialRecord], metric: str) -> str:
    """The best trials with what they drew."""
    best = ranked[:_BEST]
    if not best:
        return ""
    used = [name for name in study.spec.sampled if any(name in record.params for record in best)][:6]
    lines = [("trial", metric, "epochs", *used), ("---",) * (3 + len(used))]
    lines += [tuple(_cells(record, used)) for record in best]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(record: TrialRecord, names: Sequence[str]) -> Iterator[str]:
    yield str(record.number)
    yield "" if record.value is None else f"{record.value:.4f}"
    yield str(record.epochs)
    for name in names:
        text = short(record.params[name]) if name in record.params else ""
        yield text.replace("|", "\\|")[:40]


def _commands(spec: SearchSpec) -> str:
    commands = {
        f"export {spec.name} --to exports/{spec.name}": "take the model away",
        f"report {spec.name}": "all of it as one page",
        f"resume {spec.name} --trials {2 * spec.search.trials}": "search on",
        f"launch spec.yaml --name {spec.name}-again": "repeat it, from this run's artifact",
    }
    width = max(map(len, commands))
    lines = [f"transfer-search {command:{width}}   # {what}" for command, what in commands.items()]
    return "\n".join(["```sh", *lines, "```"])


def ensemble_note(spec: SearchSpec) -> str:
    """The description of an ensemble's run."""
    return (
        f"Ensemble of the best trials of `{spec.name}`: their probabilities averaged. Its validation scores "
        f"are of the {spec.items} that its members were chosen on; `best_` is what ensembles have on those "
        "that did not choose them. The parameters are those of the member with the largest share."
    )


def refit_note(spec: SearchSpec, ending: Ending, reason: str) -> str:
    """The description of the run of a winner's refit."""
    told = (
        f"{ending.value.capitalize().replace('_', ' ')} refit of the winner of `{spec.name}`: the same "
        f"configuration on training and validation {spec.items} together. It has seen the latter, so the "
        "scores called `seen_` say nothing of new ones; those on the test split do."
    )
    return f"{told}\n\n{_last(reason)}" if reason and ending is not Ending.COMPLETED else told


def trial_note(spec: SearchSpec, ending: Ending, reason: str, best: Mapping[str, float] | None) -> str:
    """The description of a trial's run, in a sentence or two."""
    metric = next(iter(spec.search.objective))
    told = f"{ending.value.capitalize().replace('_', ' ')} trial of `{spec.name}` on `{spec.data.source}`."
    if best:
        told += f" Best epoch {int(best['epoch'])}: `{metric}` {best[metric]:.4f}."
    if reason and ending is not Ending.COMPLETED:
        told += f"\n\n{_last(reason)}"
    return told


def _last(reason: str) -> str:
    return reason.strip().splitlines()[-1][-500:]


def shared_view(spec: SearchSpec, search_id: str) -> tuple[str, str]:
    """The tag of an experiment, and its value, that shows a search's trials with the best first.

    The state stands left of the score: MLflow's own order puts tags behind everything else, out of sight.
    """
    metric, direction = next(iter(spec.search.objective.items()))
    sampled = spec.sampled
    shown = list(dict.fromkeys([*(name for name in _COLUMNS if name in spec.space), *sampled]))[:6]
    columns = [
        f"tags.`{STATE_TAG}`",
        f"metrics.`best_{metric}`",
        *(f"params.`{name}`" for name in sorted(shown, key=lambda name: name not in sampled)),
    ]
    widths: dict[str, Any] = {column: _WIDTHS[column.partition(".")[0]] for column in columns}
    state = {
        "searchFilter": f"tags.`{SEARCH_TAG}` = '{search_id}'",
        "orderByKey": f"metrics.`best_{metric}`",
        "orderByAsc": direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [*columns, "duration"],
        "columnWidths": {**widths, "runDateAndNestInfo": 130, "duration": 80},
        "viewMaximized": True,
    }
    return f"{_VIEW_TAG}{search_id}", json.dumps(state)
