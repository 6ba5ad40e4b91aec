"""What MLflow's run of a whole search tells: its best so far, its counts, what won and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from search.study.finalists import Finalist, text, verdict
from search.study.search_study import SearchStudy
from search.study.trials import TrialRecord
from search.tracking.notes import NOTE_TAG, result_note

__all__ = ["Overview", "overview"]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What is known of a search.

    Attributes:
        tags: of its run.
        points: of its run's metrics: name, step and value. Telling one twice changes nothing.
        texts: files of text, by name.
    """

    tags: Mapping[str, Any]
    points: Sequence[tuple[str, int, float]]
    texts: Mapping[str, str] = field(default_factory=dict)


def overview(
    study: SearchStudy,
    finalists: Sequence[Finalist] = (),
    *,
    corrected: float | None = None,
    made: str = "",
    scores: Mapping[str, float] = MappingProxyType({}),
) -> Overview:
    """What is known now of a search.

    Args:
        study: the search's own.
        finalists: the winner first; empty where there are none, or not yet.
        corrected: the best value without what it owes to being chosen; None where that is not known.
        made: what was made of the winner, in words.
        scores: of that, by metric.
    """
    metric, direction = next(iter(study.spec.search.objective.items()))
    progress, leader = study.progress(), study.leader()
    step = progress.counted
    records = study.records()
    tags: dict[str, Any] = {NOTE_TAG: result_note(study, records, finalists, made)}
    points = [(f"best_so_far_{metric}", at, value) for at, value in _best_so_far(records, direction)]
    points += [
        (f"trials_{state}", step, float(getattr(progress, state)))
        for state in ("completed", "pruned", "failed")
    ]
    if leader is not None:
        tags |= {"best_trial": leader[0], "best_value": f"{leader[1]:.6f}"}
    if corrected is not None:
        tags["best_value_corrected"] = f"{corrected:.6f}"
    if made:
        tags["won"] = made
    points += [(name, step, value) for name, value in scores.items()]
    if not finalists:
        return Overview(tags=tags, points=points)
    winner = finalists[0]
    tags |= {"winner": winner.trial, "verdict": verdict(finalists)}
    means = {f"winner_{metric}": winner.validation, **winner.test}
    points += [(name, step, each.mean) for name, each in means.items() if each.mean is not None]
    return Overview(tags=tags, points=points, texts={"finalists.txt": text(finalists, metric)})


def _best_so_far(records: Sequence[TrialRecord], direction: str) -> Iterator[tuple[int, float]]:
    """The best value among the trials up to a number: where it changes, and at the last trial.

    Trials behind one that still runs are left for later, since that may change what is said of them.
    """
    best: float | None = None
    told = -1
    for record in records:
        if record.state == "RUNNING":
            break
        told = record.number
        if record.state != "COMPLETE" or record.value is None or record.violated:
            continue
        is_better = best is None or (record.value > best if direction == "maximize" else record.value < best)
        if is_better:
            if best is not None and record.number:
                yield record.number - 1, best
            best = record.value
            yield record.number, best
    if best is not None:
        yield told, best
