"""The finalists: a search's best trials, run again on fresh seeds, and the winner among them.

The best of many noisy values is too good (the winner's curse), so the search's own value does not say
which of its best trials to trust. The top completed trials by validation value, one of each set of
hyperparameters, are run again with all their epochs and no pruning, each on the same fresh seeds. Each run is
scored once on the test split, with the model that it keeps; nothing else looks at that
split. The finalist with the best mean validation value wins; test scores are told, and choose nothing.

- A run that failed has no value. A finalist with one ranks behind all without.
- The interval, at 95 %, is one for new images: the noise of the seeds and that of drawing the images are both
  in it (`intervals`), and only shares of right answers have one. The search chose on the validation images,
  so the test split's interval is the one to quote.
- A winner that does not beat always naming the most frequent class is told as nothing found: by an exact
  binomial test on the test images, at 5 % divided by the finalists, or where there are none on the validation
  images, divided by all trials.
- Two finalists tie where a paired t-test over the seeds, two-sided, does not tell the other from the
  winner at 5 %, divided by the number of comparisons with the winner (Bonferroni). Of the runs of two
  finalists those on the same seed are a pair.
- The model that stands for a finalist is that of its run on the first seed, which no value chose.

The runs are an Optuna study beside the search's own, so they end, resume and fail as trials do. The
spec's `time` bounds the search and not its finalists, which begin when the budget of trials is met.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from search.console import duration
from search.home import Home
from search.study.intervals import LEVEL as _LEVEL
from search.study.intervals import Sample, beats_majority, is_share, of_new_images
from search.study.planned import PlannedStudy
from search.study.search_study import SearchStudy
from search.study.trials import TrialRecord
from trainables.record import TEST_METRICS
from trainables.seeds import derived_seed
from trainables.training.hparams import HParams

__all__ = [
    "Finalist",
    "FinalistStudy",
    "Summary",
    "candidates",
    "differ",
    "distinct",
    "finalists_seconds",
    "interval_text",
    "mean_text",
    "nothing_told",
    "standings",
    "summarized",
    "table",
    "text",
    "verdict",
]

_SHOWN = ("test_accuracy", "test_macro_f1")


def candidates(search: SearchStudy) -> dict[int, HParams]:
    """The trials that a search sends to its finalists, best first, with their hyperparameters."""
    wanted = search.spec.search.finalists
    return distinct(search, wanted.top) if wanted else {}


def distinct(search: SearchStudy, count: int) -> dict[int, HParams]:
    """The best trials of a search, one of each set of hyperparameters, best first, with these."""
    chosen: dict[int, HParams] = {}
    for trial in search.ranked():
        if len(chosen) == count:
            break
        begun = search.begun(trial.number)
        assert begun is not None, f"trial {trial.number} completed and was never begun"
        if replace(begun.hparams, seed=0) not in (replace(each, seed=0) for each in chosen.values()):
            chosen[trial.number] = begun.hparams
    return chosen


def finalists_seconds(search: SearchStudy) -> float:
    """What the finalists of a search are going to take, one after the other; 0 where that is unknown."""
    wanted = search.spec.search.finalists
    return len(candidates(search)) * wanted.seeds * _run_seconds(search) if wanted else 0.0


def _run_seconds(search: SearchStudy) -> float:
    """What one of their runs takes, judged by the trials that they repeat."""
    best = {record.number: record.best or {} for record in search.records()}
    seconds = [
        hparams.epochs * best[number].get("epoch_seconds", 0.0)
        for number, hparams in candidates(search).items()
    ]
    return statistics.fmean(seconds) if seconds else 0.0


class FinalistStudy(PlannedStudy):
    """The finalists' runs; an entry has the trial that it repeats, and which of its repeats it is."""

    role = "finalist"
    part = "finalists"

    @classmethod
    def begin(cls, search: SearchStudy, home: Home) -> Self:
        """The study with every run that the search's finalists need, and those of earlier ones."""
        study = cls.begun_in(search, home)
        wanted, root = search.spec.search.finalists, search.spec.search.seed
        assert wanted is not None, "the spec asks for no finalists"
        known = {(entry["of"], entry["repeat"]) for entry in study.plan}
        study.extend(
            [
                {
                    "of": number,
                    "repeat": repeat,
                    "hparams": {**hparams.to_dict(), "seed": derived_seed(root, "finalist", repeat)},
                }
                for repeat in range(wanted.seeds)
                for number, hparams in candidates(search).items()
                if (number, repeat) not in known
            ]
        )
        return study

    def cost(self, search: SearchStudy, workers: int) -> str:
        """What the runs that are left will take, judged by the trials that they repeat."""
        chosen, left = candidates(search), self.progress().left
        seconds = left * _run_seconds(search) / min(workers, max(1, left))
        return (
            f"finalists: the best {len(chosen)} trials ({', '.join(map(str, chosen))}) again on fresh seeds; "
            f"{left} of {self.budget} runs to go, about {duration(seconds)}"
        )

    def latest(self) -> dict[tuple[int, int], TrialRecord]:
        """What was begun last for each (trial of the search, repeat)."""
        plan = self.plan
        return {
            (plan[record.number]["of"], plan[record.number]["repeat"]): record for record in self.records()
        }

    def label(self, number: int) -> str:
        entry = self.plan[number]
        return f"{entry['of']}, seed {entry['repeat'] + 1}"


# What the runs say


@dataclass(frozen=True)
class Summary:
    """Values with their mean, sample standard deviation and 95 % interval; None where too few, or unknown."""

    values: tuple[float, ...]
    mean: float | None
    std: float | None
    interval: tuple[float, float] | None


def summarized(values: Sequence[float], images: int | None = None) -> Summary:
    """The summary of independent values of the same thing.

    Args:
        values: in each run.
        images: of which the values are shares; None: they are none, and have no interval.
    """
    if len(values) < 2:
        return Summary(tuple(values), values[0] if values else None, None, None)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    interval = None if images is None else of_new_images(values, images)
    return Summary(tuple(values), mean, std, interval)


def differ(one: Mapping[int, float], other: Mapping[int, float], comparisons: int = 1) -> bool:
    """Whether a paired t-test tells two finalists apart, by their values of each repeat.

    Args:
        one: value by repeat; only repeats that both have count, and fewer than two tell nothing.
        other: the same of the other finalist.
        comparisons: how many tests share the level of 5 %.
    """
    pairs = [(one[repeat], other[repeat]) for repeat in sorted(one.keys() & other.keys())]
    differences = {left - right for left, right in pairs}
    if len(pairs) < 2:
        return False
    if len(differences) == 1:
        return False  # as of heads that are solved for: their seeds change nothing, and so tell nothing
    from scipy import stats

    return bool(stats.ttest_rel(*zip(*pairs, strict=True)).pvalue < _LEVEL / comparisons)


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A trial of the search and its fresh runs.

    Attributes:
        trial: its number in the search.
        run: the number of its completed run on the first seed; None if none completed.
        failed: how many of its runs failed.
        validation: the objective's values.
        test: the test split's scores by name; empty where it has no images.
        ties_with_best: whether the seeds do not tell it from the winner; of the winner itself False.
        chance: the share of the most frequent class, where it does not beat that; else None.
    """

    trial: int
    run: int | None
    failed: int
    validation: Summary
    test: Mapping[str, Summary]
    ties_with_best: bool
    chance: float | None = None

    def row(self) -> dict[str, Any]:
        """The same in plain values: the validation summary, and `test` with a summary a score."""
        return {
            "trial": self.trial,
            **vars(self.validation),
            "failed": self.failed,
            "test": {name: vars(summary) for name, summary in self.test.items()},
            "ties_with_best": self.ties_with_best,
            "chance": self.chance,
        }


def standings(search: SearchStudy, study: FinalistStudy | None) -> list[Finalist]:
    """The finalists, the winner first; empty until all their runs have ended, or if none completed.

    Args:
        search: the search's own study.
        study: that of its finalists; None where it has not come to them.
    """
    wanted, chosen = search.spec.search.finalists, candidates(search)
    if study is None or wanted is None or not chosen or not search.is_over:
        return []
    latest = study.latest()
    pairs = [(number, repeat) for number in chosen for repeat in range(wanted.seeds)]
    if any(pair not in latest or latest[pair].state == "RUNNING" for pair in pairs):
        return []
    runs = {
        number: {
            repeat: latest[number, repeat]
            for repeat in range(wanted.seeds)
            if latest[number, repeat].state == "COMPLETE"
        }
        for number in chosen
    }
    ((metric, direction),) = search.spec.search.objective.items()
    ranked = _ranked(runs, wanted.seeds, -1 if direction == "maximize" else 1, metric, search.samples)
    compared = search.progress().counted
    told = [
        replace(each, chance=_chance(each, metric, search.samples, len(chosen), compared)) for each in ranked
    ]
    return told if told[0].run is not None else []


def _chance(
    finalist: Finalist, metric: str, samples: Mapping[str, Sample], finalists: int, trials: int
) -> float | None:
    """The share of the most frequent class, where a finalist does not beat that as far as images can tell."""
    accuracy, test = finalist.test.get("test_accuracy"), samples.get("test")
    if accuracy is not None and accuracy.mean is not None and test is not None:
        return None if beats_majority(accuracy.mean, test, finalists) else test.majority
    mean, validation = finalist.validation.mean, samples.get("validation")
    if metric != "val_accuracy" or mean is None or validation is None:
        return None
    return None if beats_majority(mean, validation, trials) else validation.majority


def _ranked(
    runs: Mapping[int, Mapping[int, TrialRecord]],
    seeds: int,
    sign: int,
    metric: str,
    samples: Mapping[str, Sample],
) -> Iterator[Finalist]:
    """The finalists of completed runs by trial and repeat, best first; `sign` makes less better."""
    values = {
        number: {repeat: _value(record) for repeat, record in mine.items()} for number, mine in runs.items()
    }

    def rank(number: int) -> tuple[bool, float, int]:
        mine = values[number].values()
        return len(mine) < seeds, sign * statistics.fmean(mine) if mine else math.inf, number

    order = sorted(runs, key=rank)
    for number in order:
        mine = runs[number]
        first = min(mine, default=None)
        scored = [record.best or {} for record in mine.values()]
        yield Finalist(
            trial=number,
            run=None if first is None else mine[first].number,
            failed=seeds - len(mine),
            validation=summarized(list(values[number].values()), _images(metric, samples.get("validation"))),
            test={
                name: summarized([each[name] for each in scored], _images(name, samples.get("test")))
                for name in TEST_METRICS
                if scored and all(name in each for each in scored)
            },
            ties_with_best=number != order[0]
            and not differ(values[order[0]], values[number], comparisons=len(order) - 1),
        )


def _images(metric: str, sample: Sample | None) -> int | None:
    """The images whose drawing a metric's interval can take into account."""
    return sample.count if sample is not None and is_share(metric) else None


def _value(record: TrialRecord) -> float:
    assert record.value is not None, f"run {record.number} completed without a value"
    return record.value


# In words


def nothing_told(chance: float) -> str:
    """Why nothing was found, after the name of what is the best of it."""
    return f"does not beat always naming the most frequent class, which is right on a share of {chance:.4f}"


def verdict(finalists: Sequence[Finalist]) -> str:
    """How sure the winner, the first of the finalists, is."""
    winner, others = finalists[0], finalists[1:]
    if winner.chance is not None:
        return f"nothing was found: trial {winner.trial} has the best mean, but {nothing_told(winner.chance)}"
    ties = [str(each.trial) for each in others if each.ties_with_best]
    if not others:
        return f"trial {winner.trial} was the only finalist"
    seeds = len(winner.validation.values)
    if ties:
        noun = "trial" if len(ties) == 1 else "trials"
        verb = "ties" if len(ties) == 1 else "tie"
        return (
            f"trial {winner.trial} has the best mean, but {noun} {', '.join(ties)} {verb} with it: "
            f"{seeds} seeds do not tell them apart"
        )
    return f"trial {winner.trial} is better than every other finalist, as far as {seeds} seeds can tell"


def table(finalists: Sequence[Finalist], metric: str) -> Table:
    """The finalists for a person: means and sample standard deviations over the fresh seeds."""
    tested = [name for name in _SHOWN if all(name in each.test for each in finalists)]
    shown = Table(box=None, padding=(0, 1, 0, 0))
    titles = [title for name in tested for title in (name, "95 % interval")]
    for title in ("trial", f"{metric} (selected)", "95 % interval", *titles, ""):
        shown.add_column(title, no_wrap=True)
    for place, each in enumerate(finalists):
        notes = ["winner"] if place == 0 else ["tie"] if each.ties_with_best else []
        notes += [f"{each.failed} failed"] if each.failed else []
        summaries = [each.validation, *(each.test[name] for name in tested)]
        scores = [text for summary in summaries for text in (mean_text(summary), interval_text(summary))]
        shown.add_row(str(each.trial), *scores, ", ".join(notes))
    return shown


def interval_text(summary: Summary) -> str:
    """The interval of a summary, if it has one."""
    return "" if summary.interval is None else "{:.4f}-{:.4f}".format(*summary.interval)


def mean_text(summary: Summary) -> str:
    """The mean of a summary and its sample standard deviation, as far as it has them."""
    if summary.mean is None:
        return ""
    return f"{summary.mean:.4f}" + ("" if summary.std is None else f" ± {summary.std:.4f}")


def text(finalists: Sequence[Finalist], metric: str) -> str:
    """The table and the verdict as a file holds them."""
    output = io.StringIO()
    console = Console(file=output, width=160, color_system=None)
    console.print(table(finalists, metric))
    console.print(verdict(finalists), markup=False, highlight=False, soft_wrap=True)
    return output.getvalue()
