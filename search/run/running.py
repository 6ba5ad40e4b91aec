"""A search that runs: its trials, its finalists, and what is made of the winner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from importlib import import_module
from typing import Any

from rich.console import Console

from search.errors import AllFailedAlike
from search.home import Home, is_inside
from search.run.board import Board
from search.run.budget import Budget
from search.run.capacity import Capacity
from search.run.conductor import Conductor
from search.run.driver import driver_log
from search.run.failures import Alike
from search.run.ray_session import cluster_ray, local_ray
from search.run.room import Room
from search.run.signals import interruptible, stop_signals
from search.run.tuning import Trainable, run_trials
from search.search import Search
from search.study.finalists import candidates
from search.study.refit import Winner, takes_all_cores
from search.study.results import REFIT_ON
from search.study.search_study import SearchStudy
from search.tracking.line import Sender
from search.tracking.overview import overview
from search.tracking.tracker import Tracker

__all__ = ["Outcome", "run_search", "started_ray", "tell"]


class Outcome(Enum):
    """How a run of a search ended."""

    FINISHED = "FINISHED"
    STOPPED = "STOPPED"
    TIME_OVER = "TIME_OVER"


def tell(console: Console, text: str) -> None:
    """Tells a phase of a search as it begins."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _import_all() -> None:
    """Imports what a launch needs soon."""
    for name in ("search.run.planning", "trainables.image_transfer"):
        import_module(name)


@contextmanager
def started_ray(*, preloaded: bool = False) -> Iterator[None]:
    """The cluster's Ray where this is a job on one, else a Ray of this process's own."""
    if is_inside():
        cluster_ray()
        yield
        return
    if preloaded:  # here too meanwhile, since the start of Ray is mostly waiting
        threading.Thread(target=_import_all, daemon=True).start()
    with interruptible(), local_ray(preloaded=preloaded):
        yield


def run_search(
    search: Search,
    console: Console,
    *,
    seconds: float | None = None,
    device_hours: float | None = None,
    trainable: Trainable | None = None,
    sender: Sender | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Outcome:
    """Runs a search's trials until its budget is met, its time is over, or somebody stops it.

    A search whose budget is met, or whose time is over, goes on to its finalists, if it has any, and to the
    winner's refit, or those of an ensemble's members. As much of its time as these are expected to take is
    kept for them; they end, also where they take more. A single refit that trains a backbone has the cores of
    all trials.

    Args:
        search: whose driver this process is.
        console: where to show it.
        seconds: how long from now; None: what is left of the spec's time.
        device_hours: the same of the spec's device-hours.
        trainable: None: `ImageTransfer`.
        sender: one that is ready for the search; None: starts one.
        begin: what to do first of all that lasts, once nothing can refuse the search any more.
    """
    from search.run.ensembling import make_ensemble
    from search.run.planning import trial_config

    spec, home, study = search.spec, search.home, search.study
    with ExitStack() as stack:
        stack.enter_context(driver_log(home))
        stack.callback(study.settle, home)
        trackers = [Tracker(spec, home, study, sender=sender)]
        stack.callback(trackers[0].abort)
        stack.enter_context(started_ray())
        capacity = Capacity(spec)  # refuses what no node could ever give
        passes = 1 if spec.resources.gpu else capacity.on_one_node
        trackers[0].open()
        begin()
        trackers[0].describe_data()
        stopped = stack.enter_context(stop_signals(console))  # after Ray, which sets its own
        run = partial(_run_trials, console=console, stopped=stopped, trainable=trainable)
        if seconds is None and spec.search.time is not None:
            seconds = max(0.0, spec.search.time - study.seconds_spent)
        if device_hours is None and spec.search.device_hours is not None:
            device_hours = max(0.0, spec.search.device_hours - study.device_seconds / 3600)
        left = study.progress().left + study.progress().running
        tell(console, f"{spec.name}: {left} trials to go, of up to {spec.search.max_epochs} epochs")
        until = None if device_hours is None else 0.0  # of hours, what is kept is for the winner's
        if seconds is not None:
            until = time.monotonic() + seconds
        try:
            config = trial_config(spec, rule=study.rule, passes=passes)
            outcome = run(study, home, trackers[0], config, seconds=seconds, hours=device_hours)
        except AllFailedAlike:
            _finish(search, trackers, Outcome.STOPPED, console)
            raise

        def run_part(part: SearchStudy, place: Home, told: str, **config: Any) -> Outcome:
            trackers.append(Tracker(spec, place, part, within=trackers[0]))
            stack.callback(trackers[-1].abort)
            tell(console, told)
            settled = trial_config(part.spec, passes=passes, **config)
            ended = run(part, place, trackers[-1], {**settled, "score_test": True})
            trackers[-1].learn_runs()
            return ended

        if outcome is not Outcome.STOPPED and candidates(study):
            finalists = search.begin_finalists()
            told = finalists.cost(study, Capacity(spec).at_once)
            if run_part(finalists, home.finalists, told, rule=study.rule) is Outcome.STOPPED:
                outcome = Outcome.STOPPED

        def refit(winners: Sequence[Winner]) -> bool:
            """Whether the refits of these came to their end; one that trains a backbone has all cores."""
            wide = len(winners) == 1 and takes_all_cores(spec, winners[0].hparams)
            begun = search.begin_refits(winners, Capacity(spec).alone if wide else spec.resources)
            which = ", ".join(str(each.trial) for each in winners)
            of = f"of trial {which}" if len(winners) == 1 else f"of each of the trials {which}"
            told = f"refit: the configuration {of} on training and validation {spec.items}"
            return run_part(begun, home.refit, told, trained_on=REFIT_ON) is not Outcome.STOPPED

        if outcome is not Outcome.STOPPED and search.lacks_ensemble:
            settled = trial_config(spec, rule=study.rule)
            at_once = Capacity(spec).at_once
            made = make_ensemble(search, settled, trackers[0], console, refit, at_once=at_once, until=until)
            if made is not None:
                trackers.append(made)
                stack.callback(made.abort)
            elif search.lacks_ensemble:  # its members' refits were stopped
                outcome = Outcome.STOPPED
        winner = search.to_refit if outcome is not Outcome.STOPPED else None
        if winner is not None and not refit([winner]):
            outcome = Outcome.STOPPED
        _finish(search, trackers, outcome, console)
    return outcome


def _run_trials(
    study: SearchStudy,
    home: Home,
    tracker: Tracker,
    config: Mapping[str, Any],
    *,
    console: Console,
    stopped: threading.Event,
    trainable: Trainable | None,
    seconds: float | None = None,
    hours: float | None = None,
) -> Outcome:
    """Runs one study's trials until their number is met, their time is over, or somebody stops it."""
    from search.run.planning import cache_root

    say = partial(console.print, style="yellow", markup=False, soft_wrap=True)
    study.wait_for_storage(say)
    tracker.replay()
    spec = study.spec

    def tell_overview() -> None:
        if is_own:  # else the search is over, and its run says so
            tracker.summarize(overview(study))

    capacity = Capacity(spec)
    is_own = study.role == "trial"
    budget = Budget(study, seconds, hours, at_once=capacity.at_once if is_own else 0, also=tell_overview)
    board = Board(
        spec,
        console,
        counts=study.progress,
        best=study.leader,
        role=study.role,
        label=study.label,
        doing=home.doing,
        until=budget.until,
    )

    def should_stop() -> bool:
        return not budget.goes_on(conductor.running) or stopped.is_set()

    conductor = Conductor(
        study,
        home,
        config,
        capacity=capacity,
        observers=(tracker, board),
        run_of=tracker.run_of,
        should_stop=should_stop,
        was_waited_for=Room([home.root, cache_root(spec)], say, should_stop).was_waited_for,
    )
    with board.live():
        run_trials(conductor, trainable=trainable)
    budget.write()
    if conductor.common_cause is not None:
        raise AllFailedAlike(
            f"the first {Alike.TRIALS} {study.role}s failed before an epoch, of one cause, and the search "
            f"has stopped: {conductor.common_cause}; mend that and go on with `transfer-search resume "
            f"{spec.name} --retry-failed`"
        )
    progress = study.progress()
    if not progress.left and not progress.running:
        return Outcome.FINISHED
    if stopped.is_set() or not budget.is_over:
        return Outcome.STOPPED
    study.closed_at = progress.counted
    return Outcome.TIME_OVER


def _finish(search: Search, trackers: Sequence[Tracker], outcome: Outcome, console: Console) -> None:
    """Tells MLflow how the search ended; `trackers` begin with the search's own."""
    for inner in trackers[1:]:
        inner.close(outcome.value)
    tracker, champion = trackers[0], search.champion
    known = overview(
        search.study,
        search.standings,
        corrected=search.correct(),
        made=champion.told if champion else "",
        scores=champion.test_scores if champion else {},
    )
    tracker.summarize(known)
    tracker.close(outcome.value)
    for number, reason in ((n, reason) for each in trackers for n, reason in each.refusals.items()):
        told = f"MLflow refuses trial {number}: {reason.splitlines()[0]}"
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    for left in (each.outbox for each in trackers if any(each.outbox.glob("*.jsonl"))):
        console.print(
            f"MLflow has not taken everything; the rest is kept in {left} and sent by "
            f"`transfer-search doctor {search.name} --repair`",
            style="yellow",
        )
