"""What several commands print."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from search.results.rows import TrialRow, WinnerRow
    from search.run.running import Outcome
    from search.search import Search

__all__ = ["console", "errors", "farewell", "print_json", "show_view", "show_winner"]

console = Console(stderr=False)
errors = Console(stderr=True)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def show_winner(row: TrialRow) -> None:
    from search.console import short
    from search.results.rows import WinnerRow, made_told
    from search.study.finalists import nothing_told

    if isinstance(row, WinnerRow):
        _show_finalists(row)
    else:
        told = f"best trial {row.trial}: {row.value:.4f}"
        told += (
            " (selected"
            + ("" if row.corrected is None else f"; {row.corrected:.4f} expected on new data")
            + ")"
        )
        told += f", with the model of epoch {row.epoch}"
        console.print(told, style="bold", soft_wrap=True)
        if row.chance is not None:
            told = f"  nothing was found: it {nothing_told(row.chance)}"
            console.print(told, style="yellow", highlight=False, soft_wrap=True)
    others = {name: value for name, value in row.objectives.items() if value != row.value}
    if len(row.objectives) > 1 and others:
        console.print(
            "  " + "  ".join(f"{name} {value:g}" for name, value in others.items()), highlight=False
        )
    params = "  ".join(f"{key}={short(row.params[key])}" for key in row.sampled)
    console.print(f"  {params}", markup=False, highlight=False, soft_wrap=True)
    if told := made_told(row):
        console.print(f"  {told}", markup=False, highlight=False, soft_wrap=True)
    if row.mlflow_run_url:
        console.print(f"  MLflow: {row.mlflow_run_url}", markup=False, soft_wrap=True)


def _show_finalists(row: WinnerRow) -> None:
    from search.study.finalists import table, verdict

    finalists = table(row.finalists, row.objective)
    needed = console.measure(
        finalists
    ).maximum  # on a narrow terminal its lines break, and nothing is cut off
    console.print(finalists, width=max(console.width, needed), crop=False)
    console.print(f"winner: {verdict(row.finalists)}", style="bold", markup=False, soft_wrap=True)
    console.print(
        f"  its run on the first seed: {row.objective} {row.value:.4f}, with the model of epoch {row.epoch}",
        highlight=False,
    )


def show_view(search: Search) -> None:
    """Where all trials are to be seen, and what to type where nothing is served there."""
    if search.links.view is None:
        return
    start = "" if search.links.is_served else "   (start it with `transfer-search ui`)"
    told = f"  all trials, best first: {search.links.view}{start}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def farewell(search: Search, outcome: Outcome) -> None:
    """What the search found and what to type next."""
    from search.results.rows import best_rows, missed_told, summary

    row = summary(search)
    console.print(
        f"search {search.name}: {outcome.value.lower().replace('_', ' ')}; {row.completed} completed, "
        f"{row.pruned} pruned, {row.failed} failed" + (f", {row.running} interrupted" if row.running else ""),
        markup=False,
        highlight=False,
    )
    if row.best_trial is None:
        if outcome.value != "FINISHED":
            told = f"no trial has completed yet; go on with `transfer-search resume {search.name}`"
            console.print(told, style="yellow", soft_wrap=True)
            return
        if missed := missed_told(search):
            console.print(missed, style="yellow", markup=False, soft_wrap=True)
            raise typer.Exit(1)
        told = f"no trial completed; see `transfer-search trials {search.name}` for the reasons"
        console.print(told, style="yellow", soft_wrap=True)
        raise typer.Exit(1)
    for winner in best_rows(search, linked=False):
        show_winner(winner)
    show_view(search)
    commands = ["ui", f"trials {search.name}", f"export {search.name} --to exports/{search.name}"]
    if outcome.value != "FINISHED":
        commands.insert(0, f"resume {search.name}")
    console.print("next:", *(f"  transfer-search {command}" for command in commands), sep="\n", markup=False)
