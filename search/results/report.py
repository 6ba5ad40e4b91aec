"""A search as one HTML file: its winner, its trials, and pictures that need no network and no script."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.console import short
from search.errors import BadInput
from search.results.rows import TrialRow, WinnerRow, best_rows, summary, trial_rows
from search.search import Search
from search.spec.domains import Range
from search.study.finalists import Finalist, Summary, interval_text, mean_text, verdict
from search.study.search_study import SearchStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["report", "write_report"]

_CURVES = 8
_LISTED = 50
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
svg { max-width: 100%; height: auto }
"""
_COLORS = {"COMPLETE": "tab:blue", "PRUNED": "lightgrey"}


def write_report(search: Search, to: Path) -> str:
    """Writes the report of a search to a file, whole or not at all; returns its text.

    Raises:
        BadInput: if no trial has completed, or the file cannot be written.
    """
    text = report(search)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, to)
    except OSError as error:
        raise BadInput(f"cannot write {to}: {error.strerror}; give another file with --to") from error
    return text


def report(search: Search) -> str:
    """The report of a search that was launched.

    Raises:
        BadInput: if no trial has completed.
    """
    study, metric = search.study, search.metric
    parts = [_heading(search, metric), *_best(search, metric)]
    rows = trial_rows(search, linked=False)
    parts += [
        f"<h2>{html.escape(title)}</h2>\n{_svg(figure)}" for title, figure in _pictures(study, rows, metric)
    ]
    parts += ["<h2>Trials</h2>", _trials(rows, metric)]
    name = html.escape(search.name)
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{name}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _heading(search: Search, metric: str) -> str:
    row = summary(search)
    counts = ", ".join(
        f"{getattr(row, state)} {state}" for state in ("completed", "pruned", "failed", "running")
    )
    told = f"{row.state.lower()}; {row.counted} of {row.budget} trials: {counts}; objective {metric}"
    return f"<h1>{html.escape(search.name)}</h1>\n<p>{html.escape(told)}</p>"


def _best(search: Search, metric: str) -> Iterator[str]:
    for row in best_rows(search, linked=False):
        yield f"<h2>{'Winner' if isinstance(row, WinnerRow) else 'Best'}: trial {row.trial}</h2>"
        if isinstance(row, WinnerRow):
            yield f"<p>{html.escape(verdict(row.finalists))}</p>"
            yield _finalists(row.finalists, metric)
        params = [(name, short(row.params[name])) for name in row.sampled]
        yield _table(
            (metric, "epoch", *(name for name, _ in params)),
            [(f"{row.value:.4f}", row.epoch, *(value for _, value in params))],
        )


def _finalists(finalists: Sequence[Finalist], metric: str) -> str:
    scores = list(finalists[0].test)
    cells = []
    for each in finalists:
        covered = interval_text(each.validation)
        tests = (_with_interval(each.test[name]) if name in each.test else "" for name in scores)
        tie = "tie" if each.ties_with_best else ""
        cells.append((each.trial, mean_text(each.validation), covered, *tests, each.failed, tie))
    return _table(("trial", f"{metric} (selected)", "95 % interval", *scores, "failed runs", ""), cells)


def _with_interval(summary: Summary) -> str:
    covered = interval_text(summary)
    return mean_text(summary) + (f" ({covered})" if covered else "")


def _trials(rows: Sequence[TrialRow], metric: str) -> str:
    cells = []
    for row in rows[-_LISTED:]:
        value = "" if row.value is None else f"{row.value:.4f}"
        params = " ".join(f"{name}={short(row.params[name])}" for name in row.sampled)
        cells.append((row.trial, row.state.lower(), value, row.epochs, params))
    left_out = len(rows) - len(cells)
    note = f"<p>The last {len(cells)}; {left_out} earlier ones are left out.</p>" if left_out else ""
    return note + _table(("trial", "state", metric, "epochs", "hyperparameters"), cells)


def _table(titles: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "<table>\n" + "\n".join([line(titles, "th"), *(line(row, "td") for row in rows)]) + "\n</table>"


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


def _svg(figure: Figure) -> str:
    output = io.StringIO()
    figure.savefig(output, format="svg", metadata={"Date": None})
    return output.getvalue()[output.getvalue().index("<svg") :]


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
