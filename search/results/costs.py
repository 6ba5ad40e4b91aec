"""What a search's trials cost, what pruning saved, and why trials failed: rows for a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from search.console import duration
from search.results.rows import TrialRow
from search.search import Search
from search.study.agenda import SCREEN, TUNE
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import read_epochs

__all__ = ["cost", "failures", "rungs", "strategies"]


def _horizon(search: Search, row: TrialRow) -> int:
    """The epochs that a trial would have run."""
    return int(row.params.get("max_epochs", search.spec.search.max_epochs))


def _best(search: Search, rows: Sequence[TrialRow]) -> str:
    values = [row.value for row in rows if row.value is not None]
    better = max if next(iter(search.spec.search.objective.values())) == "maximize" else min
    return f"{better(values):.4f}" if values else ""


def cost(search: Search, rows: Sequence[TrialRow]) -> str:
    """How long the search took, and what pruning left out, in a sentence."""
    ran = sum(row.epochs for row in rows)
    pruned = [row for row in rows if row.state == "PRUNED"]
    saved = sum(_horizon(search, row) - row.epochs for row in pruned)
    told = f"{ran:,} epochs in {duration(search.study.seconds_spent)}."
    if not pruned:
        return f"{told} Nothing was pruned."
    share = saved / max(1, ran + saved)
    return f"{told} Pruning {len(pruned):,} trials saved {saved:,} epochs more, {share:.0%} of all."


def rungs(search: Search, rows: Sequence[TrialRow]) -> list[Sequence[Any]]:
    """By epoch at which trials were pruned: how many came there, ended there, their best, the saving."""
    pruned = [row for row in rows if row.state == "PRUNED"]
    told: list[Sequence[Any]] = []
    for epoch in sorted({row.epochs for row in pruned}):
        here = [row for row in pruned if row.epochs == epoch]
        saved = sum(_horizon(search, row) - row.epochs for row in here)
        reached = sum(row.epochs >= epoch for row in rows)
        told.append((epoch, reached, len(here), _best(search, here), saved))
    return told


def phases(search: Search, rows: Sequence[TrialRow]) -> list[Sequence[Any]]:
    """The same as `strategies` of each phase; nothing where there was but one."""
    names = {SCREEN: "heads, screened", TUNE: "the best, fine-tuned", "": search.spec.search.sampler}
    told = list(_by(search, rows, lambda row: names.get(row.phase, row.phase)))
    return told if len(told) > 1 else []


def strategies(search: Search, rows: Sequence[TrialRow]) -> list[Sequence[Any]]:
    """Of each strategy its trials, epochs, seconds of training and best value."""
    return list(_by(search, rows, lambda row: str(row.params.get("strategy", ""))))


def _by(
    search: Search, rows: Sequence[TrialRow], name_of: Callable[[TrialRow], str]
) -> Iterator[Sequence[Any]]:
    for name in dict.fromkeys(map(name_of, rows)):
        mine = [row for row in rows if name_of(row) == name]
        seconds = [known for row in mine if (known := _seconds(search, row.trial)) is not None]
        took = duration(sum(seconds)) if seconds else ""
        each = f"{sum(seconds) / len(seconds):.2f} s" if seconds else ""
        yield name, len(mine), sum(row.epochs for row in mine), took, each, _best(search, mine)


def _seconds(search: Search, trial: int) -> float | None:
    """How long a trial's epochs took; None where its folder does not say."""
    try:
        epochs = read_epochs(search.home.trial(trial))
    except Damaged:
        return None
    return sum(epoch.get("epoch_seconds", 0.0) for epoch in epochs.values()) if epochs else None


def failures(rows: Sequence[TrialRow]) -> list[Sequence[Any]]:
    """The failed trials, by the last line of why."""
    causes: dict[str, list[int]] = {}
    for row in rows:
        if row.state == "FAIL":
            lines = row.reason.strip().splitlines()
            causes.setdefault(lines[-1] if lines else "no reason given", []).append(row.trial)
    return [(", ".join(map(str, numbers)), cause) for cause, numbers in causes.items()]
