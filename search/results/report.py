"""A search as one HTML file: its winner, its trials, and pictures that need no network and no script."""

from __future__ import annotations

import base64
import datetime
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from search import __version__
from search.console import short
from search.errors import BadInput
from search.results.costs import cost, failures, phases, rungs, strategies
from search.results.evaluation import evaluated, policy_picture
from search.results.pictures import pictures
from search.results.readme import interval
from search.results.rows import TrialRow, WinnerRow, best_rows, made_told, summary, trial_rows
from search.run.planning import described
from search.search import Search
from search.study.finalists import Finalist, Summary, interval_text, mean_text, nothing_told, verdict
from search.study.intervals import is_share
from search.study.search_study import SearchStudy
from trainables.files.whole import replacing

__all__ = ["report", "write_report"]

_LISTED = 50
_CONFUSED = 30  # pairs of classes that are listed otherwise
_PACKAGES = ("torch", "torchvision", "timm", "ray", "optuna", "mlflow")


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
        items=search.spec.items,
        metric=metric,
        told=_told(search, metric),
        winners=[_winner(search, row) for row in winners],
        data=_data(study),
        judged=_judged(search, winners[0]),
        pictures=[{"title": title, "svg": svg} for title, svg in pictures(study, rows, metric)],
        cost=cost(search, rows),
        rungs=rungs(search, rows),
        phases=phases(search, rows),
        strategies=strategies(search, rows),
        failures=failures(rows),
        listed=f"The best {len(listed)} of {len(rows)}, every finalist among them.",
        trials=[_cells(row) for row in listed],
        commands=[
            f"transfer-search launch {search.home.spec}    # the same search again, under another --name",
            f"transfer-search resume {search.name} --trials {2 * study.budget}",
            f"transfer-search export {search.name} --to exports/{search.name}",
        ],
        link=search.links.view,
        settings=search.spec.to_yaml(),
        space=[
            (name, described(domain), _drawn(winners[0], name)) for name, domain in search.spec.space.items()
        ],
        made=f"Written on {datetime.date.today().isoformat()} by transfer-search {__version__}.",
        versions=", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in _PACKAGES)]
        ),
    )


def _told(search: Search, metric: str) -> str:
    row = summary(search)
    counts = ", ".join(
        f"{getattr(row, state)} {state}" for state in ("completed", "pruned", "failed", "running")
    )
    return f"{row.state.lower()}; {row.counted} of {row.budget} trials: {counts}; objective {metric}"


def _winner(search: Search, row: TrialRow) -> dict[str, Any]:
    """What the page says of the best trial, or of the winner among the finalists."""
    metric = search.metric
    params = [(name, short(row.params[name])) for name in row.sampled]
    told: dict[str, Any] = {
        "trial": row.trial,
        "title": f"Best: trial {row.trial}",
        "verdict": _interval(search, row)
        if row.chance is None
        else f"Nothing was found: it {nothing_told(row.chance)}",
        "made": made_told(row),
        "finalists": [],
        "titles": (
            f"{metric} (selected)",
            f"on new {search.spec.items}",
            "epoch",
            *(name for name, _ in params),
        ),
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
    return (
        "trial",
        f"{metric} (selected)",
        "95 % interval",
        *scores,
        "failed runs",
        "beside the winner",
    ), cells


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


def _data(study: SearchStudy) -> str:
    """What the search was on, as far as its study knows."""
    known, source = study.premises, study.spec.data.source
    if known is None:
        return f"Data: {source}."
    images = ", ".join(f"{count:,} {split}" for split, count in known["images"].items())
    return (
        f"Data: {source}, {images} {study.spec.items} in {len(known['classes'])} classes "
        f"(fingerprint {known['data']})."
    )


def _drawn(row: TrialRow, name: str) -> str:
    return short(row.params[name]) if name in row.params else "not used"


def _interval(search: Search, row: TrialRow) -> str:
    """The 95 % interval of the best trial's value, which the search chose."""
    sample = search.study.samples.get("validation")
    if row.value is None or sample is None or not is_share(search.metric):
        return ""
    low, high = interval(row.value, sample.count)
    chosen, items = search.study.progress().completed, search.spec.items
    return (
        f"On new {items} {low:.4f} to {high:.4f} (95 %), were it not the best of {chosen} that these {items} "
        "chose: the test split, which finalists are scored on, tells more."
    )


def _judged(search: Search, row: TrialRow) -> dict[str, Any]:
    """What the page says of the winner's model, image by image; or why it cannot."""
    picture = policy_picture(search, row)
    told: dict[str, Any] = {"policy": _embedded(picture, "png") if picture else "", "why_not": ""}
    try:
        found = evaluated(search, row)
    except BadInput as error:
        return {**told, "why_not": f"Its model was not measured again: {error}."}
    most = max((max(line) for line in found.confusion), default=0)
    return {
        **told,
        "classes": found.classes,
        "confusion": [
            {
                "name": name,
                "cells": [(count, round(count / max(1, most), 3)) for count in line],
                "sum": sum(line),
            }
            for name, line in zip(found.classes, found.confusion, strict=True)
        ]
        if found.is_tabled
        else [],
        "confused": [] if found.is_tabled else found.confused[:_CONFUSED],
        "scores": [
            (name, count, *(f"{score:.4f}" for score in scores)) for name, count, *scores in found.scores
        ],
        "worst": [
            {
                "picture": _embedded(each.picture, "jpeg") if each.picture else "",
                "name": each.name,
                "told": f"{each.true}, taken for {each.told} ({each.probability:.2f})",
            }
            for each in found.worst
        ],
    }


def _embedded(picture: bytes, kind: str) -> str:
    """An image file as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
