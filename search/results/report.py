"""A search as one HTML file: its winner, its trials, and pictures that need no network and no script."""

from __future__ import annotations

import datetime
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from search import __version__
from search.console import duration, short
from search.errors import BadInput
from search.results.rows import TrialRow, WinnerRow, best_rows, made_told, summary, trial_rows
from search.search import Search
from search.spec.domains import Range
from search.study.finalists import Finalist, Summary, interval_text, mean_text, verdict
from search.study.search_study import SearchStudy
from trainables.files.whole import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["report", "write_report"]

_CURVES = 8
_LISTED = 50
_COLORS = {"COMPLETE": "tab:blue", "PRUNED": "lightgrey"}


def write_report(search: Search, to: Path) -> str:
    """Writes the report of a search to a file, whole or not at all; returns its text.

    Raises:
        BadInput: if no trial has completed, or the file cannot be written.
    """
    text = report(search)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with replacing(to) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {to}: {error.strerror}; give another file with --to") from error
    return text


def report(search: Search) -> str:
    """The report of a search that was launched.

    Raises:
        BadInput: if no trial has completed.
    """
    study, metric = search.study, search.metric
    winners, rows = best_rows(search, linked=False), trial_rows(search, linked=False)
    listed = _listed(search, winners, rows)
    pages = Environment(
        loader=PackageLoader("search.results"), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    return pages.get_template("report.html.j2").render(
        name=search.name,
        metric=metric,
        told=_told(search, metric),
        winners=[_winner(row, metric) for row in winners],
        pictures=[
            {"title": title, "svg": _svg(figure, title)} for title, figure in _pictures(study, rows, metric)
        ],
        cost=_cost(search, rows),
        strategies=_strategies(search, rows),
        failures=_failures(rows),
        listed=f"The best {len(listed)} of {len(rows)}, every finalist among them.",
        trials=[_cells(row) for row in listed],
        commands=[
            f"transfer-search launch {search.home.spec}    # the same search again, under another --name",
            f"transfer-search resume {search.name} --trials {2 * study.budget}",
            f"transfer-search export {search.name} --to exports/{search.name}",
        ],
        link=search.links.view,
        settings=search.spec.to_yaml(),
        made=f"Written on {datetime.date.today().isoformat()} by transfer-search {__version__}.",
    )


def _told(search: Search, metric: str) -> str:
    row = summary(search)
    counts = ", ".join(
        f"{getattr(row, state)} {state}" for state in ("completed", "pruned", "failed", "running")
    )
    return f"{row.state.lower()}; {row.counted} of {row.budget} trials: {counts}; objective {metric}"


def _winner(row: TrialRow, metric: str) -> dict[str, Any]:
    """What the page says of the best trial, or of the winner among the finalists."""
    params = [(name, short(row.params[name])) for name in row.sampled]
    told: dict[str, Any] = {
        "trial": row.trial,
        "title": f"Best: trial {row.trial}",
        "verdict": "",
        "made": made_told(row),
        "titles": (f"{metric} (selected)", "on new images", "epoch", *(name for name, _ in params)),
        "cells": (
            f"{row.value:.4f}",
            "" if row.corrected is None else f"{row.corrected:.4f}",
            row.epoch,
            *(value for _, value in params),
        ),
    }
    if isinstance(row, WinnerRow):
        titles, cells = _finalists(row.finalists, metric)
        told |= {"title": f"Winner: trial {row.trial}", "verdict": verdict(row.finalists)}
        told |= {"finalist_titles": titles, "finalists": cells}
    return told


def _finalists(finalists: Sequence[Finalist], metric: str) -> tuple[Sequence[str], list[Sequence[Any]]]:
    scores = list(finalists[0].test)
    cells: list[Sequence[Any]] = []
    for each in finalists:
        covered = interval_text(each.validation)
        tests = (_with_interval(each.test[name]) if name in each.test else "" for name in scores)
        tie = "tie" if each.ties_with_best else ""
        cells.append((each.trial, mean_text(each.validation), covered, *tests, each.failed, tie))
    return ("trial", f"{metric} (selected)", "95 % interval", *scores, "failed runs", ""), cells


def _with_interval(summary: Summary) -> str:
    covered = interval_text(summary)
    return mean_text(summary) + (f" ({covered})" if covered else "")


def _listed(search: Search, winners: Sequence[TrialRow], rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The best trials by value, those that completed first, with the winners and all finalists."""
    sign = -1 if next(iter(search.spec.search.objective.values())) == "maximize" else 1

    def rank(row: TrialRow) -> tuple[bool, bool, float, int]:
        return row.state != "COMPLETE", row.value is None, sign * (row.value or 0.0), row.trial

    ranked = sorted(rows, key=rank)
    kept = {row.trial for row in [*ranked[:_LISTED], *winners]}
    for winner in winners:
        if isinstance(winner, WinnerRow):
            kept |= {finalist.trial for finalist in winner.finalists}
    return [row for row in ranked if row.trial in kept]


def _cells(row: TrialRow) -> Sequence[Any]:
    value = "" if row.value is None else f"{row.value:.4f}"
    params = " ".join(f"{name}={short(row.params[name])}" for name in row.sampled)
    return row.trial, row.state.lower(), value, row.epochs, params


def _cost(search: Search, rows: Sequence[TrialRow]) -> str:
    ran, longest = sum(row.epochs for row in rows), search.spec.search.max_epochs * len(rows)
    saved = sum(search.spec.search.max_epochs - row.epochs for row in rows if row.state == "PRUNED")
    return (
        f"{ran:,} epochs in {duration(search.study.seconds_spent)}; {longest:,} without pruning, which "
        f"left out {saved:,}."
    )


def _strategies(search: Search, rows: Sequence[TrialRow]) -> list[Sequence[Any]]:
    best = max if next(iter(search.spec.search.objective.values())) == "maximize" else min
    names = dict.fromkeys(str(row.params.get("strategy", "")) for row in rows)
    told: list[Sequence[Any]] = []
    for name in names:
        mine = [row for row in rows if str(row.params.get("strategy", "")) == name]
        values = [row.value for row in mine if row.value is not None]
        reached = f"{best(values):.4f}" if values else ""
        told.append((name, len(mine), sum(row.epochs for row in mine), reached))
    return told


def _failures(rows: Sequence[TrialRow]) -> list[Sequence[Any]]:
    """The failed trials, by the last line of why."""
    causes: dict[str, list[int]] = {}
    for row in rows:
        if row.state == "FAIL":
            lines = row.reason.strip().splitlines()
            causes.setdefault(lines[-1] if lines else "no reason given", []).append(row.trial)
    return [(", ".join(map(str, numbers)), cause) for cause, numbers in causes.items()]


# Pictures


def _pictures(study: SearchStudy, rows: Sequence[TrialRow], metric: str) -> Iterator[tuple[str, Figure]]:
    valued = [row for row in rows if row.value is not None]
    yield "History", _history(valued, study, metric)
    if not study.spec.multi_objective:
        yield "Learning curves of the best trials", _curves(study, metric)
    importances = study.importances()
    if importances:
        yield "Importance of hyperparameters (PED-ANOVA)", _bars(importances)
    names = list(dict.fromkeys(name for row in valued for name in row.sampled if _is_scalar(row, name)))
    if names:
        yield "Hyperparameters", _slices(study, valued, names, metric)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # not above: seconds; and no pyplot, which has global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, column + 1) for column in range(columns)]


def _svg(figure: Figure, title: str) -> str:
    """A figure as an element of a page, with a title for who does not see it."""
    output = io.StringIO()
    figure.savefig(output, format="svg", metadata={"Date": None})
    text = output.getvalue()[output.getvalue().index("<svg") :]
    start = text.index(">")
    name = html.escape(title, quote=True)
    return f'{text[:start]} role="img" aria-label="{name}"><title>{name}</title>{text[start + 1 :]}'


def _history(rows: Sequence[TrialRow], study: SearchStudy, metric: str) -> Figure:
    figure, (axes,) = _figure(9, 3.2)
    for state in dict.fromkeys(row.state for row in rows):
        mine, color = [row for row in rows if row.state == state], _COLORS.get(state, "tab:red")
        axes.scatter([row.trial for row in mine], _values(mine), 16, color, label=state.lower())
    better = max if next(iter(study.spec.search.objective.values())) == "maximize" else min
    complete = [row for row in rows if row.state == "COMPLETE"]
    best = [better(_values(complete[: end + 1])) for end in range(len(complete))]
    axes.step([row.trial for row in complete], best, where="post", color="black", lw=1, label="best so far")
    axes.set(xlabel="trial", ylabel=metric)
    axes.legend(frameon=False)
    return figure


def _curves(study: SearchStudy, metric: str) -> Figure:
    figure, (axes,) = _figure(9, 3.2)
    for trial in study.ranked()[:_CURVES]:
        epochs = sorted(study.reported(trial.number).items())
        axes.plot(*zip(*epochs, strict=True), lw=1.2, marker=".", label=f"trial {trial.number}")
    axes.set(xlabel="epoch", ylabel=metric)
    axes.legend(frameon=False, ncols=2)
    return figure


def _bars(importances: Mapping[str, float]) -> Figure:
    figure, (axes,) = _figure(9, 0.8 + 0.26 * len(importances))
    names = list(importances)[::-1]
    axes.barh([_plain(name) for name in names], [importances[name] for name in names], color="tab:blue")
    return figure


def _slices(study: SearchStudy, rows: Sequence[TrialRow], names: Sequence[str], metric: str) -> Figure:
    columns = 3
    lines = -(-len(names) // columns)
    figure, _ = _figure(9, 2.4 * lines, 0)
    for place, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, place + 1)
        mine = [row for row in rows if name in row.sampled and _is_scalar(row, name)]
        values = [row.params[name] for row in mine]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        colors = [_COLORS.get(row.state, "tab:red") for row in mine]
        shown = values if numbers else [_plain(short(value)) for value in values]
        axes.scatter(shown, _values(mine), 12, colors)
        domain = study.spec.domain(name)
        if numbers and isinstance(domain, Range) and domain.log:
            axes.set_xscale("symlog", linthresh=domain.low)  # a range may have 0 beside it
        axes.set_xlabel(_plain(name))
        if place % columns == 0:
            axes.set_ylabel(metric)
    return figure


def _values(rows: Sequence[TrialRow]) -> list[float]:
    return [row.value for row in rows if row.value is not None]


def _is_scalar(row: TrialRow, name: str) -> bool:
    return name in row.params and isinstance(row.params[name], str | int | float | None)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
