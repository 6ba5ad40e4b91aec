"""The study: the table of endings, row by row, and what a new driver finds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.errors import TransferSearchError
from search.home import Home
from search.study.finalists import FinalistStudy
from search.study.search_study import SearchStudy
from search.study.trials import ENDINGS, Ending
from tests.search.specs import small
from trainables.record import METRICS

BEST = {"epoch": 2.0, **dict.fromkeys(METRICS, 0.5), "val_accuracy": 0.75}


def opened(*overrides: str) -> SearchStudy:
    home = Home.of("small")
    home.make()
    return SearchStudy.create(small(*overrides), home)


def metrics(value: float) -> dict[str, float]:
    return {**dict.fromkeys(METRICS, 0.5), "val_accuracy": value}


@pytest.mark.parametrize(
    ("ending", "state", "mlflow", "counts"),
    [
        (Ending.COMPLETED, TrialState.COMPLETE, "FINISHED", True),
        (Ending.PRUNED, TrialState.PRUNED, "FINISHED", True),
        (Ending.DIVERGED, TrialState.FAIL, "FAILED", True),
        (Ending.ERRORED, TrialState.FAIL, "FAILED", True),
        (Ending.OUT_OF_MEMORY, TrialState.FAIL, "FAILED", True),
        (Ending.INTERRUPTED, TrialState.RUNNING, "KILLED", False),
        (Ending.ABANDONED, TrialState.FAIL, "KILLED", True),
    ],
)
def test_a_row_of_the_table(
    folder: Path, ending: Ending, state: TrialState, mlflow: str, counts: bool
) -> None:
    study = opened()
    number = study.ask().number
    study.report(number, 1, metrics(0.5))
    study.report(number, 2, metrics(0.75))
    study.end(number, ending, BEST | {"expected_val_accuracy": 0.7}, "why")
    (trial,) = study.trials()
    assert trial.state == state
    assert ENDINGS[ending].mlflow == mlflow
    assert study.progress().counted == int(counts)
    assert trial.intermediate_values == {1: 0.5, 2: 0.75}
    assert bool(study.best()) == (ending is Ending.COMPLETED)
    (record,) = study.records()
    expected = 0.7 if state != TrialState.RUNNING else (0.5 + 0.75) / 2
    assert (record.value, record.best_epoch, record.epochs) == (expected, 2, 2)
    if state != TrialState.RUNNING:
        assert (record.ending, record.reason) == (ending, "why")


def test_every_ending_has_a_row() -> None:
    assert set(ENDINGS) == set(Ending)


def test_a_completed_trial_is_worth_what_its_kept_model_is_expected_to_have(folder: Path) -> None:
    study = opened()
    number = study.ask().number
    for epoch, value in enumerate((0.5, 0.75, 0.6, 0.8), 1):
        study.report(number, epoch, metrics(value))
    kept = study.kept(number)
    assert kept is not None
    assert kept == {"epoch": 4, "val_accuracy": 0.8, "expected_val_accuracy": pytest.approx(0.7)}
    study.end(number, Ending.COMPLETED, BEST | kept)
    assert study.leader() == (0, pytest.approx(0.7))
    (record,) = study.records()
    assert (record.value, record.best_epoch) == (pytest.approx(0.7), 4)


def test_a_search_of_old_keeps_its_rule(folder: Path) -> None:
    study = opened()
    assert study.rule == opened().rule == "last_epochs"
    home, spec = Home.of("old", Path("elsewhere")), small()
    home.make()
    # What was stored before the study told its rule.
    optuna.create_study(study_name="small", storage=home.study_url, direction="maximize").set_user_attr(
        "search_id", "of old"
    )
    old = SearchStudy.create(spec, home)
    old.budget = 4
    assert old.rule == "best_epoch"
    assert FinalistStudy.create(spec, home, part_of=old).rule == "best_epoch"
    number = old.ask().number
    for epoch, value in enumerate((0.5, 0.75, 0.6), 1):
        old.report(number, epoch, metrics(value))
    assert old.kept(number) == {"epoch": 2, "val_accuracy": 0.75}
    old.end(number, Ending.COMPLETED, BEST)
    assert old.leader() == (0, 0.75)


def test_the_first_trial_is_the_recipe(folder: Path) -> None:
    study = opened()
    first = study.ask().hparams
    assert (first.lr, first.batch_size, first.policy) == (2e-3, 64, "none")


def test_a_new_driver_continues_what_ran(folder: Path) -> None:
    study = opened()
    done, left = study.ask(), study.ask()
    study.report(left.number, 1, metrics(0.5))
    study.end(done.number, Ending.COMPLETED, BEST)
    again = opened()
    assert again.interrupted() == [left.number]
    continued = again.continue_trial(left.number)
    assert continued.hparams == left.hparams
    assert (continued.begun, continued.epoch) == (1, 1)
    assert again.interrupted() == []
    # The epoch that was reported before the crash comes again and does not count twice.
    again.report(left.number, 1, metrics(0.5))
    again.report(left.number, 2, metrics(0.75))
    again.end(left.number, Ending.COMPLETED, BEST)
    assert again.progress().completed == 2
    assert len(again.trials()) == 2


def test_a_trial_whose_driver_died_while_it_drew_counts_as_begun(folder: Path) -> None:
    drawn = opened().ask()
    again = opened()
    assert again.interrupted() == [drawn.number]
    continued = again.continue_trial(drawn.number)
    assert continued.begun == 1  # so that its run is looked up before one is made
    assert continued.hparams == drawn.hparams


def test_a_resumed_sampler_does_not_repeat_itself(folder: Path) -> None:
    drawn = []
    for study in (opened("search.sampler=random") for _ in range(2)):
        drawn += [study.ask().hparams.lr for _ in range(3)]
    assert len(set(drawn)) == 6


def test_a_trial_is_there_for_others_as_soon_as_it_is_drawn(folder: Path) -> None:
    study = opened()
    study.end(study.ask().number, Ending.COMPLETED, BEST)  # the enqueued one is there from the start
    trial = study.ask()
    assert opened().interrupted() == [trial.number]
    assert opened().continue_trial(trial.number).hparams == trial.hparams
    assert opened().records()[1].mlflow_run_id is None
    study.ran_as(trial.number, "run")
    seen = opened().records()[1]
    assert (seen.state, seen.mlflow_run_id) == ("RUNNING", "run")
    assert seen.params == trial.hparams.active
    study.report(trial.number, 1, dict.fromkeys(METRICS, 0.5))
    assert opened().reported(trial.number) == {1: 0.5}


def test_the_run_that_mlflow_told_of_last_is_the_trials(folder: Path) -> None:
    study = opened()
    number = study.ask().number
    study.ran_as(number, "first")
    study.end(number, Ending.COMPLETED, BEST, run="made again")
    assert opened().records()[number].mlflow_run_id == "made again"
    number = study.ask().number
    opened().ran_as(number, "by another process")
    study = opened()
    study.continue_trial(number)
    study.ran_as(number, "made again")
    assert opened().records()[number].mlflow_run_id == "made again"
    opened().ran_as(number, "by another process")
    study = opened()
    study.continue_trial(number)
    study.end(number, Ending.COMPLETED, BEST, run="and again")
    assert opened().records()[number].mlflow_run_id == "and again"


def test_two_writers_of_one_study_are_noticed(folder: Path) -> None:
    one, other = opened(), opened()
    one.end(one.ask().number, Ending.COMPLETED, BEST)
    one.ask()
    with pytest.raises(TransferSearchError, match="one driver at a time"):
        other.ask()


def test_seeds_of_trials_differ_and_follow_from_the_search(folder: Path) -> None:
    study = opened()
    seeds = [study.ask().hparams.seed for _ in range(4)]
    assert len(set(seeds)) == 4


def test_ties_go_to_the_earlier_trial(folder: Path) -> None:
    study = opened()
    for _ in range(3):
        study.end(study.ask().number, Ending.COMPLETED, BEST)
    assert study.leader() == (0, 0.75)


def test_a_repeat_counts_by_the_mean(folder: Path) -> None:
    study = opened("space.lr=0.01", "space.policy=none", "space.batch_size=[32, 64]", "search.sampler=random")
    values: dict[int, list[float]] = {}
    for value in (0.9, 0.1, 0.6, 0.5, 0.7, 0.55, 0.6, 0.5):
        trial = study.ask()
        values.setdefault(trial.hparams.batch_size, []).append(value)
        study.end(trial.number, Ending.COMPLETED, {**BEST, "val_accuracy": value})
    means = {size: sum(each) / len(each) for size, each in values.items()}
    leader = study.leader()
    assert leader is not None
    assert len(means) == 2
    assert leader[1] == pytest.approx(max(means.values()))
    assert leader[1] < 0.9


def test_failed_trials_can_be_run_again(folder: Path) -> None:
    study = opened()
    study.end(study.ask().number, Ending.COMPLETED, BEST)
    failed = study.ask()
    study.end(failed.number, Ending.ERRORED, None, "boom")
    study.retry_failed()
    again = study.ask()
    assert study.budget == 7
    assert again.hparams.lr == failed.hparams.lr


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc", "nsga2", "grid"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_sampler_draws(folder: Path, sampler: str) -> None:
    study = opened(f"search.sampler={sampler}", "space.lr=[0.001, 0.01, 0.1]")
    drawn = set()
    for _ in range(12):
        trial = study.ask()
        drawn.add((trial.hparams.lr, trial.hparams.batch_size, trial.hparams.policy))
        study.end(trial.number, Ending.COMPLETED, BEST)
    assert len(drawn) == 12 if sampler == "grid" else len(drawn) > 3


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "none"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_pruner_answers(folder: Path, pruner: str) -> None:
    study = opened(f"search.pruner={pruner}", "search.max_epochs=9")
    answers: list[Any] = []
    for value in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
        number, epoch = study.ask().number, 0
        while epoch < 9:
            epoch += 1
            answers.append(study.report(number, epoch, metrics(value)))
            if answers[-1]:
                break
        ending = Ending.PRUNED if answers[-1] else Ending.COMPLETED
        study.end(number, ending, {**BEST, "val_accuracy": value})
    assert any(answers) == (pruner != "none")
    leader = study.leader()
    assert leader is not None
    assert leader[0] == 0


def test_several_objectives_give_a_front(folder: Path) -> None:
    study = opened("search.objective={val_accuracy: maximize, epoch_seconds: minimize}", "search.pruner=none")
    for accuracy, seconds in ((0.9, 9.0), (0.8, 1.0), (0.7, 5.0)):
        number = study.ask().number
        best = {**BEST, "val_accuracy": accuracy, "epoch_seconds": seconds}
        study.end(number, Ending.COMPLETED, best)
    assert [trial.number for trial in study.best()] == [0, 1]


def test_a_trial_that_is_drawn_ahead_has_not_begun(folder: Path) -> None:
    study = opened()
    study.draw_ahead()  # not while something is enqueued, which costs no draw
    assert opened().progress().running == 0
    first = study.ask()
    study.draw_ahead()
    study.draw_ahead()
    assert study.progress().running == opened().progress().running == 1
    assert study.interrupted() == []
    second = study.ask()
    assert (first.number, second.number) == (0, 1)
    assert opened().interrupted() == [0, 1]
    assert opened().continue_trial(1).hparams == second.hparams


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_a_solved_head_is_solved_once(folder: Path, sampler: str) -> None:
    space = ("space={solver: [ridge, logistic, gradient], policy: [none, flip_crop], features: last}",)
    study = opened(*space, "search.trials=20", f"search.sampler={sampler}")
    seen: dict[tuple[Any, ...], int] = {}
    for number in range(20):
        if number == 10:  # by another driver, who reads what there is
            study = opened(*space, "search.trials=20", f"search.sampler={sampler}")
        assignment = study.ask()
        assert assignment.number == number
        if assignment.hparams.head_is_solved:
            head = (assignment.hparams.active["solver"], assignment.hparams.active["policy"])
            seen[head] = seen.get(head, 0) + 1
        study.end(assignment.number, Ending.COMPLETED, {**BEST, "val_accuracy": 0.9})
    assert seen == dict.fromkeys(itertools.product(("ridge", "logistic"), ("none", "flip_crop")), 1)
    assert [trial.number for trial in study.trials()] == list(range(20))


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_a_solved_head_prunes_nobody(folder: Path, pruner: str) -> None:
    space = ("space={solver: [ridge, gradient], features: last}", "search.max_epochs=8", "search.trials=40")
    study = opened(*space, f"search.pruner={pruner}")
    solved = stepped = pruned = 0
    for _ in range(40):
        assignment = study.ask()
        is_solved = assignment.hparams.head_is_solved
        # Every solved head is far better than what any other has after its first epochs.
        values = [0.9] if is_solved else [0.1 * epoch for epoch in range(1, 9)]
        for epoch, value in enumerate(values, 1):
            stop = study.report(assignment.number, epoch, metrics(value))
            assert not (is_solved and stop)
            pruned += stop
        assert study.told(assignment.number) == frozenset(range(1, len(values) + 1))
        best = {**BEST, "epoch": len(values), "val_accuracy": values[-1]}
        study.end(assignment.number, Ending.COMPLETED, best)
        solved, stepped = solved + is_solved, stepped + (not is_solved)
    assert min(solved, stepped) > 0
    assert not pruned
    leader = study.leader()
    assert leader is not None
    assert leader[1] == 0.9
