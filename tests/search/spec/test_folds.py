"""Folds are for searches of heads that are solved for."""

from __future__ import annotations

import pytest

from search.errors import SpecError
from search.run.planning import trial_config
from search.spec.search_spec import read_spec

FOLDED = """
name: folded
data: {source: digits, image_size: 32, splits: {folds: 5, repeats: 2}}
search: {trials: 4}
space: {backbone: efficientnet_lite0, strategy: probe, solver: [ridge, logistic], policy: [none, classic]}
"""


def test_a_trial_is_told_of_folds() -> None:
    settings = trial_config(read_spec(FOLDED))["settings"]
    assert (settings["folds"], settings["repeats"]) == (5, 2)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("space.solver=[ridge, gradient]", "solved for: solver must be ridge or logistic"),
        ("space.strategy=[probe, lp_ft]", "strategy must be probe"),
        ("data.splits={repeats: 3}", "repeats are of folds"),
        ("data.splits={folds: 1}", "data.splits.folds"),
    ],
)
def test_what_folds_are_not_for_is_told(override: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        read_spec(FOLDED, [override])
