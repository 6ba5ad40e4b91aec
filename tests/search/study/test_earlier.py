"""What an earlier search found, as first trials of a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from search.errors import BadInput, SpecError
from search.home import Home
from search.run.launch import _created
from search.run.preflight import refusals
from search.spec.search_spec import SearchSpec, read_spec
from search.study import space
from search.study.agenda import Agenda
from search.study.earlier import start_of
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from tests.search.commands import transfer_search
from tests.search.specs import SMALL, small
from trainables.record import METRICS

NEW = Path("searches/new")


def earlier(name: str, runs: list[tuple[dict[str, Any], float]], *overrides: str) -> SearchStudy:
    """A search that has completed trials of these Optuna parameters with these values."""
    spec = small(*overrides, name=name)
    home = Home.of(name)
    home.make()
    study = SearchStudy.create(spec, home)
    for params, _ in runs:
        study._study.enqueue_trial(params)
    home.spec.write_text(spec.to_yaml())
    for place in range(len(runs) + 1):  # the default trial is the first
        number = study.ask().number
        value = runs[place - 1][1] if place else 0.1
        best = {"epoch": 1.0, **dict.fromkeys(METRICS, 0.5), "val_accuracy": value}
        study.report(number, 1, best)
        study.end(number, Ending.COMPLETED, best)
    return study


def params(lr: float, batch_size: int = 32, policy: str = "none") -> dict[str, Any]:
    return {"policy": policy, "lr": lr, "batch_size": batch_size}


def new(*overrides: str) -> SearchSpec:
    return small("search.start_from=old", *overrides, name="new")


def test_the_best_distinct_configurations_come_after_the_defaults(folder: Path) -> None:
    runs = [
        (params(0.01), 0.5),
        (params(0.02), 0.9),
        (params(0.02), 0.8),  # as the one before
        *((params(0.03 + place / 100), 0.6 + place / 100) for place in range(5)),
    ]
    earlier("old", runs)
    start = start_of(new(), Home(NEW.resolve()))
    assert start is not None
    assert list(start.trials) == [2, 8, 7, 6, 5]
    assert start.line == "starts from old: its trials 2, 8, 7, 6, 5 after the recipe's defaults"
    study = SearchStudy.create(new(), _made("new"), start=list(start.trials.values()))
    asked = [study.ask().hparams for _ in range(7)]
    assert [hparams.lr for hparams in asked[:3]] == [2e-3, 0.02, 0.07]
    assert asked[6].lr not in {run["lr"] for run, _ in runs}, "then the sampler draws"


def test_what_an_agenda_may_never_come_to_is_taken_too(folder: Path) -> None:
    space = """space={
      backbone: efficientnet_lite0, strategy: [probe, lp_ft], solver: [gradient, ridge],
      policy: [none, classic], lr: [0.01, 0.02]}"""
    told = [{"strategy": "probe", "solver": "ridge", "policy": policy} for policy in ("none", "classic")]
    earlier("old", [(each, 0.5 + place / 10) for place, each in enumerate(told)], space)
    spec = new(space)
    assert Agenda.has(spec)
    start = start_of(spec, Home(NEW.resolve()))
    assert start is not None
    best = start.trials[2]
    assert (best["solver"], best["policy"]) == ("ridge", "classic")


def _made(name: str) -> Home:
    home = Home.of(name)
    home.make()
    return home


def test_a_launch_enqueues_them_and_a_second_opening_nothing_more(folder: Path) -> None:
    earlier("old", [(params(0.02), 0.9)])
    home = _made("new")
    with _created(new(), home):
        home.spec.write_text(new().to_yaml())
    study = SearchStudy.create(new(), home)
    waiting = study._study.get_trials(states=(TrialState.WAITING,))
    assert [trial.system_attrs["fixed_params"]["lr"] for trial in waiting] == [2e-3, 0.02]
    for other in Home.of("old").root.iterdir():
        other.unlink() if other.is_file() else None
    assert refusals(read_spec(home.spec), home, is_new=False) == []


def test_numbers_are_cut_to_the_new_space_and_knobs_that_it_lacks_are_dropped() -> None:
    spec = small(
        "space.lr={low: 0.001, high: 0.05, log: true}",
        "space.weight_decay={low: 0.0001, high: 0.1, log: true, or: [0.0]}",
        "space.dropout={low: 0.0, high: 0.4, step: 0.1}",
        "space.clip_grad=[null, 1.0]",
        "space.batch_size=[64, 128]",
        "space.policy=[none, rand_augment]",
        "space.ra_ops=[1, 2]",
    )
    old = {
        **params(0.5, 40, "rand_augment"),
        "weight_decay": 0.0,
        "dropout": 0.17,
        "ra_ops": 2,
        "clip_grad": None,
        "momentum": 0.3,
        "strategy": "probe",
    }
    found = space.fitted_params(spec, old)
    assert found is not None
    active = space.configured(found, spec)
    assert active is not None
    expected = {
        "lr": 0.05,
        "batch_size": 64,
        "weight_decay": 0.0,
        "dropout": pytest.approx(0.2),
        "ra_ops": 2,
        "clip_grad": None,
        "strategy": "probe",
    }
    assert {name: active[name] for name in expected} == expected
    assert space.fitted_params(spec, {**old, "strategy": "full"}) is None, "it has another, fixed"
    assert space.fitted_params(spec, {**old, "policy": "augmix"}) is None
    assert space.fitted_params(spec, {**old, "clip_grad": 7.0}) is None, "of nothing and 1 neither is near"


@pytest.mark.parametrize(
    ("rates", "taken"),
    [
        ("lr: [0.002], trunk_lr: {low: 3e-5, high: 5e-4, log: true}", {"trunk_lr": 4e-4}),
        ("lr: [0.002], backbone_lr_mult: {low: 1e-3, high: 1.0, log: true}", {"backbone_lr_mult": 0.2}),
    ],
)
def test_the_trunks_rate_is_taken_in_whichever_way_a_space_has_it(
    folder: Path, rates: str, taken: dict[str, float]
) -> None:
    earlier("old", [({"backbone_lr_mult": 0.2}, 0.9)], f"space={{strategy: full, {_OWN}}}")
    start = start_of(new(f"space={{strategy: full, dropout: [0.0, 0.1], {rates}}}"), Home(NEW.resolve()))
    assert start is not None
    (found, *_) = start.trials.values()
    assert {name: found[name] for name in taken} == pytest.approx(taken)


_OWN = "lr: 0.002, backbone_lr_mult: {low: 1e-3, high: 1.0, log: true}"


def test_a_sampled_policy_is_taken_whole_or_drawn_again() -> None:
    spec = small("space.policy=[none, sampled]", "space.sub_policies=2")
    row = [("Rotate", 0.5, 3), ("Invert", 0.25, 0)]
    whole = {**params(0.01, 32, "sampled"), "sub_policies": [row, row]}
    found = space.configured(space.fitted_params(spec, whole) or {}, spec)
    assert found is not None
    assert found["sub_policies"] == (tuple(row), tuple(row))
    part = {**whole, "sub_policies": [row]}
    assert space.configured(space.fitted_params(spec, part) or {}, spec) is None


def test_better_ones_that_do_not_fit_are_counted_and_none_that_fits_is_an_error(folder: Path) -> None:
    earlier("old", [(params(0.02, policy="classic"), 0.9), (params(0.02), 0.8)])
    home = Home(NEW.resolve())
    start = start_of(new("space.policy=[none, flip_crop]"), home)
    assert start is not None
    assert list(start.trials) == [2]
    assert start.line.endswith("; 1 better ones chose what this space does not have")
    with pytest.raises(BadInput, match="this space holds none of the 3 configurations that 'old' completed"):
        start_of(new("space.policy=[flip_crop, augmix]"), home)
    same = start_of(new("space={lr: {low: 0.002, high: 0.0020001}}"), home)
    assert same is not None
    assert len(same.trials) <= 2


def test_a_path_will_do(folder: Path) -> None:
    earlier("old", [(params(0.02), 0.9)])
    (folder / "searches" / "old").rename(folder / "moved")
    spec = small("search.start_from=./moved", name="new")
    assert spec.search.start_from == str(folder / "moved")
    start = start_of(spec, Home(NEW.resolve()))
    assert start is not None
    assert list(start.trials) == [1], "its defaults are those of the new one"


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("odl", "there is no search 'odl' in {0}/searches; there are: begun, old; did you mean old?"),
        ("begun", "no trial of the search 'begun' has completed; wait for one, or leave start_from out"),
        ("./nowhere", "{0}/nowhere is no search's home: it has no spec.yaml; give a search's name or home"),
    ],
)
def test_what_cannot_be_started_from_is_told_before_anything_starts(
    folder: Path, start: str, says: str
) -> None:
    earlier("old", [(params(0.02), 0.9)])
    home = _made("begun")
    SearchStudy.create(small(name="begun"), home)
    home.spec.write_text(small(name="begun").to_yaml())
    spec = small(f"search.start_from={start}", name="new")
    (problem,) = refusals(spec, Home(NEW.resolve()))
    given = f"{folder}/nowhere" if "/" in start else start
    assert str(problem) == f"search.start_from is {given!r}: {says.format(folder)}"


def test_a_grid_has_no_use_for_it(folder: Path) -> None:
    grid = ("search.sampler=grid", "space={lr: [0.1, 0.2]}", "search.trials=2", "search.start_from=old")
    with pytest.raises(SpecError, match="is 'old': has no use with the grid sampler"):
        small(*grid)


def test_elsewhere_a_path_must_be_absolute() -> None:
    with pytest.raises(SpecError, match=r"is '\./old': must be an absolute path"):
        read_spec(SMALL, ["search.start_from=./old"], elsewhere=True)


def test_the_dry_run_says_so(folder: Path) -> None:
    earlier("old", [(params(0.02), 0.9)])
    (folder / "new.yaml").write_text(SMALL)
    words = ("launch", "new.yaml", "--name=new", "--dry-run", "--set=search.start_from=old")
    assert "starts from old: its trials 1 after the recipe" in transfer_search(*words)
