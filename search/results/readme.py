"""The README of an export: what somebody needs who has the folder and nothing else."""

from __future__ import annotations

import datetime
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from search import __version__
from search.results.rows import TrialRow, WinnerRow
from search.search import Search
from search.study.finalists import mean_text
from search.study.intervals import is_share
from trainables.modalities import modality
from trainables.training.card import Card
from trainables.training.splits import SPLITS

__all__ = ["interval", "readme"]

_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "pillow")
_OF_PROBABILITIES = ("test_loss", "test_calibration_error")
_LEVEL = 1.959964  # standard deviations that hold 95 % of a normal distribution


def readme(
    search: Search,
    row: TrialRow,
    card: Card,
    fingerprint: str,
    images: Mapping[str, int],
    formats: Sequence[str],
    checks: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """The text of an export's README, in Markdown.

    Args:
        search: whose model it is.
        row: the trial's, as `rows.chosen` gives it.
        card: the model's.
        fingerprint: of the data that it was trained on.
        images: how many each split of that had.
        formats: that were written.
        checks: what was found when they were read back.
        facts: what the exporter tells of the files.
    """
    pages = Environment(
        loader=PackageLoader("search.results"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = pages.get_template("export.md.j2").render(
        search=search.name,
        items=search.spec.items,
        row=row,
        card=card,
        formats=formats,
        checks=checks,
        **facts,
        date=datetime.date.today().isoformat(),
        version=__version__,
        source=search.spec.data.source,
        sizes={name: f"{images[name]:,}" if name in images else "unknown" for name in SPLITS},
        fingerprint=fingerprint,
        metrics=list(_metrics(search, row, card, images)),
        chance=row.finalists[0].chance if isinstance(row, WinnerRow) else row.chance,
        licence=modality(card.hparams.modality).licence(card),
        versions=", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in _PACKAGES)]
        ),
    )
    return text.replace("\\\n", "")


def _metrics(
    search: Search, row: TrialRow, card: Card, images: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """The model's own metrics, then what its trial's fresh runs had together."""
    own, items = dict(card.metric), search.spec.items
    if card.has_seen_validation:
        # What it has of them now is no score. The trial's value is what the search chose by.
        own = {name: value for name, value in own.items() if not name.startswith("val_")}
        if row.value is not None and not isinstance(row, WinnerRow):
            count = images.get("validation", 0)
            yield {
                "name": search.metric,
                "value": row.value,
                "interval": "",
                "of": f"trial {row.trial} on {count:,} validation {items}, before the refit (selected)",
            }
    chosen_on = ", which its members were chosen on (selected)" if card.members else ""
    test = dict(row.test if row.model_of in ("refit", "ensemble") else {})
    if card.calibration:  # which changed these
        test = {name: value for name, value in test.items() if name not in _OF_PROBABILITIES}
    for name, value in (own | test).items():
        if not name.startswith(("val_", "test_")):
            continue
        split = "validation" if name.startswith("val_") else "test"
        count = images.get(split, 0)
        bounds = interval(value, count) if is_share(name) else None
        yield {
            "name": name,
            "value": value,
            "interval": "" if bounds is None else "{:.4f} to {:.4f}".format(*bounds),
            "of": f"this model on {count:,} {split} {items}{chosen_on * (split == 'validation')}",
        }
    if not isinstance(row, WinnerRow):
        return
    for finalist in row.finalists:
        if finalist.trial != row.trial:
            continue
        for name, summary in {row.objective: finalist.validation, **finalist.test}.items():
            if summary.mean is None:
                continue
            bounds = summary.interval
            yield {
                "name": name,
                "value": summary.mean,
                "interval": "" if bounds is None else "{:.4f} to {:.4f}".format(*bounds),
                "of": f"{len(summary.values)} fresh runs, {mean_text(summary)}",
            }


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent cases (Wilson, 1927)."""
    if count == 0:
        return 0.0, 1.0
    squared = _LEVEL**2 / count
    center = (share + squared / 2) / (1 + squared)
    half = _LEVEL / (1 + squared) * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return max(0.0, center - half), min(1.0, center + half)
