"""The fraction of a GPU that a spec's trials need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.run import packing
from search.run.packing import share, trials_of
from tests.search.commands import transfer_search
from tests.search.specs import small
from trainables.training.footprint import GIB


@pytest.mark.parametrize(
    ("needed", "card", "expected"),
    [
        (1 * GIB, 24 * GIB, 0.07),
        (5 * GIB, 24 * GIB, 0.33),
        (20 * GIB, 24 * GIB, 1.0),
        (22 * GIB, 24 * GIB, None),
        (None, 24 * GIB, None),
        (1 * GIB, None, None),
        (1, 80 * GIB, 0.05),
    ],
)
def test_the_share_holds_the_trial_with_a_margin(
    needed: int | None, card: int | None, expected: float | None
) -> None:
    assert share(needed, card) == expected


def test_every_kind_of_trial_is_measured_once() -> None:
    kinds = trials_of(small("space.strategy=[probe, lp_ft]", "space.batch_size={low: 16, high: 64}"))
    assert {(kind.strategy, kind.batch_size) for kind in kinds} == {
        ("probe", 16), ("probe", 64), ("lp_ft", 16), ("lp_ft", 64),
    }  # fmt: skip
    assert len(kinds) == 4


@pytest.mark.slow
def test_the_command_measures_without_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "card_bytes", lambda: None)
    spec = small("space.batch_size=32")
    path = folder / "spec.yaml"
    path.write_text(spec.to_yaml())
    (row,) = json.loads(transfer_search("footprint", path, "--gpu-gb", "16", "--json"))
    assert row["backbone"] == "efficientnet_lite0"
    assert row["bytes"] > 10 * 2**20
    assert row["measured_on"] in ("cpu", "cuda")
    assert 0.05 <= row["gpu"] <= 1
