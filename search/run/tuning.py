"""Ray Tune as muscle: adapters that let one Optuna study search and prune, and the run itself.

Tune holds no truth here. `Conductor` decides everything from the study; the searcher and the scheduler
only pass on what Tune says. A trial's state lives in its own folder, so a retry, a move to another
node and a resumed search all go the same way: the trainable finds the state and goes on.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.stopper import Stopper

from search.errors import BadInput, CheckpointsError
from search.home import Home
from search.run.checkpoints import Checkpoints
from search.spec.search_spec import SearchSpec
from search.study.search_study import Assignment, Ending, SearchStudy
from trainables.record import BEST, METRICS, TEST_METRICS

log = logging.getLogger(__name__)

Trainable: TypeAlias = type[tune.Trainable]

_TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Nothing reads Tune's snapshots of its own state, and a failed one would end the search.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": str(10**9),
    # A new trial need not wait until the process of the one before has started; `Room` bounds them.
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


_OUT_OF_MEMORY = re.compile(r"^torch\.OutOfMemoryError: .*", re.MULTILINE)
"""The exception's type as a traceback names it: at the start of a line, never within a message."""
_NODE_LOST = ("its node has died", "The actor is temporarily unavailable", "preempted")
"""How Ray says that a trial's process was lost with its node, or cannot be reached any more."""


_STARTS_WITHIN = 0.05
"""Seconds in which a process that is there takes a trial that was handed out, unless a draw is in the way."""


class Observer(Protocol):
    """Whoever is told what happens to trials; never asked for a decision."""

    def trial_started(self, assignment: Assignment) -> None: ...

    def epoch_ended(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def attempt_failed(self, number: int, reason: str) -> None: ...

    def trial_moved(self, number: int, moves: int) -> None: ...

    def trial_ended(
        self, number: int, ending: Ending, best: Mapping[str, float] | None, reason: str
    ) -> None: ...


class RunOf(Protocol):
    """What knows MLflow's runs."""

    def __call__(self, number: int, *, wait: bool = False) -> str | None: ...


class Conductor:
    """Hands out trials and decides after each epoch, all from the study.

    Args:
        study: the truth.
        home: where trials keep their state.
        config: what is the same for every trial.
        room: how many trials may run.
        observers: told of everything, in this order, before the study is.
        run_of: MLflow's run id of a trial that `observers` were told has started; with `wait=True` waits
            for it; None where it is not known.
        should_stop: whether to hand out no more.
    """

    def __init__(
        self,
        study: SearchStudy,
        home: Home,
        config: Mapping[str, Any],
        *,
        room: Room,
        observers: Sequence[Observer],
        run_of: RunOf,
        should_stop: Callable[[], bool],
    ) -> None:
        self.study = study
        self.home = home
        self.should_stop = should_stop
        self._checkpoints = Checkpoints(study, home)
        self._config = dict(config)
        self._room = room
        self._observers = observers
        self._run_of = run_of
        self._waiting = study.interrupted()
        self._begun = len(study.trials())
        self._numbers: dict[str, int] = {}
        self._handed_out = 0.0
        self._max_epochs: dict[int, int] = {}
        self._failures: dict[int, int] = {}
        self._shares: dict[int, float] = {}
        self._runless: set[int] = set()  # trials whose MLflow run is not written down: none waits for it
        self._told: dict[int, int] = {}
        self._last: dict[int, Mapping[str, float]] = {}

    def next(self, tune_id: str) -> dict[str, Any] | str | None:
        """A trial's configuration; None for none yet; FINISHED for none ever again."""
        if self.should_stop():
            return str(Searcher.FINISHED)
        if not self._room.for_more_than(len(self._numbers)):
            is_idle = time.monotonic() - self._handed_out > _STARTS_WITHIN
            if is_idle and not self._waiting and self._begun < self.study.budget:
                self.study.draw_ahead()
            return None
        if self._waiting:
            assignment = self.study.continue_trial(self._waiting.pop(0), tune_id)
        elif self._begun < self.study.budget:
            assignment = self.study.ask(tune_id)
            self._begun += 1
        else:
            return str(Searcher.FINISHED)
        number = assignment.number
        self._numbers[tune_id] = number
        self._handed_out = time.monotonic()
        self._max_epochs[number] = assignment.hparams.max_epochs
        for observer in self._observers:
            observer.trial_started(assignment)
        self._runless.add(number)
        return {
            **self._config,
            "number": number,
            "hparams": assignment.hparams.to_dict(),
            "folder": str(self.home.trial(number)),
            "checkpoints": self._checkpoints.uri(number),
        }

    def after_epoch(self, tune_id: str, result: Mapping[str, Any]) -> bool:
        """Takes an epoch's result; whether the trial goes on."""
        number = self._numbers[tune_id]
        epoch = int(result["epoch"])
        metrics = {name: float(result[name]) for name in METRICS}
        best = {
            name: float(result[f"{BEST}/{name}"])
            for name in ("epoch", *METRICS, *TEST_METRICS)
            if f"{BEST}/{name}" in result
        }
        self._last[number] = best
        if epoch <= self._told.get(number, 0):
            return True  # a trial that was moved or retried repeats what it had not yet saved
        self._told[number] = epoch
        for observer in self._observers:
            observer.epoch_ended(number, epoch, metrics)
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            self._end(tune_id, Ending.DIVERGED, f"{', '.join(broken)} not finite at epoch {epoch}")
            return False
        pruned = self.study.report(number, epoch, metrics)
        if epoch >= self._max_epochs[number]:
            self._end(tune_id, Ending.COMPLETED)
            return False
        if pruned:
            pruner = self.study.spec.search.pruner
            self._end(tune_id, Ending.PRUNED, f"{pruner} pruned it at epoch {epoch}")
            return False
        if number in self._runless and (run := self._run_of(number)):
            self.study.ran_as(number, run)
            self._runless.discard(number)
        return True

    def failed(self, tune_id: str, reason: str) -> bool:
        """Takes note that a trial's attempt failed; whether it is to be tried again."""
        number = self._numbers[tune_id]
        last = reason[max(0, reason.rfind("Failure # ")) :]  # Tune adds each failure to the same file
        if any(sign in last for sign in _NODE_LOST):
            moves = self.study.moved(number)
            for observer in self._observers:
                observer.trial_moved(number, moves)
            return True
        for observer in self._observers:
            observer.attempt_failed(number, reason)
        if memory := _OUT_OF_MEMORY.search(last):
            return self._out_of_memory(tune_id, memory[0])
        self._failures[number] = self._failures.get(number, 0) + 1
        if self._failures[number] <= self.study.spec.search.retries:
            return True
        self._end(tune_id, Ending.ERRORED, reason)
        return False

    def _out_of_memory(self, tune_id: str, said: str) -> bool:
        """Gives a trial a larger share of a GPU, once; whether it is to be tried again."""
        number, asked = self._numbers[tune_id], self.study.spec.resources.gpu
        if number not in self._shares and 0 < asked < 1:
            self._shares[number] = min(1.0, 2 * asked)
            return True
        shares = f"{asked:g}" + (f" and then {self._shares[number]:g}" if number in self._shares else "")
        self._end(tune_id, Ending.OUT_OF_MEMORY, f"with gpu {shares} (resources.gpu): {said}")
        return False

    def gpu_share(self, tune_id: str) -> float:
        """What a trial that is handed out takes of a GPU, or how many GPUs."""
        return self._shares.get(self._numbers[tune_id], self.study.spec.resources.gpu)

    def given_up(self, tune_id: str) -> None:
        """Takes back a trial that Tune will not try again, to hand it out once more."""
        self._waiting.append(self._numbers.pop(tune_id))

    def stopped(self) -> None:
        """Ends what still runs when the search stops before its time: `resume` goes on with it."""
        for tune_id in list(self._numbers):
            self._end(tune_id, Ending.INTERRUPTED, "the search was stopped")

    def takes_too_much(self) -> bool:
        """Whether one more trial would take what is another search's."""
        return self._room.exceeds_share(len(self._numbers))

    def known(self, tune_id: str) -> bool:
        """Whether the trial is handed out and has not ended."""
        return tune_id in self._numbers

    def _end(self, tune_id: str, ending: Ending, reason: str = "") -> None:
        number = self._numbers.pop(tune_id)
        best = self._last.pop(number, None) or None
        try:
            self._checkpoints.bring_home(number)
        except CheckpointsError as error:
            log.error("%s %d has not ended, since its model did not come: %s", self.study.role, number, error)
            ending, reason = Ending.INTERRUPTED, str(error)
        for observer in self._observers:
            observer.trial_ended(number, ending, best, reason)
        run = self._run_of(number, wait=True) if number in self._runless else None
        self._runless.discard(number)
        self.study.end(number, ending, best, reason, run)
        if ending is not Ending.INTERRUPTED:
            try:
                self._checkpoints.clear(number)
            except CheckpointsError as error:
                log.warning("what %s %d no longer needs stays: %s", self.study.role, number, error)


class _StudySearcher(Searcher):  # type: ignore[misc]
    """Tune's searcher: asks the conductor."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self._conductor.next(trial_id)

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


class _StudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """Tune's scheduler: asks the conductor after each epoch.

    The trainable never says that it is done. So every result comes here, the last one too, and there
    is one place where a trial ends.
    """

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if not self._conductor.known(trial.trial_id):
            return str(self.STOP)
        goes_on = self._conductor.after_epoch(trial.trial_id, result)
        return str(self.CONTINUE if goes_on else self.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        known = self._conductor.known(trial.trial_id)
        if known and self._conductor.failed(trial.trial_id, _traceback(trial)):
            share = self._conductor.gpu_share(trial.trial_id)
            if share != trial.placement_group_factory.required_resources.get("GPU", 0):
                trial.update_resources({"cpu": self._conductor.study.spec.resources.cpu, "gpu": share})

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        trial: Trial | None = super().choose_trial_to_run(tune_controller)
        if trial is None and self._conductor.takes_too_much():
            # Tune keeps the process of the trial that ended last, and with it what another search needs.
            tune_controller._tune_controller._cleanup_cached_actors(force_all=True)
        return trial

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        # Tune, which is told to retry for ever, adds a failed trial again.
        if not self._conductor.known(trial.trial_id):
            tune_controller.stop_trial(trial)
        _prepare(tune_controller._tune_controller)


def _prepare(controller: Any) -> None:
    """Mends how Tune starts the processes of trials; once for each controller."""
    if "_maybe_reuse_cached_actor" in vars(controller):
        return
    reuse = controller._maybe_reuse_cached_actor

    def reuse_unless_started(trial: Trial) -> bool:
        # Tune kills a process that starts for a trial when another falls free for it. Where a start takes
        # longer than a trial, a new node would never get one.
        own = controller._trial_to_actor.get(trial)
        if own is not None and controller._actor_manager.is_actor_started(own):
            return False
        return bool(reuse(trial))

    controller._maybe_reuse_cached_actor = reuse_unless_started
    # Tune gives its actors an environment of their own: Ray then starts a process instead of taking one
    # that waits, and a cluster's users may read the keys that are in it.
    controller._class_cache = SimpleNamespace(get=functools.cache(ray.remote))


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


def _traceback(trial: Trial) -> str:
    path = trial.error_file
    if path and os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()[-20_000:]
    return "the trial's process ended without a word"


_PRELOADED = {
    "RAY_preload_python_modules": "trainables.image_transfer",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # else Ray ends them before a plan is made
}


@contextmanager
def local_ray(cpus: int | None = None, gpus: int | None = None, *, preloaded: bool = False) -> Iterator[None]:
    """A Ray of this process's own, which ends with the outermost of such blocks.

    Args:
        cpus, gpus: what it has; None: what the machine has.
        preloaded: whether its processes import what trials need at once, before anybody asks for one.
    """
    if ray.is_initialized():
        yield
        return
    _set_environment()
    if preloaded:
        os.environ.update(_PRELOADED)
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",  # nothing of it is for other machines
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 * 2**20,
    )
    for name in _PRELOADED:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        ray.shutdown()


def _set_environment() -> None:
    for name, value in _TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def cluster_ray() -> None:
    """Connects to the cluster on which this job runs; its runtime environment is the job's.

    The connection ends with the process: with it Ray removes the folder that the code is run from.
    """
    # One pending trial at a time would let an autoscaler add one node at a time.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "4")
    _set_environment()
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)


class Room:
    """Whether more of a spec's trials may run: as many as the nodes hold, which come and go.

    Searches that share a cluster get equal shares; what others leave free, each may take.

    Raises:
        BadInput: if none could ever run, neither on a node that is there nor on one that could come.
    """

    _SECONDS = 2.0

    def __init__(self, spec: SearchSpec) -> None:
        self._needs = {"CPU": spec.resources.cpu, "GPU": spec.resources.gpu}
        self._most = spec.resources.concurrency or 2**31
        self._look()
        if not self._all:
            raise BadInput(
                f"a trial asks for cpu {spec.resources.cpu:g} and gpu {spec.resources.gpu:g} (resources), "
                f"but no node could ever give that: there can be {_described([*_alive(), *_possible()])}; "
                "ask for less, e.g. --set resources.gpu=0"
            )

    @property
    def at_once(self) -> int:
        """How many trials may run at a time where nobody else runs any."""
        return min(self._all, self._most)

    def for_more_than(self, running: int) -> bool:
        """Whether one more trial may run beside `running` ones."""
        if time.monotonic() - self._looked > self._SECONDS:
            self._look()
        return running < self.at_once and not self.exceeds_share(running)

    def exceeds_share(self, running: int) -> bool:
        """Whether one more trial than `running` would take what is another search's."""
        return self._share < self._all and running >= self._share and not self._free

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._all = max(self._on(_alive()), self._on(_possible()))
        self._share = math.ceil(self._all / _searches())
        self._free = self._on([(ray.available_resources(), 1)])

    def _on(self, nodes: Nodes) -> int:
        return sum(
            count * min(int(have.get(kind, 0) / need + 1e-9) for kind, need in self._needs.items() if need)
            for have, count in nodes
        )


def _searches() -> int:
    """How many searches run on this Ray now, this one included."""
    drivers = [job for job in ray._private.state.jobs() if not job["IsDead"]]
    return max(1, sum(" -m search " in job["Entrypoint"] for job in drivers))


Nodes = Sequence[tuple[Mapping[str, float], int]]
"""What a node has, by kind of resource, and how many there are of it."""


def _alive() -> Nodes:
    return [(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]


def _possible() -> Nodes:
    """The nodes that an autoscaler may start; none where there is no autoscaler."""
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [(dict(each.resources), each.max_count if each.max_count >= 0 else 2**20) for each in groups]


def _described(nodes: Nodes) -> str:
    told = [f"CPU {have.get('CPU', 0):g} and GPU {have.get('GPU', 0):g}" for have, _ in nodes]
    return "nodes with " + ", or ".join(dict.fromkeys(told))


def run_trials(conductor: Conductor, *, trainable: Trainable | None = None) -> None:
    """Runs trials until the budget is met or the conductor says stop. Ray must be running.

    Args:
        conductor: decides.
        trainable: None: `ImageTransfer`, which imports torch.
    """
    if trainable is None:
        from trainables.image_transfer import ImageTransfer as trainable
    spec = conductor.study.spec
    tune.run(
        trainable,
        name=f"tune-{int(time.time())}",
        storage_path=str(conductor.home.ray),
        search_alg=_Unsaved(_StudySearcher(conductor)),
        scheduler=_StudyScheduler(conductor),
        num_samples=2**31,
        resources_per_trial={"cpu": spec.resources.cpu, "gpu": spec.resources.gpu},
        reuse_actors=True,
        max_failures=-1,  # the conductor counts them
        stop=_StopWhen(conductor.should_stop),
        raise_on_failed_trial=False,
        verbose=0,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )
    conductor.stopped()
