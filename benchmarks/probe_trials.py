"""What a cached probe trial costs beside its own arithmetic, and what MLflow costs of that.

    python benchmarks/probe_trials.py [--trials 200] [--rounds 1] [--tracking on off] [--set KEY=VALUE ...]

The search of `comparison.py` with Optuna and MLflow on SQLite and a logged model a trial, on a cache that
holds every view, and no refit. Timed from the first result to MLflow's last acknowledgement, so without the
start of Ray and of its workers. With `--tracking on off` the same search is run in turn with MLflow told
everything and nothing; with `--set` it is another one, e.g. of fine-tuning trials:

    --trials 4 --rounds 3 --tracking on off --set space.strategy=partial search.pruner=none
    search.sampler=random search.max_epochs=3 data.limit.train=500 data.image_size=64

Prints one JSON line: of each search the wall seconds a trial; the same less the mean seconds in which a
worker trained and measured, over the workers (`beside_arithmetic`); what share of the cores' time the
process that sends to MLflow took; how many epochs a trial ran, without which two searches are not alike; and
the medians' ratio.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import psutil
from comparison import DATA, EVERY_VIEW, SPEC, WORKERS
from rich.console import Console

from search.home import Home
from search.run import running
from search.run.conductor import Conductor
from search.run.planning import plan
from search.run.ray_session import local_ray
from search.search import Search
from search.spec.search_spec import SearchSpec, read_spec
from search.study.search_study import SearchStudy
from search.tracking.tracker import Tracker


class Untold:
    """A tracker that tells nobody anything."""

    outbox = Path(os.devnull)
    refusals: Mapping[int, str] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def sender_seconds() -> float:
    """CPU seconds that the process has taken so far which sends to MLflow."""
    children = psutil.Process().children()
    senders = (child.cpu_times() for child in children if "search.tracking.sender" in child.cmdline())
    return sum(times.user + times.system for times in senders)


class Clock:
    """When the first result came, what the sender had taken by then, and workers in epochs since."""

    def __init__(self) -> None:
        self.first, self.sender, self.busy, self.epochs = 0.0, 0.0, 0.0, 0
        after_epoch = Conductor.after_epoch

        def clocked(conductor: Conductor, tune_id: str, result: Mapping[str, Any]) -> bool:
            if not self.first:
                self.first, self.sender = time.perf_counter(), sender_seconds()
            self.busy += result["epoch_seconds"]
            self.epochs += 1
            return after_epoch(conductor, tune_id, result)

        Conductor.after_epoch = clocked  # type: ignore[method-assign]


def searched(spec: SearchSpec, folder: Path, clock: Clock, *, told: bool) -> dict[str, float]:
    """One search in a new home."""
    running.Tracker = Tracker if told else Untold  # type: ignore[misc,assignment]
    home = Home(folder / spec.name)
    home.make()
    study = SearchStudy.create(spec, home)
    clock.first = clock.sender = clock.busy = clock.epochs = 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    running.run_search(Search(spec, home, study), Console(file=io.StringIO()))
    progress = study.progress()
    seconds = (time.perf_counter() - clock.first) / progress.counted
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # the sender's: the only child that ended meanwhile
    sent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - clock.sender
    return {
        "seconds_per_trial": round(seconds, 4),
        "beside_arithmetic": round(seconds - clock.busy / progress.counted / WORKERS, 4),
        "sender_share": round(sent / (seconds * progress.counted * (os.cpu_count() or 1)), 4),
        "failed": progress.failed,
        "epochs_per_trial": round(clock.epochs / progress.counted, 2),
    }


def main() -> None:
    """Fills the cache, runs the searches and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tracking", nargs="+", choices=("on", "off"), default=["on"])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the spec")
    asked = parser.parse_args()
    clock, rows = Clock(), []
    with tempfile.TemporaryDirectory() as name, chdir(name), local_ray(preloaded=True):
        folder = Path(name)
        text = (DATA["images"] + SPEC).format(trials=asked.trials, epochs=8, size=96, seed=0, workers=WORKERS)
        same = [
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            f"cache.dir={folder}/cache",
            "search.refit=false",
        ]
        fill = read_spec(text, [*same, *asked.set, *EVERY_VIEW, "space.strategy=probe"], name="fill")
        plan(fill, Home(folder / "fill"))
        searched(fill, folder, clock, told=False)
        for number in range(asked.rounds):
            for tracking in asked.tracking:
                spec = read_spec(text, [*same, *asked.set], name=f"{tracking}-{number}")
                told = searched(spec, folder, clock, told=tracking == "on")
                rows.append({"tracking": tracking, **told})
    medians = {
        tracking: statistics.median(row["seconds_per_trial"] for row in rows if row["tracking"] == tracking)
        for tracking in asked.tracking
    }
    line = {"benchmark": "probe_trials", "trials": asked.trials, "rows": rows}
    if len(medians) == 2:
        line["on_over_off"] = round(medians["on"] / medians["off"], 3)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
