"""Commands that show how far searches are: list, status, logs, trials."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from search.cli.addressed import Verbatim, here_or_there
from search.cli.options import HomeOption, JsonOption, NameArgument
from search.cli.printing import console, print_json
from search.errors import BadInput

if TYPE_CHECKING:
    from search.home import Home
    from search.results.rows import BrokenRow, SearchRow, TrialRow
    from search.search import Search

__all__ = ["commands"]

commands = typer.Typer()

_WATCH_SECONDS = 2.0


class Sorting(StrEnum):
    """In which order trials are listed."""

    NUMBER = "number"
    VALUE = "value"
    EPOCHS = "epochs"


@commands.command("list", cls=Verbatim)
@here_or_there
def list_searches(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List the searches and how far they are; exits with 1 where one cannot be opened."""
    from search.home import Home
    from search.results.rows import BrokenRow, summaries

    rows = summaries(Home.all(home))
    if as_json:
        print_json([row.document() for row in rows])
    else:
        _show_searches(rows)
    if any(isinstance(row, BrokenRow) for row in rows):
        raise typer.Exit(1)


def _show_searches(rows: Sequence[SearchRow | BrokenRow]) -> None:
    from search.results.rows import BrokenRow

    table, broken = Table("search", "state", "trials", "best", "trial", box=None), []
    for row in rows:
        if isinstance(row, BrokenRow):
            broken.append(f"{row.search}: {row.wrong}")
            continue
        best = "" if row.value is None else f"{row.value:.4f}"
        trials = f"{row.counted}/{row.budget}"
        trial = "" if row.best_trial is None else str(row.best_trial)
        table.add_row(row.search, row.state.lower(), trials, best, trial)
    if table.rows:
        console.print(table)
    elif not rows:
        console.print("no searches yet; begin with `transfer-search launch SPEC`")
    for line in broken:
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


@commands.command(cls=Verbatim)
@here_or_there
def status(
    name: NameArgument,
    watch: Annotated[bool, typer.Option(help="Show it again every two seconds until it ends.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show how far a search is."""
    from search.home import Home
    from search.results.rows import summary
    from search.search import Search

    place = Home.existing(name, home)
    if watch and console.is_terminal and not as_json:
        _watch(place)
        return
    while True:
        row = summary(Search.open(place))  # anew each time, to see what its driver wrote meanwhile
        if as_json:
            print_json(row.document())
        else:
            console.print(_progress(row), markup=False, highlight=False, soft_wrap=True)
        if not watch or row.state != "RUNNING":
            return
        time.sleep(_WATCH_SECONDS)


def _watch(place: Home) -> None:
    """Shows on a terminal how far a search is, each time in the place of the last."""
    from rich.live import Live
    from rich.text import Text

    from search.results.rows import summary
    from search.search import Search

    with Live(console=console, auto_refresh=False) as live:
        while True:
            row = summary(Search.open(place))
            live.update(Text(_progress(row)), refresh=True)
            if row.state != "RUNNING":
                return
            time.sleep(_WATCH_SECONDS)


def _progress(row: SearchRow) -> str:
    """How far a search is, in a line."""
    best = "none yet" if row.value is None else f"{row.value:.4f} (trial {row.best_trial})"
    told = (
        f"{row.search}: {row.state.lower()}, {row.counted}/{row.budget} trials, "
        f"{row.running} running, {row.pruned} pruned, {row.failed} failed, best {best}"
    )
    runs = row.finalists
    return told + (f", finalists {runs.ended}/{runs.runs} runs" if runs else "")


@commands.command(cls=Verbatim)
@here_or_there
def logs(
    name: NameArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the log grows.")] = False,
    home: HomeOption = None,
) -> None:
    """Print the driver's log."""
    from search.home import Home

    place = Home.existing(name, home)
    if not place.log.exists():
        return
    with place.log.open(encoding="utf-8", errors="replace") as file:
        while True:
            text = file.read()
            if text:
                sys.stdout.write(text)
                sys.stdout.flush()
            elif not follow or place.driver() is None:
                return
            else:
                time.sleep(0.5)


@commands.command(cls=Verbatim)
@here_or_there
def trials(
    name: NameArgument,
    as_json: JsonOption = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV with a column for each hyperparameter.")
    ] = False,
    sort: Annotated[
        Sorting, typer.Option(help="By number, best value first, or most epochs first.")
    ] = Sorting.NUMBER,
    state: Annotated[
        str | None, typer.Option(help="Only trials in this state: complete, pruned, fail or running.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many.")] = None,
    home: HomeOption = None,
) -> None:
    """List a search's trials."""
    from search.console import short
    from search.home import Home
    from search.results.rows import trial_rows
    from search.search import Search

    search = Search.open(Home.existing(name, home))
    rows = _selected(search, trial_rows(search, linked=as_json or as_csv), sort, state, top)
    if as_json:
        print_json([row.document() for row in rows])
    elif as_csv:
        _write_csv(rows)
    else:
        phased = any(row.phase for row in rows)
        table = Table("trial", "state", *["phase"] * phased, "value", "epochs", "hyperparameters", box=None)
        for row in rows:
            value = "" if row.value is None else f"{row.value:.4f}"
            params = " ".join(f"{key}={short(row.params[key])}" for key in row.sampled)
            state = row.state.lower() + "".join(f"; {missed}" for missed in row.violated)
            phase = [row.phase] * phased
            table.add_row(str(row.trial), state, *phase, value, str(row.epochs), params)
        console.print(table)
        for row in (each for each in rows if each.state == "FAIL"):
            reason = next(reversed(row.reason.strip().splitlines()), "no reason is known")
            told = f"trial {row.trial} failed: {reason}"
            console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)


def _selected(
    search: Search, rows: list[TrialRow], sort: Sorting, state: str | None, top: int | None
) -> list[TrialRow]:
    """The rows in a state, in order, as many as asked for."""
    if state is not None:
        known = ("complete", "pruned", "fail", "running")
        wanted = "fail" if state.lower() == "failed" else state.lower()
        if wanted not in known:
            raise BadInput(f"the state is {state!r}, but must be one of {', '.join(known)}")
        rows = [row for row in rows if row.state.lower() == wanted]
    if sort is Sorting.VALUE:
        sign = -1 if next(iter(search.spec.search.objective.values())) == "maximize" else 1
        rows = sorted(rows, key=lambda row: (row.value is None, sign * (row.value or 0.0), row.trial))
    elif sort is Sorting.EPOCHS:
        rows = sorted(rows, key=lambda row: (-row.epochs, row.trial))
    return rows[:top]


def _write_csv(rows: list[TrialRow]) -> None:
    """A line a trial, and a column for each hyperparameter that one of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    flat = []
    for row in rows:
        told = {key: value for key, value in row.document().items() if key not in ("params", "sampled")}
        flat.append({**told, **{f"params.{name}": _cell(row.params.get(name)) for name in names}})
    writer = csv.DictWriter(sys.stdout, fieldnames=list(flat[0]) if flat else ["trial"])
    writer.writeheader()
    writer.writerows(flat)


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(value)
