"""The space: what is drawn, when, and from what."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from search.spec.search_spec import SearchSpec, read_spec
from search.study import space
from tests.search.specs import SMALL, small
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.knobs import is_active, knobs


def draw(spec: SearchSpec, trials: int) -> list[tuple[optuna.trial.FrozenTrial, HParams]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(trials):
        trial = study.ask()
        hparams = space.suggest(trial, spec, seed=trial.number)
        study.tell(trial, 0.0)
        drawn.append((study.trials[trial.number], hparams))
    return drawn


def default_space() -> SearchSpec:
    return read_spec(SMALL[: SMALL.index("space:")] + "space: default\n")


def test_a_knob_is_drawn_only_where_something_reads_it() -> None:
    seen = set()
    for trial, hparams in draw(default_space(), 200):
        values = hparams.to_dict()
        for name in trial.params:
            knob = name.split(".")[0]
            assert is_active(knob, values, HParams), (name, values)
            seen.add(knob)
    sampled = {k.name for k in knobs(HParams).values() if k.space is not None}
    assert seen == sampled - {"image_size"}  # which the data of this spec give


def test_the_values_are_those_that_optuna_stores() -> None:
    for trial, hparams in draw(small(), 20):
        assert trial.params["lr"] == hparams.lr
        assert trial.params["batch_size"] == hparams.batch_size
        assert 1e-3 <= hparams.lr <= 1e-1


def test_an_alternative_to_a_range_is_drawn_as_a_choice() -> None:
    spec = small("space.weight_decay={low: 1e-5, high: 1e-1, log: true, or: [0.0]}")
    decays = [hparams.weight_decay for _, hparams in draw(spec, 60)]
    zeros = decays.count(0.0)
    assert 10 < zeros < 50
    assert all(decay == 0 or 1e-5 <= decay <= 1e-1 for decay in decays)


def test_what_the_spec_fixes_is_fixed() -> None:
    spec = small("space.dropout=0.25", "search.max_epochs=7")
    for trial, hparams in draw(spec, 5):
        assert "dropout" not in trial.params
        assert (hparams.dropout, hparams.max_epochs, hparams.image_size) == (0.25, 7, 32)


def test_sub_policies_are_drawn_in_full() -> None:
    spec = small("space.policy=sampled", "space.sub_policies=2")
    for trial, hparams in draw(spec, 5):
        assert len(hparams.sub_policies) == 2
        assert len([name for name in trial.params if name.startswith("sub_policies.")]) == 12


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("space.lr={low: 1e-4, high: 1e-1, log: true}", "lr", 2e-3),
        ("space.lr={low: 1e-2, high: 1, log: true}", "lr", 1e-1),
        ("space.batch_size=[16, 128]", "batch_size", 16),
        ("space.batch_size=[16, 64]", "batch_size", 64),
        ("space.batch_size={low: 16, high: 512, log: true}", "batch_size", 64),
    ],
)
def test_the_default_trial_is_the_recipe_as_far_as_the_space_has_it(
    override: str, name: str, value: Any
) -> None:
    assert space.default_params(small(override))[name] == pytest.approx(value)


def test_what_a_space_fixes_otherwise_does_not_fit_it() -> None:
    spec = small("space={strategy: probe, solver: [ridge, gradient], policy: [none, flip_crop]}")
    assert space.fitted_params(spec, {"strategy": "full", "policy": "flip_crop"}) is None
    assert space.fitted_params(spec, {"strategy": "probe", "solver": "ridge", "policy": "none"}) is not None


def test_a_stepped_range_is_not_left_upwards() -> None:
    spec = small("space.batch_size={low: 16, high: 64, step: 32}")
    assert space.default_params(spec)["batch_size"] == 48
    fitted = space.fitted_params(spec, {"batch_size": 64})
    assert fitted is not None
    assert fitted["batch_size"] == 48


def test_the_grid_holds_every_point() -> None:
    spec = small("search.sampler=grid", "space.lr={low: 0.1, high: 0.5, step: 0.1}")
    points = space.grid_params(spec)
    assert len(points) == 2 * 5 * 2
    assert {point["batch_size"] for point in points} == {32, 64}
    assert max(point["lr"] for point in points) == pytest.approx(0.5)


def test_a_choice_of_strategies_begins_with_a_recipe_for_each_and_the_solved_head_first() -> None:
    spec = default_space()
    told = first_values(spec)
    assert [values["strategy"] for values in told] == ["probe", "lp_ft", "full", "partial"]
    assert [values.get("solver") for values in told[:2]] == ["ridge", "ridge"]
    assert [values["features"] for values in told] == ["grid", "grid", "last", "last"]
    for values in told[1:]:
        assert (values["batch_size"], values["batch_norm"], values["policy"]) == (32, "eval", "none")
        assert 3e-5 <= values["trunk_lr"] <= 5e-4
    # A head that is solved is fine-tuned at a small rate, one that is not at its own.
    assert told[1]["lr"] < told[2]["lr"]


def first_values(spec: SearchSpec) -> list[dict[str, Any]]:
    """What the first trials of a search read."""
    first = [space.configured(params, spec) for params in space.first_params(spec)]
    assert all(values is not None for values in first)
    return [values or {} for values in first]


@pytest.mark.parametrize(
    ("chosen", "solver", "features"),
    [
        ("{strategy: probe, solver: [gradient, logistic, ridge], features: last}", "ridge", "last"),
        ("{strategy: probe, solver: [gradient, logistic], features: [last, stages]}", "logistic", "stages"),
        ("{strategy: probe, solver: ridge, features: [last, stages]}", "ridge", "stages"),
        ("{strategy: probe, solver: ridge, features: [last, stages, grid]}", "ridge", "grid"),
        ("{strategy: [full, probe], lr: 0.01, features: [last, stages]}", "gradient", "stages"),
    ],
)
def test_the_first_trial_is_a_solved_head_on_stages_as_far_as_the_space_has_it(
    chosen: str, solver: str, features: str
) -> None:
    values = first_values(small(f"space={chosen}"))[0]
    assert (values["strategy"], values["solver"], values["features"]) == ("probe", solver, features)


def test_a_space_without_such_a_choice_begins_as_it_always_did() -> None:
    assert list(space.first_params(small())) == [space.default_params(small())]


def test_a_trunk_whose_rate_follows_from_the_heads_is_begun_with_as_before() -> None:
    spec = small(
        "space={strategy: [probe, lp_ft], lr: {low: 1e-4, high: 1e-1, log: true}, "
        "backbone_lr_mult: {low: 1e-3, high: 1.0, log: true}}"
    )
    (values,) = (each for each in first_values(spec) if each["strategy"] == "lp_ft")
    assert (values["lr"], values["backbone_lr_mult"]) == (2e-3, 0.1)
    assert values["trunk_lr"] is None


def test_the_default_space_takes_the_datas_size_or_searches_it() -> None:
    assert "image_size" not in default_space().space
    text = SMALL[: SMALL.index("space:")].replace("  image_size: 32\n", "") + "space: default\n"
    assert read_spec(text).domain("image_size").sampled
