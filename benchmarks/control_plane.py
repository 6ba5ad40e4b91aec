"""How far one driver scales: trials that sleep a second each, on more and more logical CPUs.

    python benchmarks/control_plane.py [--trials 2000] [--cpus 1 2 4 8 16 32 64] [--sleep 1] [--sampler tpe]

Optuna and MLflow are on SQLite; each trial has one epoch, a run and a run's parameters, and no model. The
actors import `ray.tune` alone, so that 64 of them fit a small machine, whose cores they share with the
driver: what is measured is the whole machine's control plane, not the driver alone. Prints one JSON line
for each number of CPUs: the wall time of the trials over the ideal (trials x sleep / CPUs), the start of
the actors included; how long MLflow takes to have the rest afterwards; the driver's memory for each
1,000 trials, after the first tenth; where the driver's time went; and whose the machine's CPU time was.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import chdir
from pathlib import Path
from typing import Any

import psutil
from control_loop import SPEC, timed
from ray import tune
from rich.console import Console

from search.home import Home
from search.run import running
from search.run.ray_session import local_ray
from search.search import Search
from search.spec.search_spec import read_spec
from search.study.search_study import SearchStudy
from search.tracking import tracker as tracking
from trainables.record import METRICS

RAY = ("gcs_server", "raylet")


class Sleep(tune.Trainable):  # type: ignore[misc]
    """Sleeps, and reports an epoch."""

    seconds = 1.0

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial = new_config
        return True

    def step(self) -> dict[str, Any]:
        time.sleep(self.seconds)
        metrics = dict.fromkeys(METRICS, self._trial["hparams"]["lr"])
        return {**metrics, "epoch": 1, "best": {"epoch": 1, **metrics}}


class Memory:
    """The driver's resident memory as trials end, from the first tenth on."""

    def __init__(self, trials: int) -> None:
        self._from, self._ended = max(1, trials // 10), 0
        self._bytes = 0
        end = SearchStudy.end

        def counted(*args: Any, **kwargs: Any) -> None:
            end(*args, **kwargs)
            self._ended += 1
            if self._ended == self._from:
                self._bytes = psutil.Process().memory_info().rss

        SearchStudy.end = counted  # type: ignore[method-assign]

    def per_thousand(self) -> float:
        """MB more for each 1,000 trials."""
        grown = psutil.Process().memory_info().rss - self._bytes
        return grown / max(1, self._ended - self._from) * 1000 / 1e6


def cpu_seconds() -> dict[str, float]:
    """CPU time of this process, of what sends to MLflow (which has ended), and of Ray's processes by kind."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = defaultdict(float, driver=time.process_time(), mlflow=ended.ru_utime + ended.ru_stime)
    for process in psutil.Process().children(recursive=True):
        called, times = process.name(), process.cpu_times()
        kind = "actors" if called.startswith("ray::") else called if called in RAY else "rest of Ray"
        spent[kind] += times.user + times.system
    return {kind: round(seconds, 1) for kind, seconds in spent.items()}


def measured(trials: int, cpus: int, sleep: float, sampler: str) -> dict[str, Any]:
    """One search on `cpus` logical CPUs."""
    seconds: dict[str, float] = defaultdict(float)
    memory = Memory(trials)
    for owner, names in {
        SearchStudy: ("ask", "draw_ahead", "report", "end"),
        tracking.Tracker: ("trial_started", "epoch_ended", "trial_ended", "close"),
    }.items():
        for name in names:
            timed(seconds, owner, name)
    timed(seconds, running, "run_trials")
    Sleep.seconds = sleep
    with tempfile.TemporaryDirectory() as folder, chdir(folder), local_ray(cpus=cpus):
        text = SPEC.format(trials=trials, epochs=1, workers=cpus)
        home = Home(Path(folder) / "nothing")
        home.make()
        changes = [f"tracking.uri=sqlite:///{folder}/mlflow.db", f"search.sampler={sampler}"]
        spec = read_spec(text, changes)
        study = SearchStudy.create(spec, home)
        running.run_search(Search(spec, home, study), Console(file=io.StringIO()), trainable=Sleep)
        completed, cpu = study.progress().completed, cpu_seconds()
    wall, ideal = seconds.pop("search.run.running.run_trials"), trials * sleep / cpus
    return {
        "benchmark": "control_plane",
        "trials": completed,
        "cpus": cpus,
        "sleep": sleep,
        "sampler": sampler,
        "wall_seconds": round(wall, 2),
        "over_ideal": round(wall / ideal, 3),
        "mlflow_after_seconds": round(seconds.pop("Tracker.close"), 2),
        "driver_mb_per_1000_trials": round(memory.per_thousand(), 1),
        "cpu_seconds": cpu,
        "cores": os.cpu_count(),
        "driver_seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def main() -> None:
    """Measures each number of CPUs in a process of its own, and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--cpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--sleep", type=float, default=1.0)
    parser.add_argument("--sampler", default="tpe", help="tpe, which takes longer the more trials there are")
    asked = parser.parse_args()
    if len(asked.cpus) == 1:
        print(json.dumps(measured(asked.trials, asked.cpus[0], asked.sleep, asked.sampler)), flush=True)
        return
    for cpus in asked.cpus:
        same = [f"--trials={asked.trials}", f"--sleep={asked.sleep}", f"--cpus={cpus}"]
        same.append(f"--sampler={asked.sampler}")
        subprocess.run([sys.executable, __file__, *same], check=True)


if __name__ == "__main__":
    main()
