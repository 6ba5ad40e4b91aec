"""From a spec to a finished search: check, plan, run, resume, stop.

What imports torch is imported where it is needed: Ray and its workers start meanwhile.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console

from search.answers import answer
from search.console import progress_bar
from search.errors import SpecError
from search.home import Home, is_inside
from search.run.checkpoints import Checkpoints
from search.run.preflight import planned, refusals
from search.run.premises import Premises, check_movable
from search.run.running import Outcome, run_search, started_ray, tell
from search.run.settlement import settled
from search.run.signals import interruptible
from search.search import Search
from search.spec.search_spec import SearchSpec, read_spec
from search.study.agenda import agenda_notes
from search.study.earlier import start_of
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from search.tracking.line import ready_sender
from search.tracking.tracker import Tracker

__all__ = ["abandon", "launch", "resume"]

log = logging.getLogger(__name__)


def launch(spec: SearchSpec, home: Home, console: Console) -> tuple[Search, Outcome]:
    """Runs a new search to its end; returns it and how it ended.

    Raises:
        BadInput: if the search exists, or another driver runs it; nothing is changed then.
        SpecError: if the spec cannot run on this machine.
    """
    home.check_free()
    if problems := refusals(spec, home):
        planned(spec, home, None, problems)  # tells what is wrong with the data too
    tell(console, f"{spec.name}: reading the data and the weights, while Ray starts")
    with interruptible(), home.beginning(), ready_sender(home) as sender, started_ray(preloaded=True):
        with progress_bar(console) as progress:
            found = planned(spec, home, progress)
        with _created(spec, home) as study:

            def keep() -> None:
                from search.run.planning import samples

                Premises.of(spec, found).keep(study)
                study.samples = samples(found.data)
                home.keep(spec.to_yaml(home.root))
                if is_inside():
                    sys.stdout.write(answer("launched", search=spec.name))  # nothing was found wrong
                    sys.stdout.flush()
                for line in (*spec.warnings, *found.data.report.lines(), *agenda_notes(spec)):
                    console.print(line, markup=False, highlight=False, soft_wrap=True)

            search = Search(spec, home, study)
            return search, run_search(search, console, sender=sender, begin=keep)


@contextmanager
def _created(spec: SearchSpec, home: Home) -> Iterator[SearchStudy]:
    """A new study, which stays only if the search is launched before the block ends."""
    start = start_of(spec, home)
    study = SearchStudy.create(spec, home, start=list(start.trials.values()) if start else ())
    try:
        yield study
    finally:
        if not home.spec.exists():
            study.discard()


def resume(
    home: Home,
    console: Console,
    *,
    trials: int | None = None,
    seconds: float | None = None,
    device_hours: float | None = None,
    retry_failed: bool = False,
    overrides: Sequence[str] = (),
) -> tuple[Search, Outcome]:
    """Goes on with a search, from its spec and its study alone; changes nothing unless it can.

    Args:
        home: of a search that was launched.
        console: where to show it.
        trials: a new budget of trials; None: the one it has.
        seconds: more time from now; None: what is left of the spec's.
        device_hours: the same of device-hours.
        retry_failed: whether failed trials are run again, as new trials beyond the budget.
        overrides: where the data or MLflow is now, and what trials take, as `MOVABLE` says; kept if the
            search goes on.

    Raises:
        BadInput: if the data or the space are others than at the launch, or another driver runs the search.
        SpecError: if it cannot run on this machine.
    """
    check_movable(overrides)
    spec = read_spec(home.spec, overrides)
    with _told_where_to_set(home):
        return _resumed(
            spec,
            home,
            console,
            trials=trials,
            seconds=seconds,
            device_hours=device_hours,
            retry_failed=retry_failed,
            is_moved=bool(overrides),
        )


@contextmanager
def _told_where_to_set(home: Home) -> Iterator[None]:
    """Adds to what is wrong with the data or MLflow how a search is told that they have moved."""
    try:
        yield
    except SpecError as error:
        moved = (
            ("data", "", "data.source=DIR"),
            ("tracking", "", "tracking.uri=URL"),
            ("space.backbone", "no such file", "space.weights=FILE"),
        )
        for place, said, key in moved:
            if any(each.place.startswith(place) and said in each.message for each in error.problems):
                error.add_note(f"if it has moved: transfer-search resume {home.name} --set {key}")
        raise


def _resumed(
    spec: SearchSpec,
    home: Home,
    console: Console,
    *,
    trials: int | None,
    seconds: float | None,
    device_hours: float | None,
    retry_failed: bool,
    is_moved: bool,
) -> tuple[Search, Outcome]:
    def warn(text: str) -> None:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    if problems := refusals(spec, home, is_new=False, tell=warn):
        planned(spec, home, None, problems)
    with interruptible(), ExitStack() as stack:
        stack.enter_context(home.lock())
        search = Search.open(home, spec)
        tell(console, f"{spec.name}: reading the data and the weights, while Ray starts")
        sender = stack.enter_context(ready_sender(home))
        stack.enter_context(started_ray(preloaded=True))
        with progress_bar(console) as progress:
            found = planned(spec, home, progress)
        premises = Premises.of(spec, found)
        premises.check(search.study)

        def extend() -> None:
            from search.run.planning import samples

            if search.study.premises is None:
                premises.keep(search.study)
            search.study.samples = samples(found.data)
            if is_moved:
                home.keep(spec.to_yaml(home.root))
            if trials is not None:
                search.study.budget = trials
            if retry_failed:
                for _, study in search.studies:
                    study.retry_failed()

        return search, run_search(
            search, console, seconds=seconds, device_hours=device_hours, sender=sender, begin=extend
        )


def abandon(home: Home) -> int:
    """Ends for good what a stopped search, or what it made of its best, left running; returns how many."""
    with home.lock():
        search = Search.open(home)
        tracker = Tracker(search.spec, home, search.study)
        given_up = _given_up(search.study, home, tracker)
        for place, part in search.studies[1:]:
            inner = Tracker(search.spec, place, part, within=tracker)
            given_up += _given_up(part, place, inner)
            inner.close("ABANDONED")
        tracker.close("ABANDONED")
        return given_up


def _given_up(study: SearchStudy, home: Home, tracker: Tracker) -> int:
    tracker.replay()
    left, checkpoints = study.interrupted(), Checkpoints(study, home)
    for number in left:
        checkpoints.bring_home(number)
        tracker.trial_started(study.continue_trial(number))
        best = settled(study, home, number, [tracker], study.kept(number))
        tracker.trial_ended(number, Ending.ABANDONED, best, "abandoned")
        study.end(number, Ending.ABANDONED, best, "abandoned", tracker.run_of(number, wait=True))
        checkpoints.clear(number)
    return len(left)
