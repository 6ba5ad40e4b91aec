"""Trials on texts in the process that Ray keeps for them: used or new, killed or not, the same to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.test_image_transfer import Make, delta, steady, steps
from tests.trainables.text.tiny import sentences, write_table
from trainables import image_transfer
from trainables.image_transfer import TrialConfig
from trainables.text.hparams import TextHParams

Configured = Callable[..., TrialConfig]
TUNED = {"strategy": "lp_ft", "solver": "ridge", "features": "stages", "policy": "deletion", "trunk_lr": 1e-3}


@pytest.fixture
def configured(tmp_path: Path, knobs: Mapping[str, Any]) -> Configured:
    """The configuration of a trial; knobs by name."""
    table = write_table(tmp_path / "texts.jsonl", sentences(20))

    def of(place: str, **changed: Any) -> TrialConfig:
        hparams = TextHParams(**knobs, **{"max_epochs": 3, "batch_size": 8, **changed})
        return TrialConfig(
            sampled=[],
            number=0,
            modality="text",
            hparams=hparams.to_dict(),
            folder=str(tmp_path / place),
            data={"source": str(table)},
            settings={"threads": 1, "monitor": {"metric": "val_loss", "maximize": False}},
            cache_dir=str(tmp_path / "cache"),
            cache_bytes=2**30,
        )

    return of


@pytest.fixture(autouse=True)
def _states_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each epoch."""
    monkeypatch.setattr(image_transfer, "_STATE_SECONDS", 0.0)


@pytest.mark.parametrize("knobs_of", [{"solver": "logistic"}, TUNED, {**TUNED, "strategy": "lora"}])
def test_a_used_actor_equals_a_new_one(make: Make, configured: Configured, knobs_of: dict[str, Any]) -> None:
    count = 1 if knobs_of.get("strategy") is None else 3
    used = make(configured("before", strategy="full", trunk_lr=1e-2))
    steps(used)
    used.reset(configured("used", **knobs_of))
    new = make(configured("new", **knobs_of))
    assert steps(used, count) == steps(new, count)
    assert delta(configured("used")) == delta(configured("new"))


def test_a_trial_whose_process_was_killed_goes_on_to_the_bit(make: Make, configured: Configured) -> None:
    whole = steps(make(configured("whole", **TUNED)))
    first = make(configured("killed", **TUNED))
    begun = [steady(first.train())]
    first._claim = None  # a process that was killed releases nothing
    rest = steps(make(configured("killed", **TUNED)), 2)
    assert [*begun, *rest] == whole
    assert delta(configured("killed")) == delta(configured("whole"))
