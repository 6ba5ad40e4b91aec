"""From a spec to a finished search: check, plan, run, resume, stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from search.board import Board, progress_bar
from search.domains import Choice, Domain, Fixed, Range
from search.errors import BadInput, Problem, SpecError
from search.finalists import FinalistStudy, candidates, standings, text, verdict
from search.home import Home
from search.spec import SearchSpec, read_spec
from search.study import Ending, SearchStudy
from search.tracking import Tracker
from search.tuning import Conductor, capacity, local_ray, run_trials
from trainables import backbones
from trainables.cache import default_root
from trainables.data import DataError, ImageData, load
from trainables.hparams import HParams
from trainables.image_transfer import ImageTransfer
from trainables.loop import Monitor, Settings
from trainables.model import build_model, unfreeze

__all__ = ["Outcome", "Plan", "abandon", "launch", "plan", "resume", "run_study"]

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


class Outcome(Enum):
    """How a run of a search ended."""

    FINISHED = "FINISHED"
    STOPPED = "STOPPED"
    TIME_OVER = "TIME_OVER"


@dataclass(frozen=True)
class Plan:
    """What a spec would run, all checked.

    Attributes:
        spec: as checked.
        home: where it would be written.
        data: what was found.
        trainable: trained and all parameters, by (backbone, weights, strategy).
    """

    spec: SearchSpec
    home: Home
    data: ImageData
    trainable: Mapping[tuple[str, str, str], tuple[int, int]]

    def lines(self) -> Iterator[str]:
        """The plan for a person."""
        spec = self.spec
        yield f"search {spec.name}"
        yield from (f"  {line}" for line in self.data.report.lines())
        yield "space"
        for name, domain in spec.space.items():
            yield f"  {name}: {_described(domain)}"
        yield "parameters trained"
        for (name, weights, strategy), (trained, every) in self.trainable.items():
            label = name if weights == "pretrained" else f"{name} ({weights})"
            yield f"  {label}, {strategy}: {trained:,} of {every:,}"
        time_limit = f", at most {spec.search.time:g} s" if spec.search.time else ""
        yield (
            f"{spec.search.trials} trials of up to {spec.search.max_epochs} epochs{time_limit}; "
            f"sampler {spec.search.sampler}, pruner {spec.search.pruner}, "
            f"a trial takes cpu {spec.resources.cpu:g}, gpu {spec.resources.gpu:g}"
        )
        if spec.search.finalists:
            yield self._finalists()
        yield f"home: {self.home.root}"
        yield f"MLflow: {spec.tracking.uri}, experiment {spec.tracking.experiment}"
        yield f"cache: {cache_root(spec)}" + ("" if spec.cache.enabled else " (images only)")

    def _finalists(self) -> str:
        search = self.spec.search
        assert search.finalists is not None
        runs = min(search.finalists.top, search.trials) * search.finalists.seeds
        images = len(self.data.splits["test"])
        scored = f"each scored once on the {images:,} test images" if images else "no test images to score"
        return (
            f"finalists: then the best {search.finalists.top} again on {search.finalists.seeds} fresh seeds, "
            f"{runs} runs of up to {search.max_epochs} epochs, unpruned: {runs * search.max_epochs:,} epochs "
            f"beside the search's {search.trials * search.max_epochs:,} at most; {scored}"
        )


def cache_root(spec: SearchSpec) -> Path:
    """Root of the node's cache."""
    return Path(spec.cache.dir) if spec.cache.dir else default_root()


def plan(spec: SearchSpec, home: Home, progress: Progress | None = None) -> Plan:
    """Checks what only the machine can tell: backbones, weights, data.

    Raises:
        SpecError: with everything that would fail in trials.
    """
    problems: list[Problem] = []
    data = None
    try:
        data = load(spec.data.config, cache_dir=cache_root(spec), progress=progress)
    except DataError as error:
        problems.append(Problem(place="data", given=None, message=str(error)))
    classes = len(data.classes) if data else 2
    trainable: dict[tuple[str, str, str], tuple[int, int]] = {}
    for name, weights, size in product(*map(values_of, map(spec.domain, _BUILDS))):
        try:
            backbones.check(name, weights)
            backbone = backbones.build(name, weights=weights, image_size=size)
        except backbones.BackboneError as error:
            problem = Problem(place="space.backbone", given=repr(name), message=str(error))
            if problem not in problems:
                problems.append(problem)
            continue
        for strategy in values_of(spec.domain("strategy")):
            key = (name, weights, strategy)
            trainable.setdefault(key, _parameters(backbone, strategy, spec, classes))
    if problems or data is None:
        raise SpecError(f"search {spec.name}", problems)
    return Plan(spec, home, data, trainable)


_BUILDS = ("backbone", "weights", "image_size")


def values_of(domain: Domain) -> tuple[Any, ...]:
    """The values that a knob can take, of a range its ends."""
    match domain:
        case Fixed(value=value):
            return (value,)
        case Choice(values=values):
            return values
        case Range(low=low, high=high):
            return (int(low), int(high))


def _parameters(
    backbone: backbones.Backbone, strategy: str, spec: SearchSpec, classes: int
) -> tuple[int, int]:
    freeze = values_of(spec.domain("freeze"))[0]
    hparams = HParams(backbone=backbone.name, strategy=strategy, freeze=freeze)
    model = build_model(backbone, hparams, classes)
    unfreeze(model, backbone.groups, hparams, "head" if strategy == "probe" else "trunk")
    every = [parameter.numel() for parameter in model.parameters()]
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(every)


def _described(domain: Domain) -> str:
    match domain:
        case Fixed(value=value):
            return f"{value} (fixed)"
        case Choice(values=values):
            return "one of " + ", ".join(map(str, values))
        case Range() as r:
            text = f"{r.low:g} to {r.high:g}" + (", log" if r.log else "")
            text += f", in steps of {r.step:g}" if r.step else ""
            return text + "".join(f", or {other}" for other in r.alternatives)


def launch(spec: SearchSpec, home: Home, console: Console) -> Outcome:
    """Runs a new search to its end.

    Raises:
        BadInput: if the search exists, or another driver runs it; nothing is changed then.
        SpecError: if the spec cannot run on this machine.
    """
    if home.spec.exists():
        driver = home.driver()
        if driver:
            with home.lock():  # says who
                pass
        raise BadInput(
            f"the search {spec.name!r} was launched before, in {home.root}; go on with "
            f"`transfer-search resume {spec.name}`, or give this one another name with --name"
        )
    home.make()
    with home.lock(), progress_bar(console) as progress:
        planned = plan(spec, home, progress)
        temporary = home.spec.with_suffix(".tmp")
        temporary.write_text(spec.to_yaml(), encoding="utf-8")
        os.replace(temporary, home.spec)
        for line in planned.data.report.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return run_study(spec, home, console, SearchStudy.create(spec, home))


def resume(
    home: Home,
    console: Console,
    *,
    trials: int | None = None,
    seconds: float | None = None,
    retry_failed: bool = False,
) -> Outcome:
    """Goes on with a search, from its spec and its study alone.

    Args:
        home: of a search that was launched.
        console: where to show it.
        trials: a new budget of trials; None: the one it has.
        seconds: more time from now; None: what is left of the spec's.
        retry_failed: whether failed trials are run again, as new trials beyond the budget.
    """
    spec = read_spec(home.spec)
    with home.lock():
        study = SearchStudy.create(spec, home)
        if trials is not None:
            study.budget = trials
        if retry_failed:
            study.retry_failed()
            finalists = FinalistStudy.within(study, home)
            if finalists is not None:
                finalists.retry_failed()
        with progress_bar(console) as progress:
            plan(spec, home, progress)
        return run_study(spec, home, console, study, seconds=seconds)


def abandon(home: Home) -> int:
    """Ends for good what a stopped search, or its finalists, left running; returns how many trials."""
    spec = read_spec(home.spec)
    with home.lock():
        study = SearchStudy.open(spec, home)
        tracker = Tracker(spec, home, study)
        given_up = _given_up(study, tracker)
        finalists = FinalistStudy.within(study, home)
        if finalists is not None:
            inner = Tracker(spec, home.finalists, finalists, within=tracker)
            given_up += _given_up(finalists, inner)
            inner.close("ABANDONED")
        tracker.close("ABANDONED")
        return given_up


def _given_up(study: SearchStudy, tracker: Tracker) -> int:
    tracker.replay()
    left = study.interrupted()
    for number in left:
        tracker.trial_started(study.continue_trial(number))
        best = study.best_epoch(number)
        tracker.trial_ended(number, Ending.ABANDONED, best, "abandoned")
        study.end(number, Ending.ABANDONED, best, "abandoned")
    return len(left)


def run_study(
    spec: SearchSpec,
    home: Home,
    console: Console,
    study: SearchStudy,
    *,
    seconds: float | None = None,
    trainable: type[ImageTransfer] = ImageTransfer,
) -> Outcome:
    """Runs the study's trials until its budget is met, its time is over, or somebody stops it.

    A search whose budget is met goes on to its finalists, if it has any; its time does not bound them.
    """
    with ExitStack() as stack:
        stack.enter_context(_driver_log(home))
        stack.enter_context(local_ray())
        stopped = stack.enter_context(_stop_signals(console))  # after Ray, which sets its own
        run = partial(_run_trials, console=console, stopped=stopped, trainable=trainable)
        trackers = [Tracker(spec, home, study)]
        if seconds is None and spec.search.time is not None:
            seconds = max(0.0, spec.search.time - study.seconds_spent)
        outcome = run(study, home, trackers[0], trial_config(spec), seconds=seconds)
        if outcome is Outcome.FINISHED and candidates(study):
            finalists = FinalistStudy.begin(study, home)
            home.finalists.make()
            trackers.append(Tracker(spec, home.finalists, finalists, within=trackers[0]))
            told = finalists.cost(study, _at_once(spec))
            console.print(told, markup=False, highlight=False, soft_wrap=True)
            config = {**trial_config(spec), "score_test": True}
            outcome = run(finalists, home.finalists, trackers[1], config)
        _finish(study, home, trackers, outcome, console)
    return outcome


def _run_trials(
    study: SearchStudy,
    home: Home,
    tracker: Tracker,
    config: Mapping[str, Any],
    *,
    console: Console,
    stopped: threading.Event,
    trainable: type[ImageTransfer],
    seconds: float | None = None,
) -> Outcome:
    """Runs one study's trials until its budget is met, `seconds` are over, or somebody stops it."""
    spec, began = study.spec, time.time()
    tracker.replay()
    until = None if seconds is None else began + seconds
    board = Board(
        spec,
        console,
        counts=study.progress,
        best=study.leader,
        role=study.role,
        label=study.label,
        until=until,
    )
    conductor = Conductor(
        study,
        home,
        config,
        limit=_at_once(spec),
        observers=(tracker, board),
        run_of=tracker.run_of,
        should_stop=lambda: stopped.is_set() or (until is not None and time.time() >= until),
    )
    with board.live():
        run_trials(conductor, trainable=trainable)
    study.seconds_spent += time.time() - began
    progress = study.progress()
    if not progress.left and not progress.running:
        return Outcome.FINISHED
    return Outcome.STOPPED if stopped.is_set() else Outcome.TIME_OVER


def _at_once(spec: SearchSpec) -> int:
    """How many trials run at a time. Ray must be running."""
    return min(capacity(spec), spec.resources.concurrency or 2**31)


def _finish(
    study: SearchStudy, home: Home, trackers: Sequence[Tracker], outcome: Outcome, console: Console
) -> None:
    """Tells MLflow how the search ended; `trackers` begin with the search's own."""
    for inner in trackers[1:]:
        inner.close(outcome.value)
    tracker, leader = trackers[0], study.leader()
    if leader is not None:
        tracker.summarize({"best_trial": leader[0], "best_value": f"{leader[1]:.6f}"})
    rows = [finalist.row() for finalist in standings(study, home)]
    if rows:
        metric = next(iter(study.spec.search.objective))
        winner = {name: summary["mean"] for name, summary in rows[0]["test"].items()}
        tracker.summarize(
            {"winner": rows[0]["trial"], "verdict": verdict(rows)},
            metrics={f"winner_{metric}": rows[0]["mean"], **winner},
            texts={"finalists.txt": text(rows, metric)},
        )
    tracker.close(outcome.value)
    for left in (each.outbox for each in trackers if any(each.outbox.glob("*.jsonl"))):
        console.print(
            f"MLflow has not taken everything; the rest is kept in {left} and sent by "
            f"`transfer-search doctor {study.spec.name} --repair`",
            style="yellow",
        )


def trial_config(spec: SearchSpec) -> dict[str, Any]:
    """What is the same in the `TrialConfig` of every trial."""
    metric, direction = next(iter(spec.search.objective.items()))
    settings = Settings(
        monitor=Monitor(metric=metric, maximize=direction == "maximize"),
        views=spec.cache.views if spec.cache.enabled else None,
        orientation_matters=spec.data.orientation_matters,
        device="cuda" if spec.resources.gpu else "cpu",
        threads=max(1, int(spec.resources.cpu)),
    )
    return {
        "sampled": [name for name, domain in spec.space.items() if domain.sampled],
        "data": spec.data.config.to_dict(),
        "settings": {**vars(settings), "monitor": vars(settings.monitor)},
        "cache_dir": str(cache_root(spec)),
        "cache_bytes": int(spec.cache.max_gb * 2**30) if spec.cache.enabled else 0,
    }


@contextmanager
def _stop_signals(console: Console) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set: the search then ends in order and can be resumed."""
    stopped = threading.Event()

    def stop(signum: int, frame: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        console.print("stopping; what runs can be resumed (once more to quit at once)", style="yellow")

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _driver_log(home: Home) -> Iterator[None]:
    """Sends log records to the home's `driver.log` while the block runs."""
    handler = logging.FileHandler(home.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {home.name} %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    for name in ("search", "trainables"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
