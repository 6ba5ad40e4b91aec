"""Every sampler with every pruner on surrogate curves: endings, conditions, NaN, resume, learning."""

from __future__ import annotations

import math
import random
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search.errors import SpecError
from search.home import Home
from search.run.planning import plan
from search.study.pruners import pruner_problems
from search.study.samplers import LearningSampler, build_sampler, population, sampler_notes
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from tests.search.specs import small
from trainables.record import METRICS
from trainables.training.hparams import HParams

SAMPLERS = ("tpe", "random", "gp", "cmaes", "qmc", "nsga2")
PRUNERS = ("asha", "hyperband", "median", "none")
PAIRS = [
    (sampler, pruner)
    for row, sampler in enumerate(SAMPLERS)
    for column, pruner in enumerate(PRUNERS)
    if sampler == "tpe" or (row + column) % 2
]
"""The default sampler with every pruner, and of the others every other pair."""
EPOCHS = 8

CONDITIONAL = (
    "space.strategy=[probe, lp_ft]",
    "space.lp_share=[0.25, 0.5]",
    "space.optimizer=[adamw, sgd]",
    "space.momentum={low: 0.0, high: 0.9}",
    f"search.max_epochs={EPOCHS}",
)


def home() -> Home:
    found = Home.of("small")
    found.make()
    return found


def curve(hparams: HParams, epoch: int) -> float:
    """A value that rises to an end which depends on the rate; too high a rate diverges."""
    if hparams.lr > 0.05 and epoch == 2:
        return math.nan
    end = 0.9 - 0.1 * abs(math.log10(hparams.lr) + 2) - 0.02 * (hparams.strategy == "probe")
    noise = random.Random(f"{hparams.seed} {epoch}").gauss(0, 0.003)
    return end - 0.4 * 0.5**epoch + noise


def train(study: SearchStudy, number: int, hparams: HParams, *, until: int = EPOCHS) -> bool:
    """Runs a trial as the conductor does; whether it ended."""
    for epoch in range(1, until + 1):
        value = curve(hparams, epoch)
        if not math.isfinite(value):
            study.end(number, Ending.DIVERGED, study.kept(number), "not finite")
            return True
        pruned = study.report(number, epoch, dict.fromkeys(METRICS, value))
        if epoch < EPOCHS and pruned:
            study.end(number, Ending.PRUNED, study.kept(number), "pruned")
            return True
    if until == EPOCHS:
        study.end(number, Ending.COMPLETED, study.kept(number))
    return until == EPOCHS


@pytest.mark.parametrize(("sampler", "pruner"), PAIRS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_sampler_goes_with_every_pruner(folder: Path, sampler: str, pruner: str) -> None:
    trials = 8 if sampler == "gp" else 12
    spec = small(
        *CONDITIONAL, f"search.sampler={sampler}", f"search.pruner={pruner}", f"search.trials={trials}"
    )
    study = SearchStudy.create(spec, home())
    # Two run at a time, and a driver dies among them.
    first, second = study.ask(), study.ask()
    assert not train(study, first.number, first.hparams, until=1)
    assert not train(study, second.number, second.hparams, until=1)
    study = SearchStudy.create(spec, home())
    assert study.interrupted() == [0, 1]
    for number in study.interrupted():
        again = study.continue_trial(number)
        assert again.hparams == (first, second)[number].hparams
        assert train(study, number, again.hparams)
    while study.progress().left:
        trial = study.ask()
        assert train(study, trial.number, trial.hparams)
    progress = study.progress()
    assert (progress.counted, progress.running) == (trials, 0)
    assert progress.completed > 0
    assert (progress.pruned > 0) <= (pruner != "none")
    for trial_ in study.trials():
        hparams = study.begun(trial_.number)
        assert hparams is not None
        drawn = {name for name in trial_.params if "." not in name}
        assert drawn <= set(hparams.hparams.active)
        if trial_.state == TrialState.PRUNED:
            assert 2 <= max(trial_.intermediate_values) <= EPOCHS // 2
    leader = study.leader()
    assert leader is not None
    assert leader[1] > 0.7


def diverged(sampler: str, bad_is_told: bool, seed: int, trials: int = 40) -> float:
    """The share of a search's trials that fall off a cliff, above which all diverge."""
    study = optuna.create_study(direction="maximize")
    spec = small(f"search.sampler={sampler}", f"search.seed={seed}", f"search.trials={trials}")
    study.sampler = build_sampler(spec, 0, lambda _: bad_is_told)
    failed = 0
    for _ in range(trials):
        trial = study.ask()
        lr, other = trial.suggest_float("lr", 1e-4, 1.0, log=True), trial.suggest_float("other", 0.0, 1.0)
        if lr > 3e-3:
            failed += 1
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, math.log10(lr) + 0.1 * other)
    return failed / trials


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_learn_from_failures(sampler: str) -> None:
    told = [diverged(sampler, True, seed) for seed in range(4)]
    untold = [diverged(sampler, False, seed) for seed in range(4)]
    print(f"{sampler}: {sum(told) / 4:.2f} diverge where failures are told, else {sum(untold) / 4:.2f}")
    assert sum(told) / 4 < sum(untold) / 4 - 0.1


def test_a_failed_trial_keeps_its_state(folder: Path) -> None:
    study = SearchStudy.create(small("search.sampler=tpe"), home())
    bad = study.ask()
    study.end(bad.number, Ending.DIVERGED, None, "nan")
    given_up = study.ask()
    study.end(given_up.number, Ending.ABANDONED, None, "abandoned")
    sampler = study._study.sampler
    assert isinstance(sampler, LearningSampler)
    shown = sampler._shown(study._study).get_trials(deepcopy=False)
    assert [trial.state for trial in shown] == [TrialState.PRUNED, TrialState.FAIL]
    assert [trial.state for trial in study.trials()] == [TrialState.FAIL, TrialState.FAIL]


def test_a_failed_trial_is_a_little_worse_than_the_worst() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for values in ([0.5, 9.0], [0.9, 4.0]):
        study.tell(study.ask(), values)
    study.tell(study.ask(), state=TrialState.FAIL)
    sampler = LearningSampler(optuna.samplers.RandomSampler(), lambda _: True)
    failed = sampler._shown(study).get_trials(deepcopy=False)[2]
    assert failed.state == TrialState.COMPLETE
    assert failed.values == pytest.approx([0.46, 9.5])
    assert study.get_trials()[2].state == TrialState.FAIL


def test_quasi_monte_carlo_follows_the_seed_and_does_not_begin_in_a_corner(folder: Path) -> None:
    def drawn(seed: int) -> list[float]:
        study = optuna.create_study()
        spec = small("search.sampler=qmc", f"search.seed={seed}")
        study.sampler = build_sampler(spec, 0, lambda _: False)
        found = []
        for _ in range(9):
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
            found.append(trial.params["x"])
            study.tell(trial, 0.0)
        return found[1:]

    assert drawn(0) == drawn(0) != drawn(1)
    assert 0.0 not in drawn(0)
    assert sorted(int(value * 8) for value in drawn(0)) == list(range(8)), "one in each eighth"


def test_a_budget_has_several_generations() -> None:
    assert [population(trials) for trials in (8, 32, 64, 1000)] == [4, 5, 10, 50]


def test_what_learns_nothing_of_pruned_trials_says_so(folder: Path) -> None:
    assert "sampler gp learns nothing of pruned trials" in sampler_notes(small("search.sampler=gp"))[0]
    assert not sampler_notes(small("search.sampler=gp", "search.pruner=none"))
    assert not sampler_notes(small())


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_wilcoxon_is_refused_for_a_new_search_and_read_from_an_old_one(folder: Path) -> None:
    spec = small("search.pruner=wilcoxon")
    (problem,) = pruner_problems(spec)
    with pytest.raises(SpecError, match="use asha, hyperband, median or none"):
        plan(spec, home())
    assert isinstance(SearchStudy.create(spec, home())._study.pruner, optuna.pruners.WilcoxonPruner)
    assert problem.place == "search.pruner"
