"""What a search does before its sampler: heads are screened, and the best of them fine-tuned."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from search.home import Home
from search.spec.search_spec import SearchSpec
from search.study.agenda import PHASE, Agenda, agenda_notes
from search.study.search_study import Assignment, Ending, SearchStudy
from tests.search.specs import small
from trainables.record import METRICS

SPACE = """space={
  backbone: efficientnet_lite0, strategy: [probe, lp_ft, full], solver: [gradient, ridge],
  features: [last, stages], image_size: [32, 48], policy: [none, flip_crop, classic],
  lr: {low: 3e-4, high: 3e-2, log: true}, trunk_lr: {low: 3e-5, high: 5e-4, log: true},
  batch_size: [16, 32]}"""


def spec_of(*overrides: str) -> SearchSpec:
    changes = ("data.image_size=null", SPACE, "search.trials=30", "search.pruner=none", *overrides)
    return small(*changes, name="phased")


def home() -> Home:
    made = Home.of("phased")
    made.make()
    return made


def worth(assignment: Assignment) -> float:
    """Stages, the larger size and `classic` are better, and fine-tuning is."""
    has = assignment.hparams
    seen = 0.1 * (has.features == "stages") + 0.05 * (has.to_dict()["image_size"] == 48)
    return 0.5 + seen + 0.02 * (has.policy == "classic") + 0.1 * (has.strategy != "probe")


def end(study: SearchStudy, assignment: Assignment) -> None:
    best = {"epoch": 1.0, **dict.fromkeys(METRICS, 0.5), "val_accuracy": worth(assignment)}
    study.report(assignment.number, 1, best)
    study.end(assignment.number, Ending.COMPLETED, best)


def run(study: SearchStudy, trials: int) -> list[tuple[str, Any]]:
    """The phases and what was chosen of so many trials, one after another."""
    found = []
    for _ in range(trials):
        assignment = study.ask()
        found.append((study.tags(assignment.number).get(PHASE, ""), chosen(assignment)))
        end(study, assignment)
    return found


def chosen(assignment: Assignment) -> tuple[Any, ...]:
    values = assignment.hparams.to_dict()
    return tuple(values[name] for name in ("strategy", "solver", "features", "image_size", "policy"))


def test_heads_are_screened_and_the_best_are_fine_tuned_before_the_sampler_draws(folder: Path) -> None:
    found = run(SearchStudy.create(spec_of(), home()), 12)
    heads = [
        ("probe", "ridge", "stages", 32, "none"),
        ("probe", "ridge", "last", 32, "none"),
        ("probe", "ridge", "stages", 48, "none"),
        ("probe", "ridge", "last", 48, "none"),
        ("probe", "ridge", "stages", 48, "flip_crop"),
        ("probe", "ridge", "stages", 48, "classic"),
    ]
    tuned = [
        ("lp_ft", "ridge", "stages", 48, "classic"),
        ("full", "gradient", "last", 48, "classic"),
        ("lp_ft", "ridge", "stages", 48, "none"),
        ("lp_ft", "ridge", "stages", 48, "flip_crop"),
    ]
    assert found[:10] == [*(("screen", each) for each in heads), *(("tune", each) for each in tuned)]
    assert [phase for phase, _ in found[10:]] == ["tune", "tune"]
    assert {strategy for _, (strategy, *_) in found[10:]} <= {"lp_ft", "full"}


@pytest.mark.parametrize("after", [1, 7])
def test_a_resumed_search_goes_on_with_its_agenda(folder: Path, after: int) -> None:
    spec = spec_of()
    whole = run(SearchStudy.create(spec, home()), 10)
    other = spec.model_copy(update={"name": "other"})
    made = Home.of("other")
    made.make()
    begun = run(SearchStudy.create(other, made), after)
    assert begun + run(SearchStudy.open(other, made), 10 - after) == whole


def test_the_other_solver_is_tried_before_policies(folder: Path) -> None:
    changes = ("space.image_size=32", "space.features=last", "space.solver=[gradient, logistic, ridge]")
    found = run(SearchStudy.create(spec_of(*changes), home()), 4)
    heads = [(each[1], each[4]) for phase, each in found if phase == "screen"]
    assert heads == [("ridge", "none"), ("logistic", "none"), ("ridge", "flip_crop"), ("ridge", "classic")]


def test_two_workers_screen_and_tune_what_is_known(folder: Path) -> None:
    study = SearchStudy.create(spec_of("space.image_size=32", "space.policy=none"), home())
    first, second = study.ask(), study.ask()
    assert [chosen(each)[:3] for each in (first, second)] == [
        ("probe", "ridge", "stages"),
        ("probe", "ridge", "last"),
    ]
    end(study, first)
    assert chosen(study.ask())[:3] == ("lp_ft", "ridge", "stages")
    assert chosen(study.ask())[0] == "full"


def test_what_it_gives_is_not_drawn_before_it_is_wanted(folder: Path) -> None:
    made = home()
    study = SearchStudy.create(spec_of("search.trials=3"), made)
    first = study.ask()
    study.draw_ahead()
    end(study, first)
    assert SearchStudy.open(study.spec, made).interrupted() == []
    run(study, 2)
    study.draw_ahead()
    assert SearchStudy.open(study.spec, made).interrupted() == []


def test_a_phase_has_a_third_of_the_trials_and_of_the_time(folder: Path) -> None:
    phases = [phase for phase, _ in run(SearchStudy.create(spec_of("search.trials=6"), home()), 6)]
    assert phases == ["screen", "screen", "tune", "tune", "", ""]


@pytest.mark.parametrize(
    ("time", "head", "others", "phase"),
    [
        (3000, 10, 50, "screen"),  # 120 s of fine-tuning are far off
        (3000, 10, 1010, "tune"),  # heads have had a third
        (150, 10, 10, "tune"),  # it would just end
        (100, 10, 10, "screen"),  # it never would
        (None, 1000, 1000, "screen"),
    ],
)
def test_fine_tuning_begins_while_it_can_end_in_time(
    folder: Path, time: int | None, head: float, others: float, phase: str
) -> None:
    spec = spec_of(f"search.time={time or 'null'}")
    study = SearchStudy.create(spec, home())
    run(study, 2)
    begun = study.trials()
    for trial, seconds in zip(begun, (head, others), strict=True):
        assert trial.datetime_start is not None
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    step = Agenda(spec, 30).next(begun, study.ranked())
    assert step is not None
    assert step.phase == phase
    if time == 150:  # which does not suffice for a refit too, and is over sooner by the driver's own clock
        refitted = Agenda(spec, 30).next(begun, study.ranked(), refit_times=1.5)
        assert refitted is not None
        assert refitted.phase == "screen"
        late = Agenda(spec, 30).next(begun, study.ranked(), seconds=60)
        assert late is not None
        assert late.phase == "screen"


def test_fine_tuning_begins_with_the_head_that_was_best(folder: Path) -> None:
    overrides = ("space.image_size=32", "space.policy=none", "space.solver=[ridge, logistic]")
    study = SearchStudy.create(spec_of(*overrides), home())
    for _ in range(3):
        assignment = study.ask()
        value = 0.9 if assignment.hparams.solver == "logistic" else 0.5
        best = {"epoch": 1.0, **dict.fromkeys(METRICS, 0.5), "val_accuracy": value}
        study.end(assignment.number, Ending.COMPLETED, best)
    found = [chosen(study.ask())[:3] for _ in range(3)]
    assert found[0] == ("lp_ft", "logistic", "stages")
    assert found[1][0] == "full"
    assert found[2] == ("lp_ft", "ridge", "last")


def test_a_pause_is_no_time_that_a_trial_took(folder: Path) -> None:
    made = home()
    study = SearchStudy.create(spec_of("search.time=1800"), made)
    first = study.ask()
    (begun,) = study.trials()
    assert begun.datetime_start is not None
    begun.datetime_start -= timedelta(hours=1)  # as if it had lain there, interrupted
    study.continue_trial(first.number)
    end(study, first)
    (ended,) = study.trials()
    ended.datetime_start = begun.datetime_start
    assert study.seconds_of(first.number) < 60
    step = Agenda(study.spec, 30).next([ended], study.ranked())
    assert step is not None
    assert step.phase == "screen"


@pytest.mark.parametrize(("time", "phase"), [(60, None), (100, "screen")])
def test_a_head_with_more_views_than_there_is_time_for_is_not_begun(
    folder: Path, time: int, phase: str | None
) -> None:
    spec = spec_of("space.image_size=32", "space.features=last", f"search.time={time}")
    study = SearchStudy.create(spec, home())
    run(study, 1)
    (first,) = study.trials()
    assert first.datetime_start is not None
    first.datetime_complete = first.datetime_start + timedelta(seconds=10)
    step = Agenda(spec, 30).next([first], study.ranked())
    assert (step and step.phase) == phase
    if step is not None:  # 8 views take 80 s
        assert step.params["policy"] == "flip_crop"


@pytest.mark.parametrize(
    "overrides",
    [
        ("space.solver=gradient",),
        ("space.strategy=[lp_ft, full]",),
        ("space.strategy=probe", "space={strategy: probe, solver: [ridge, gradient], lr: 0.01}"),
        ("search.objective={val_accuracy: maximize, epoch_seconds: minimize}",),
    ],
)
def test_only_a_space_with_solved_heads_and_trunks_that_train_has_one(overrides: tuple[str, ...]) -> None:
    assert Agenda.has(spec_of())
    (note,) = agenda_notes(spec_of())
    assert "at most 10 solved heads are screened, the best 3 fine-tuned by recipe, then tpe" in note
    assert not Agenda.has(spec_of(*overrides))
    assert not Agenda.has(small())
    assert agenda_notes(small()) == []


def test_a_search_launched_before_there_was_one_has_none(folder: Path) -> None:
    spec = spec_of()
    made = home()
    study = SearchStudy.create(spec, made)
    study._study.set_user_attr("agenda", False)
    assert [phase for phase, _ in run(SearchStudy.open(spec, made), 3)][1:] == ["", ""]
