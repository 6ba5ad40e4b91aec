"""From a spec to a finished search: check, plan, run, resume, stop.

What imports torch is imported where it is needed: Ray and its workers start meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any

from rich.console import Console

from search.board import Board, progress_bar
from search.errors import BadInput
from search.home import Home
from search.spec import SearchSpec, read_spec
from search.study import Ending, SearchStudy
from search.tracking import Tracker
from search.tuning import Conductor, Trainable, capacity, local_ray, run_trials, warm_workers

__all__ = ["Outcome", "abandon", "launch", "resume", "run_study"]

log = logging.getLogger(__name__)


class Outcome(Enum):
    """How a run of a search ended."""

    FINISHED = "FINISHED"
    STOPPED = "STOPPED"
    TIME_OVER = "TIME_OVER"


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
    with home.lock(), local_ray():
        warm_workers(spec)
        with progress_bar(console) as progress:
            from search.planning import plan

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
    with home.lock(), local_ray():
        warm_workers(spec)
        study = SearchStudy.create(spec, home)
        if trials is not None:
            study.budget = trials
        if retry_failed:
            study.retry_failed()
        with progress_bar(console) as progress:
            from search.planning import plan

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
    trainable: Trainable | None = None,
) -> Outcome:
    """Runs the study's trials until its budget is met, its time is over, or somebody stops it.

    Args:
        spec, home, study: the search.
        console: where to show it.
        seconds: how long from now; None: what is left of the spec's time.
        trainable: None: `ImageTransfer`.
    """
    from search.planning import trial_config

    with ExitStack() as stack:
        stack.enter_context(_driver_log(home))
        tracker = Tracker(spec, home, study)
        stack.callback(tracker.abort)
        stack.enter_context(local_ray())
        stopped = stack.enter_context(_stop_signals(console))  # after Ray, which sets its own
        limit = min(capacity(spec), spec.resources.concurrency or 2**31)
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
            limit=limit,
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
