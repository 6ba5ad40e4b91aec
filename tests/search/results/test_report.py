"""The report: whole, self-contained, and nothing in it that a name could break."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from search.errors import BadInput
from search.home import Home
from search.results.report import report, write_report
from search.search import Search
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from tests.search.specs import small
from trainables.record import METRICS

HOSTILE = "<script>alert(1)</script>$x"


class Tags(HTMLParser):
    """Remembers the tags, and every address that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [
            value
            for name, value in attrs
            if value and name in ("src", "href", "xlink:href") and value[0] != "#"
        ]


def searched(count: int) -> Home:
    """A search with `count` trials that have ended, among them pruned and failed ones."""
    home = Home.of("small")
    home.make()
    overrides = (
        "space.weights=[pretrained, none, other]",
        "search.sampler=random",
        f"search.trials={max(1, count)}",
    )
    spec = small(*overrides)
    choices = spec.space["weights"].model_copy(update={"values": ("pretrained", "none", HOSTILE)})
    spec = spec.model_copy(update={"space": {**spec.space, "weights": choices}})
    home.spec.write_text(spec.to_yaml())
    study = SearchStudy.create(spec, home)
    endings = [Ending.COMPLETED, Ending.PRUNED, Ending.COMPLETED, Ending.DIVERGED, Ending.COMPLETED]
    for number in range(count):
        given = study.ask()
        best = {"epoch": 1.0, **dict.fromkeys(METRICS, 0.5), "val_accuracy": 0.5 + number / 100}
        study.report(given.number, 1, best)
        study.end(given.number, endings[number % 5], best)
    return home


def test_it_needs_nothing_beside_itself_and_runs_no_script(folder: Path) -> None:
    home = searched(15)
    text = write_report(Search.open(home), folder / "out" / "small.html")
    assert (folder / "out" / "small.html").read_text() == text
    assert [path.name for path in (folder / "out").iterdir()] == ["small.html"]
    page = Tags(text)
    assert "script" not in page.tags
    assert page.fetched == []
    assert "&lt;script&gt;" in text
    assert "url(http" not in text
    for title in ("Best: trial 14", "History", "Learning curves", "Importance", "Hyperparameters", "Trials"):
        assert title in text
    assert len(re.findall("<svg", text)) == 5


def test_one_trial_is_enough(folder: Path) -> None:
    assert "Best: trial 0" in report(Search.open(searched(1)))


def test_without_a_completed_trial_it_says_so(folder: Path) -> None:
    with pytest.raises(BadInput, match="no trial of 'small' has completed"):
        write_report(Search.open(searched(0)), folder / "small.html")
    assert not (folder / "small.html").exists()


def test_a_file_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(BadInput, match="cannot write"):
        write_report(Search.open(searched(1)), folder / "file" / "small.html")
