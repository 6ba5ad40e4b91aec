"""A search that found nothing says so, finalists or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.home import Home
from search.search import Search
from search.study.intervals import Sample
from search.study.search_study import SearchStudy
from search.tracking.overview import overview
from tests.search.commands import rows, transfer_search
from tests.search.specs import small
from tests.search.study.test_finalists import ended


@pytest.mark.parametrize(("value", "found"), [(0.126, False), (0.5, True)])
def test_a_best_trial_that_is_no_better_than_a_guess_is_no_find(
    folder: Path, value: float, found: bool
) -> None:
    spec, home = small("search.trials=3"), Home.of("small")
    home.make()
    study = SearchStudy.create(spec, home)
    home.keep(spec.to_yaml(home.root))
    study.samples = {"validation": Sample(count=500, majority=0.1)}
    for each in (0.08, value, 0.1):
        ended(study, each)
    printed = transfer_search("best", "small")
    told = "it does not beat always naming the most frequent class, which is right on a share of 0.1000"
    assert (f"nothing was found: {told}" in printed) == (not found)
    assert rows("best", "small")["chance"] == (None if found else 0.1)
    note = overview(Search.open(home).study).tags["mlflow.note.content"]
    assert (f"Nothing was found: {told}" in note) == (not found)
