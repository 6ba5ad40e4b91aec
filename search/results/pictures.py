"""The pictures of a report: figures of matplotlib as elements of a page, without a network or a script."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search.console import short
from search.results.rows import TrialRow
from search.spec.domains import Choice, Range
from search.study.search_study import SearchStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["pictures"]

_CURVES = 8
_PARALLEL = 7
_COLORS = {"COMPLETE": "tab:blue", "PRUNED": "lightgrey"}


def pictures(study: SearchStudy, rows: Sequence[TrialRow], metric: str) -> Iterator[tuple[str, str]]:
    """The pictures of a study's trials: of each its title and an SVG that has it too."""
    for place, (title, figure) in enumerate(_figures(study, rows, metric)):
        yield title, _svg(figure, title, f"picture{place}-")


def _figures(study: SearchStudy, rows: Sequence[TrialRow], metric: str) -> Iterator[tuple[str, Figure]]:
    valued = [row for row in rows if row.value is not None]
    yield "History", _history(valued, study, metric)
    if not study.spec.multi_objective:
        yield "Learning curves of the best trials", _curves(study, metric)
    importances = study.importances()
    if importances:
        yield "Importance of hyperparameters (PED-ANOVA)", _bars(importances)
    names = list(dict.fromkeys(name for row in valued for name in row.sampled if _is_scalar(row, name)))
    if not names:
        return
    yield "Hyperparameters", _slices(study, valued, names, metric)
    ranked = sorted(names, key=lambda name: -importances.get(name, 0.0))[:_PARALLEL]
    complete = [row for row in valued if row.state == "COMPLETE"]
    if len(ranked) > 1 and len(complete) > 1:
        yield "Completed trials across hyperparameters", _parallel(study, complete, ranked, metric)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # not above: seconds; and no pyplot, which has global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, column + 1) for column in range(columns)]


def _svg(figure: Figure, title: str, prefix: str) -> str:
    """A figure as an element of a page, with a title for who does not see it; its ids begin with `prefix`."""
    output = io.StringIO()
    figure.savefig(output, format="svg", metadata={"Date": None})
    text = output.getvalue()[output.getvalue().index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    start = text.index(">")
    name = html.escape(title, quote=True)
    return f'{text[:start]} role="img" aria-label="{name}"><title>{name}</title>{text[start + 1 :]}'


def _history(rows: Sequence[TrialRow], study: SearchStudy, metric: str) -> Figure:
    figure, (axes,) = _figure(9, 3.2)
    for state in dict.fromkeys(row.state for row in rows):
        mine, color = [row for row in rows if row.state == state], _COLORS.get(state, "tab:red")
        axes.scatter([row.trial for row in mine], _values(mine), 16, color, label=state.lower())
    better = max if _is_maximized(study) else min
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
        colors = [_COLORS.get(row.state, "tab:red") for row in mine]
        domain = study.spec.domain(name)
        are_numbers = isinstance(domain, Range) and all(map(_is_number, values))
        shown = values if are_numbers else [_plain(short(value)) for value in values]
        axes.scatter(shown, _values(mine), 12, colors)
        if are_numbers and isinstance(domain, Range) and domain.log:
            axes.set_xscale("symlog", linthresh=domain.low)  # a range may have 0 beside it
        axes.set_xlabel(_plain(name))
        if place % columns == 0:
            axes.set_ylabel(metric)
    return figure


def _parallel(study: SearchStudy, rows: Sequence[TrialRow], names: Sequence[str], metric: str) -> Figure:
    """A line a trial through an axis for each hyperparameter; the brighter, the better."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    figure, (axes,) = _figure(9, 3.8)
    heights = {name: _heights(study, rows, name) for name in names}
    values = _values(rows)
    low, high = min(values), max(values)
    shares = [(value - low) / (high - low) if high > low else 0.5 for value in values]
    goodness = shares if _is_maximized(study) else [1 - share for share in shares]
    order = sorted(range(len(rows)), key=lambda place: goodness[place])  # the best are drawn last
    lines = [
        [*((at, heights[name][0][place]) for at, name in enumerate(names)), (len(names), shares[place])]
        for place in order
    ]
    seen = [[point for point in line if not math.isnan(point[1])] for line in lines]
    colors = colormaps["viridis"]([goodness[place] for place in order])
    axes.add_collection(LineCollection(seen, colors=colors, linewidths=0.9, alpha=0.7))
    for at, name in enumerate([*names, metric]):
        marks = heights[name][1] if name in heights else [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]
        axes.axvline(at, color="black", lw=0.6)
        for height, text in marks:
            axes.text(at + 0.03, height, _plain(text), fontsize=7, va="center")
    axes.set_xticks(range(len(names) + 1), [_plain(name) for name in [*names, metric]])
    axes.set(xlim=(-0.1, len(names) + 0.4), ylim=(-0.06, 1.06), yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _heights(
    study: SearchStudy, rows: Sequence[TrialRow], name: str
) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each trial crosses the axis of a hyperparameter (NaN: it has none), and the axis' marks."""
    given: list[Any] = [
        row.params.get(name) if name in row.sampled and _is_scalar(row, name) else _NOTHING for row in rows
    ]
    known = [value for value in given if value is not _NOTHING]
    domain = study.spec.domain(name)
    if isinstance(domain, Range) and all(map(_is_number, known)):
        scale = math.log if domain.log and min(known) > 0 else float
        low, high = scale(min(known)), scale(max(known))
        places = [
            math.nan if value is _NOTHING else (scale(value) - low) / (high - low) if high > low else 0.5
            for value in given
        ]
        return places, [(0.0, short(min(known))), (1.0, short(max(known)))]
    order = domain.values if isinstance(domain, Choice) else ()
    texts = list(dict.fromkeys([*(short(value) for value in order), *(short(value) for value in known)]))
    at = {text: place / max(1, len(texts) - 1) for place, text in enumerate(texts)}
    places = [math.nan if value is _NOTHING else at[short(value)] for value in given]
    return places, [(height, text[:18]) for text, height in at.items()]


_NOTHING: Any = object()


def _is_maximized(study: SearchStudy) -> bool:
    return next(iter(study.spec.search.objective.values())) == "maximize"


def _values(rows: Sequence[TrialRow]) -> list[float]:
    return [row.value for row in rows if row.value is not None]


def _is_scalar(row: TrialRow, name: str) -> bool:
    return name in row.params and isinstance(row.params[name], str | int | float | None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
