"""Ray Tune as muscle: adapters that let one Optuna study search and prune, and the run itself.

Tune holds no truth here. `Conductor` decides everything from the study; the searcher and the scheduler
only pass on what Tune says. A trial's state lives in its own folder, so a retry, a move to another
node and a resumed search all go the same way: the trainable finds the state and goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.stopper import Stopper

from search.run.conductor import Conductor, NoTrial
from search.run.ray_compat import (
    end_idle_processes,
    failure_of,
    kill_process,
    prepare,
    without_usage_tags,
)

__all__ = ["Trainable", "run_trials"]

Trainable: TypeAlias = type[tune.Trainable]


class _StudySearcher(Searcher):  # type: ignore[misc]
    """Tune's searcher: asks the conductor."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        match self._conductor.next(trial_id):
            case NoTrial.YET:
                return None
            case NoTrial.EVER_AGAIN:
                return str(Searcher.FINISHED)
            case config:
                return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error and self._conductor.known(trial_id):
            self._conductor.given_up(trial_id)


class _Unsaved(SearchGenerator):  # type: ignore[misc]
    """Makes Tune's trials of the searcher's configurations, and takes no part in Tune's snapshots.

    The study's storage is the state; and files that Tune writes while it copies them are errors.
    """

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Saves nothing."""


_WATCH_SECONDS = 1.0


class _StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tune's scheduler: asks the conductor after each epoch.

    The trainable never says that it is done. So every result comes here, the last one too, and there
    is one place where a trial ends.
    """

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor
        self._watched = time.monotonic()

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not self._conductor.known(trial.trial_id):
            return str(self.STOP)
        goes_on = self._conductor.after_epoch(trial.trial_id, result)
        return str(self.CONTINUE if goes_on else self.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        known = self._conductor.known(trial.trial_id)
        if known and self._conductor.failed(trial.trial_id, failure_of(trial)):
            share = self._conductor.gpu_share(trial.trial_id)
            if share != trial.placement_group_factory.required_resources.get("GPU", 0):
                trial.update_resources({"cpu": self._conductor.study.spec.resources.cpu, "gpu": share})

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        self._watch(tune_controller)
        trial: Trial | None = super().choose_trial_to_run(tune_controller)
        if trial is None and self._conductor.takes_too_much():
            # Tune keeps the process of the trial that ended last, and with it what another search needs.
            end_idle_processes(tune_controller)
        return trial

    def _watch(self, tune_controller: Any) -> None:
        """Kills the processes of trials that have no more time, about once a second."""
        if time.monotonic() - self._watched < _WATCH_SECONDS:
            return
        self._watched = time.monotonic()
        live = {each.trial_id: each for each in tune_controller.get_live_trials()}
        running = [name for name, each in live.items() if each.status == Trial.RUNNING]
        for tune_id in self._conductor.overdue(running):
            kill_process(tune_controller, live[tune_id])

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        # Tune, which is told to retry for ever, adds a failed trial again.
        if not self._conductor.known(trial.trial_id):
            tune_controller.stop_trial(trial)
        prepare(tune_controller)


class _StopWhen(Stopper):  # type: ignore[misc]
    """Stops all trials when the search was told to stop or its time is over."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._should_stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it into snapshots that nobody reads


class _Silent(TrialProgressCallback):  # type: ignore[misc]
    """Takes the place of what Tune prints of trials, whatever its verbosity: the board shows them."""

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        """Prints nothing."""

    def log_result(self, *args: Any, **info: Any) -> None:
        """Prints nothing."""


def run_trials(conductor: Conductor, *, trainable: Trainable | None = None) -> None:
    """Runs trials until the budget is met or the conductor says stop. Ray must be running.

    Args:
        conductor: decides.
        trainable: None: `ImageTransfer`, which imports torch.
    """
    if trainable is None:
        from trainables.image_transfer import ImageTransfer as trainable
    spec = conductor.study.spec
    for left in conductor.home.ray.glob("tune-*"):  # of a driver that was killed; one works here at a time
        shutil.rmtree(left, ignore_errors=True)
    name = f"tune-{int(time.time())}"
    with without_usage_tags():
        tune.run(
            trainable,
            name=name,
            storage_path=str(conductor.home.ray),
            search_alg=_Unsaved(_StudySearcher(conductor)),
            scheduler=_StudyScheduler(conductor),
            num_samples=2**31,
            resources_per_trial={"cpu": spec.resources.cpu, "gpu": spec.resources.gpu},
            reuse_actors=True,
            max_failures=-1,  # the conductor counts them
            stop=_StopWhen(conductor.should_end),
            raise_on_failed_trial=False,
            callbacks=[_Silent()],
            verbose=0,
            trial_dirname_creator=lambda trial: trial.trial_id,
        )
    conductor.stopped()
    shutil.rmtree(conductor.home.ray / name, ignore_errors=True)  # nobody reads it
