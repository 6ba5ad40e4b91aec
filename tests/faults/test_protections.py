"""Each protection taken out makes the fault suite fail; so the suite would see who takes it out for good.

With FAULTS=full in the environment all of them; else some.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from mlflow import MlflowClient

from search.run import conductor as conducting
from search.run.checkpoints import Checkpoints
from search.run.conductor import Conductor
from search.study.search_study import SearchStudy
from search.tracking.events import End, TrialEvent
from search.tracking.models import Models
from search.tracking.outbox import Outbox
from search.tracking.runs import Runs
from search.tracking.tracker import Tracker
from tests.faults.places import Place
from tests.faults.test_each_write import FOR_GOOD, lost
from trainables.record import EPOCHS

FULL = os.environ.get("FAULTS") == "full"
Patch: TypeAlias = pytest.MonkeyPatch
Taken: TypeAlias = Callable[[Patch], None]


@dataclass(frozen=True)
class Protection:
    """What a protection does, whose death after what shows that it is gone, and how it is taken out."""

    name: str
    who: str
    after: str
    taken: Taken


TAKEN_OUT: list[Protection] = []
EACH = 3


def protection(name: str, after: str, who: str = "driver") -> Callable[[Taken], Taken]:
    def known(taken: Taken) -> Taken:
        TAKEN_OUT.append(Protection(name, who, after, taken))
        return taken

    return known


@protection("epochs that the study lacks are told", "replace state.pt")
def _(patch: Patch) -> None:
    after_epoch = Conductor.after_epoch

    def deaf(self: Conductor, tune_id: str, result: Mapping[str, Any]) -> bool:
        return after_epoch(self, tune_id, {**result, EPOCHS: []})

    patch.setattr(Conductor, "after_epoch", deaf)


@protection("observers are told before the study", "set_trial_intermediate_value")
def _(patch: Patch) -> None:
    tell = Conductor._tell

    def told_last(self: Conductor, tune_id: str, epoch: int, told: Mapping[str, float]) -> bool:
        if epoch in self.study.told(self._numbers[tune_id]):
            return True
        self.study.report(self._numbers[tune_id], epoch, told)
        return tell(self, tune_id, epoch, told)

    patch.setattr(Conductor, "_tell", told_last)
    patch.setattr(Tracker, "_retold", lambda self, number: [])


@protection("interrupted trials are handed out first", "replace epochs.json")
def _(patch: Patch) -> None:
    patch.setattr(SearchStudy, "interrupted", lambda self: [])


@protection("what the study was told first stands", "set_trial_intermediate_value")
def _(patch: Patch) -> None:
    patch.setattr(SearchStudy, "told", lambda self, number: frozenset())


@protection("MLflow hears of an end before Optuna does", "set_trial_state_values COMPLETE")
def _(patch: Patch) -> None:
    end, ended = Conductor._end, Tracker.trial_ended

    def optuna_first(self: Conductor, *args: Any, **kwargs: Any) -> None:
        later: list[tuple[Any, ...]] = []
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Tracker, "trial_ended", lambda tracker, *told: later.append((tracker, *told)))
            end(self, *args, **kwargs)
        for each in later:
            ended(*each)

    patch.setattr(Conductor, "_end", optuna_first)


@protection("a trial's file waits for the acknowledgement of its end", "MLflow's log_outputs", "sender")
def _(patch: Patch) -> None:
    add = Outbox.add

    def forgetful(self: Outbox, event: TrialEvent) -> None:
        add(self, event)
        if isinstance(event, End):
            self.acknowledge(event.trial)

    patch.setattr(Outbox, "add", forgetful)


@protection("a run is looked for before it is made again", "MLflow's create_run")
def _(patch: Patch) -> None:
    patch.setattr(Runs, "_find_run", lambda self, experiment, trial: None)


@protection("a model is looked for before it is made again", "MLflow's finalize_logged_model")
def _(patch: Patch) -> None:
    patch.setattr(Models, "_known", lambda self, run: None)


@protection("a point has one time, however often it is sent", "MLflow's log_batch")
def _(patch: Patch) -> None:
    log_batch = MlflowClient.log_batch
    times = iter(range(10**6))

    def late(self: MlflowClient, run: str, metrics: Any = (), **more: Any) -> Any:
        for each in metrics:
            each._timestamp += next(times)
        return log_batch(self, run, metrics=metrics, **more)

    patch.setattr(MlflowClient, "log_batch", late)
    patch.setattr(MlflowClient, "get_metric_history", lambda *_: [])


@protection("what a trial whose process died had written down is told", "replace epochs.json", FOR_GOOD)
def _(patch: Patch) -> None:
    patch.setattr(conducting, "settled", lambda study, home, number, listeners, best: best)


@protection("states and temporary files go when a trial has ended", "replace state.pt")
def _(patch: Patch) -> None:
    patch.setattr(Checkpoints, "clear", lambda self, number: None)


@protection("half a model goes with the trial whose process died", "replace delta.safetensors", FOR_GOOD)
def _(patch: Patch) -> None:
    patch.setattr("search.run.settlement.shutil", SimpleNamespace(rmtree=lambda path, ignore_errors: None))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    before = Path.cwd()
    yield Place(tmp_path_factory.mktemp("taken"), "search.trials=4", "search.max_epochs=3")
    os.chdir(before)


@pytest.mark.parametrize("gone", TAKEN_OUT if FULL else TAKEN_OUT[:1], ids=lambda gone: gone.name)
@pytest.mark.timeout(1800)
def test_the_suite_sees_that_a_protection_is_gone(
    place: Place, gone: Protection, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, deaths = lost(place, gone.who, EACH, gone.after)
    assert (found, len(deaths)) == ([], EACH)
    gone.taken(monkeypatch)
    try:
        found, _ = lost(place, gone.who, EACH, gone.after)
    except AssertionError as failed:
        found = [str(failed)]
    assert found, "nobody sees that it is gone"
    print(f"{gone.name} | {gone.who}, after {gone.after} | {found[0].strip().splitlines()[-1][:150]}")
