"""What a person sees while a search runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.console import duration, short
from search.spec.search_spec import SearchSpec
from search.study.refit import named
from search.study.trials import Assignment, Ending
from search.study.trials import Progress as Counts
from trainables.training.keeping import value_of

__all__ = ["Board"]

_LOOK_SECONDS = 0.25
_ROWS = 12
_STYLES = {
    "RUNNING": "cyan",
    Ending.COMPLETED.value: "green",
    Ending.PRUNED.value: "dim",
    Ending.INTERRUPTED.value: "yellow",
}


class Board:
    """Shows a search as it goes; an `Observer` of its trials.

    Args:
        spec: what is searched.
        console: where to show it.
        counts: how far the search is.
        best: number and value of the best trial so far, if any.
        role: what a trial is called.
        label: what is shown for its number.
        doing: what a running trial is at, in words, where that takes long.
        until: when the time is over, on the clock of `time.monotonic`.
    """

    def __init__(
        self,
        spec: SearchSpec,
        console: Console,
        *,
        counts: Callable[[], Counts],
        best: Callable[[], tuple[int, float] | None],
        role: str = "trial",
        label: Callable[[int], str] = str,
        doing: Callable[[int], str] = lambda number: "",
        until: float | None = None,
    ) -> None:
        self._spec = spec
        self._console = console
        self._counts = counts
        self._best = best
        self._role = role
        self._label = label
        self._doing = doing
        self._until = until
        self._began = time.monotonic()
        self._rows: dict[int, dict[str, Any]] = {}
        self._metric = next(iter(spec.search.objective))
        self._shown_metric = named(self._metric, role)
        self._knobs = spec.sampled
        self._stale = False
        self._looked = 0.0
        self._shown: tuple[Counts, tuple[int, float] | None] = (counts(), best())
        self._counted = self._shown[0].counted
        self._first: float | None = None  # when the first trial of this run started

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keeps the table on the terminal while the block runs."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._render, console=self._console, refresh_per_second=4):
            yield
            self._looked, self._stale = 0.0, True
            self._refresh()  # the last picture stays

    def trial_started(self, assignment: Assignment) -> None:
        self._rows[assignment.number] = {
            "label": self._label(assignment.number),
            "state": "RUNNING",
            "epoch": assignment.epoch,
            "epochs": assignment.hparams.epochs,
            "value": None,
            "params": assignment.hparams.active,
        }
        self._first = self._first or time.monotonic()
        self._stale = True
        self._refresh()

    def epoch_ended(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        self._rows[number].update(epoch=epoch, value=metrics[self._metric])
        self._refresh()

    def attempt_failed(self, number: int, reason: str) -> None:
        last = reason.strip().splitlines()[-1] if reason.strip() else "no reason given"
        told = f"{self._role} {self._label(number)}: an attempt failed: {last}"
        self._console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)

    def trial_moved(self, number: int, moves: int) -> None:
        told = f"{self._role} {self._label(number)}: its node was lost; it goes on elsewhere"
        self._console.print(told, style="yellow", markup=False)

    def damage_found(self, number: int, what: str) -> None:
        told = f"{self._role} {self._label(number)}: {what}"
        self._console.print(told, style="yellow", markup=False, soft_wrap=True)

    def trial_ended(self, number: int, ending: Ending, best: Mapping[str, float] | None, reason: str) -> None:
        row = self._rows[number]
        row["state"] = ending.value
        self._stale = True  # the study is told after the board, so it is asked at the next event
        if best:
            row["value"] = value_of(best, self._metric)
        if not self._console.is_terminal:
            self._console.print(self._line(row), markup=False, highlight=False, soft_wrap=True)
        for old in sorted(self._rows)[:-200]:
            if self._rows[old]["state"] != "RUNNING":
                del self._rows[old]

    def _refresh(self) -> None:
        """Asks the study how far it is, which takes longer the more trials there are."""
        is_due = self._stale and time.monotonic() - self._looked > _LOOK_SECONDS
        if is_due and self._console.is_terminal:
            self._shown = (self._counts(), self._best())
            self._stale, self._looked = False, time.monotonic()

    def _line(self, row: Mapping[str, Any]) -> str:
        value = "" if row["value"] is None else f" {self._shown_metric} {row['value']:.4f}"
        return (
            f"{self._role} {row['label']:>3} {row['state'].lower():<11} epoch {row['epoch']}/{row['epochs']}"
            f"{value}  {self._described(row['params'])}"
        )

    def _described(self, params: Mapping[str, Any]) -> str:
        return " ".join(f"{name}={short(params[name])}" for name in self._knobs if name in params)

    def _render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in (self._role, "state", "epoch", self._shown_metric, "hyperparameters"):
            table.add_column(title, no_wrap=title != "hyperparameters", overflow="ellipsis")
        for number in sorted(self._rows)[-_ROWS:]:
            row = self._rows[number]
            doing = self._doing(number) if row["state"] == "RUNNING" else ""
            table.add_row(
                row["label"],
                Text(row["state"].lower(), style=_STYLES.get(row["state"], "red")),
                f"{row['epoch']}/{row['epochs']}",
                "" if row["value"] is None else f"{row['value']:.4f}",
                Text(doing or self._described(row["params"]), no_wrap=True, overflow="ellipsis"),
            )
        return Group(self._headline(), table)

    def _headline(self) -> Text:
        counts, best = self._shown
        parts = [
            f"{self._spec.name}: {counts.counted}/{counts.budget} {self._role}s",
            f"{counts.running} running",
            f"{counts.pruned} pruned",
            f"{counts.failed} failed",
            f"best {best[1]:.4f} ({self._role} {self._label(best[0])})" if best else "no best yet",
            duration(time.monotonic() - self._began),
        ]
        ends = self._seconds_to_go(counts)
        if ends is not None:
            parts.append(f"about {duration(ends)} to go")
        if self._until is not None:
            parts.append(f"{duration(max(0, self._until - time.monotonic()))} left of its time")
        return Text("  ·  ".join(parts), style="bold")

    def _seconds_to_go(self, counts: Counts) -> float | None:
        """How long what is left takes at the pace of the trials that have ended; None before the first."""
        ended, left = counts.counted - self._counted, counts.budget - counts.counted
        if self._first is None or ended <= 0 or left <= 0:
            return None
        return (time.monotonic() - self._first) / ended * left
