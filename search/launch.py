"""From a spec to a finished search: check, plan, run, resume, stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from search.board import Board, progress_bar
from search.domains import Choice, Domain, Fixed, Range
from search.errors import BadInput, Problem, SpecError
from search.home import LAUNCHED, Home, is_inside
from search.spec import SearchSpec, read_spec
from search.study import Ending, SearchStudy
from search.tracking import Tracker
from search.tuning import Conductor, Room, cluster_ray, local_ray, run_trials
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
        yield f"home: {self.home.root}"
        yield f"MLflow: {spec.tracking.uri}, experiment {spec.tracking.experiment}"
        yield f"cache: {cache_root(spec)}" + ("" if spec.cache.enabled else " (images only)")


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
    if is_inside():
        cluster_ray()
        Room(spec)  # what no node could ever give is said before anything is written
    home.make()
    with home.lock(), progress_bar(console) as progress:
        planned = plan(spec, home, progress)
        temporary = home.spec.with_suffix(".tmp")
        temporary.write_text(spec.to_yaml(), encoding="utf-8")
        os.replace(temporary, home.spec)
        if is_inside():
            console.print(LAUNCHED)
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
        with progress_bar(console) as progress:
            plan(spec, home, progress)
        return run_study(spec, home, console, study, seconds=seconds)


def abandon(home: Home) -> int:
    """Ends for good what a stopped search left running; returns how many trials."""
    spec = read_spec(home.spec)
    with home.lock():
        study = SearchStudy.open(spec, home)
        tracker = Tracker(spec, home, study)
        tracker.replay()
        left = study.interrupted()
        for number in left:
            tracker.trial_started(study.continue_trial(number))
            best = study.best_epoch(number)
            tracker.trial_ended(number, Ending.ABANDONED, best, "abandoned")
            study.end(number, Ending.ABANDONED, best, "abandoned")
        tracker.close("ABANDONED")
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
    """Runs the study's trials until its budget is met, its time is over, or somebody stops it."""
    with ExitStack() as stack:
        stack.enter_context(_driver_log(home))
        if is_inside():
            cluster_ray()
        else:
            stack.enter_context(local_ray())
        stopped = stack.enter_context(_stop_signals(console))  # after Ray, which sets its own
        room = Room(spec)
        tracker = Tracker(spec, home, study)
        tracker.replay()
        began = time.time()
        if seconds is None and spec.search.time is not None:
            seconds = max(0.0, spec.search.time - study.seconds_spent)
        until = None if seconds is None else began + seconds
        board = Board(spec, console, counts=study.progress, best=study.leader, until=until)

        def should_stop() -> bool:
            return stopped.is_set() or (until is not None and time.time() >= until)

        conductor = Conductor(
            study,
            home,
            trial_config(spec),
            room=room,
            observers=(tracker, board),
            run_of=tracker.run_of,
            should_stop=should_stop,
        )
        with board.live():
            run_trials(conductor, trainable=trainable)
        study.seconds_spent += time.time() - began
        outcome = Outcome.FINISHED
        if study.progress().left:
            outcome = Outcome.STOPPED if stopped.is_set() else Outcome.TIME_OVER
        _finish(study, tracker, outcome, console)
    return outcome


def _finish(study: SearchStudy, tracker: Tracker, outcome: Outcome, console: Console) -> None:
    leader = study.leader()
    if leader is not None:
        tracker.summarize({"best_trial": leader[0], "best_value": f"{leader[1]:.6f}"})
    if not tracker.close(outcome.value):
        console.print(
            f"MLflow has not taken everything; the rest is kept in {tracker.outbox} and sent by "
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
        "cache_dir": spec.cache.dir,
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
