from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
import torch

from trainables.image.hparams import ImageHParams as HParams
from trainables.seeds import derived_seed, generator, sample_seeds
from trainables.training.knobs import Knob, is_active, knobs

ROWS = ((("Rotate", 0.5, 12), ("Color", 0.8, 20)), (("Equalize", 1.0, 0),))
NUMBERS = [known for known in knobs(HParams).values() if known.low is not None]
CHOICES = [known for known in knobs(HParams).values() if known.choices is not None]


def drawn(known: Knob, chance: random.Random) -> Any:
    """An allowed value."""
    if known.optional and chance.random() < 0.3:
        return None
    if known.choices is not None:
        return chance.choice(known.choices)
    if known.low is None or known.high is None:
        return ROWS if known.name == "sub_policies" else known.default
    if known.integer:
        return chance.randint(int(known.low), int(known.high))
    return chance.uniform(known.low, known.high)


@pytest.mark.parametrize("known", knobs(HParams).values(), ids=lambda known: known.name)
def test_a_knob_is_documented_and_accepts_its_default(known: Knob) -> None:
    assert known.doc.endswith(".")
    assert known.allowed
    assert known.accepts(known.default)
    assert known.accepts(None) is known.optional
    assert getattr(HParams(), known.name) == known.default


@pytest.mark.parametrize("known", NUMBERS, ids=lambda known: known.name)
def test_a_number_is_held_to_its_bounds(known: Knob) -> None:
    assert known.low is not None
    assert known.high is not None
    assert known.accepts(known.low)
    assert known.accepts(known.high)
    outside = [known.low - 1e-3 - abs(known.low), known.high * 2 + 1, math.inf, -math.inf, math.nan]
    for value in (*outside, 10**400, True, False, "1", [1], (1,)):
        assert not known.accepts(value), value
        with pytest.raises(ValueError, match=f"{known.name} is .* but must be"):
            HParams(**{known.name: value})
    if known.integer:
        assert not known.accepts(known.low + 0.5)


@pytest.mark.parametrize("known", CHOICES, ids=lambda known: known.name)
def test_a_choice_is_held_to_its_values(known: Knob) -> None:
    assert known.choices is not None
    assert all(known.accepts(choice) for choice in known.choices)
    for value in (1, 0, 1.0, "no such thing", ["none"], *({True, False} - set(known.choices))):
        assert not known.accepts(value), value


@pytest.mark.parametrize(
    ("name", "value"),
    [("backbone", ("resnet18",)), ("backbone", 3), ("weights", ()), ("sub_policies", "Rotate")],
)
def test_text_is_text_and_rows_are_rows(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        HParams(**{name: value})


def test_any_value_survives_a_dictionary_and_json() -> None:
    chance = random.Random(5)
    for _ in range(200):
        values = HParams(**{known.name: drawn(known, chance) for known in knobs(HParams).values()})
        again = HParams.from_dict(json.loads(json.dumps(values.to_dict())))
        assert again == values
        assert again.to_dict() == values.to_dict()
        assert hash(again) == hash(values)
    assert HParams.from_dict({}) == HParams()


def test_whole_numbers_that_came_as_floats_are_whole_again() -> None:
    found = HParams.from_dict({"batch_size": 32.0, "image_size": 64.0, "lr": 1})
    assert (found.batch_size, type(found.batch_size)) == (32, int)
    assert type(found.image_size) is int
    for value in (math.inf, math.nan, 32.5):
        with pytest.raises(ValueError, match="batch_size is"):
            HParams.from_dict({"batch_size": value})


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="lr is -1") as caught:
        HParams(lr=-1, strategy="freeze", dropout=True, batch_size=0.5, ema=None)  # type: ignore[arg-type]
    text = str(caught.value)
    for part in ("strategy is 'freeze'", "dropout is True", "batch_size is 0.5", "must be one of probe"):
        assert part in text
    assert "ema" not in text
    with pytest.raises(ValueError, match="unknown hyperparameters: dropuot, rl"):
        HParams.from_dict({"rl": 1, "dropuot": 0.1})


def test_a_condition_names_knobs_that_come_before_and_values_that_they_may_have() -> None:
    seen: list[str] = []
    for name, known in knobs(HParams).items():
        for other, values in (*known.when.items(), *known.unless.items()):
            assert other in seen
            assert all(knobs(HParams)[other].accepts(value) for value in values)
        assert bool(known.condition) == bool(known.when or known.unless)
        seen.append(name)


def test_a_knob_is_active_where_something_reads_it() -> None:
    assert is_active("lr", {}, HParams)
    assert not is_active("mixing", {"strategy": "probe"}, HParams)
    assert is_active("mixing", {"strategy": "full"}, HParams)
    assert is_active("freeze", {"strategy": "lp_ft"}, HParams)
    assert not is_active("freeze", {"strategy": "full"}, HParams)
    assert not is_active("momentum", {}, HParams)
    # The default of a knob that is absent decides.
    assert is_active("backbone_lr_mult", {"strategy": "full"}, HParams)
    assert not is_active("layer_decay", {"strategy": "full"}, HParams)


def test_a_solved_head_reads_nothing_about_steps() -> None:
    solved = {"strategy": "probe", "solver": "ridge"}
    for name in ("lr", "batch_size", "optimizer", "schedule", "dropout", "max_epochs", "label_smoothing"):
        assert not is_active(name, solved, HParams)
        assert is_active(name, {**solved, "solver": "gradient"}, HParams)
        # What fine-tunes after the head was solved takes steps; a hidden layer cannot be solved for.
        assert is_active(name, {**solved, "strategy": "lp_ft"}, HParams)
        assert is_active(name, {**solved, "head": "mlp"}, HParams)
    assert not is_active("lp_share", {"strategy": "lp_ft", "solver": "ridge"}, HParams)
    assert is_active("lp_share", {"strategy": "lp_ft"}, HParams)
    assert is_active("policy", solved, HParams)
    assert HParams(strategy="probe", solver="logistic").epochs == 1
    assert HParams(strategy="lp_ft", solver="ridge", max_epochs=5).epochs == 5
    assert HParams(strategy="probe", head="mlp", solver="ridge", max_epochs=5).epochs == 5


def test_conditions_hold_through_others(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"strategy": "probe", "mixing": "mixup", "layer_rates": "decay", "regulariser": "bss"}
    for name in ("mixing_alpha", "layer_decay", "regulariser_strength"):
        assert not is_active(name, values, HParams)
        assert is_active(name, {**values, "strategy": "full"}, HParams)
    # Even where a condition names only the nearest knob.
    nearest = Knob(name="mixing_alpha", default=0.2, doc="", when={"mixing": ("mixup",)})
    table = {**knobs(HParams), "mixing_alpha": nearest}
    monkeypatch.setattr("trainables.training.knobs.knobs", lambda kind: table)
    assert not is_active("mixing_alpha", values, HParams)
    assert is_active("mixing_alpha", {**values, "strategy": "full"}, HParams)


def test_active_leaves_out_what_nothing_reads() -> None:
    active = HParams(strategy="probe", optimizer="sgd").active
    assert {"lr", "momentum", "strategy", "seed"} <= set(active)
    assert not {"beta2", "mixing", "batch_norm", "ra_ops", "freeze"} & set(active)


def test_seeds_follow_from_names_alone() -> None:
    assert derived_seed(0, "epoch", 3) == 2702420372268120446
    named = {derived_seed(root, name, n) for root in range(9) for name in "abc" for n in range(9)}
    assert len(named) == 9 * 3 * 9
    assert all(0 <= seed < 2**63 for seed in named)
    assert torch_draws(1, "order") == torch_draws(1, "order") != torch_draws(2, "order")


def torch_draws(*names: str | int) -> list[int]:
    return torch.randint(1000, (5,), generator=generator(*names)).tolist()


def test_images_have_seeds_of_their_own() -> None:
    indices = torch.arange(5000)
    seeds = sample_seeds(derived_seed("view", 0), indices)
    assert seeds.dtype == torch.int64
    assert len(seeds.unique()) == 5000
    assert torch.equal(sample_seeds(derived_seed("view", 0), indices[40:50]), seeds[40:50])
    assert not (sample_seeds(derived_seed("view", 1), indices) == seeds).any()
