"""What the machine around a trial costs: Ray, Optuna and MLflow with trials that train nothing.

    python benchmarks/control_loop.py [--trials 100] [--epochs 4] [--workers 2]

Each trial reports `--epochs` results and leaves the model of a 10-class probe; Optuna and MLflow are on
SQLite, each trial gets its run, its points and its logged model. Prints one JSON line: seconds a trial
over all (from the first suggestion to MLflow's last acknowledgement), and where the driver's time went.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from search.home import Home
from search.run import running
from search.search import Search
from search.spec.search_spec import read_spec
from search.study.search_study import SearchStudy
from search.tracking import tracker as tracking
from trainables.image import backbones
from trainables.image.hparams import ImageHParams as HParams
from trainables.record import METRICS, MODEL_FOLDER
from trainables.training.card import make_card
from trainables.training.delta import save_delta
from trainables.training.model import build_model

SPEC = """
name: nothing
data: {{source: digits}}
search: {{trials: {trials}, max_epochs: {epochs}, pruner: none, refit: false}}
space:
  lr: {{low: 1.0e-4, high: 1.0e-1, log: true}}
  batch_size: [16, 32, 64]
  dropout: {{low: 0.0, high: 0.4}}
  weight_decay: {{low: 1.0e-5, high: 1.0e-1, log: true}}
resources: {{cpu: 1, concurrency: {workers}}}
"""


class Nothing(tune.Trainable):  # type: ignore[misc]
    """Reports at once, and leaves a ready model."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial, self._epoch = new_config, 0
        return True

    def step(self) -> dict[str, Any]:
        self._epoch += 1
        folder = Path(self._trial["folder"])
        if self._epoch == 1:
            shutil.copytree(folder.parent.parent / "model", folder / MODEL_FOLDER)
        metrics = dict.fromkeys(METRICS, self._trial["hparams"]["lr"] + self._epoch)
        return {**metrics, "epoch": self._epoch, "best": {"epoch": self._epoch, **metrics}}


def timed(seconds: dict[str, float], owner: Any, name: str) -> None:
    """Adds the time spent in `owner.name` to `seconds`."""
    inner: Callable[..., Any] = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            seconds[f"{owner.__name__}.{name}"] += time.perf_counter() - began

    setattr(owner, name, outer)


def main() -> None:
    """Runs the search and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    seconds: dict[str, float] = defaultdict(float)
    for owner, names in {
        SearchStudy: ("ask", "draw_ahead", "report", "end"),
        tracking.Tracker: ("trial_started", "epoch_ended", "trial_ended", "close", "_put"),
    }.items():
        for name in names:
            timed(seconds, owner, name)
    whole = time.perf_counter()
    timed(seconds, running, "run_trials")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        spec = read_spec(SPEC.format(**vars(asked)), [f"tracking.uri=sqlite:///{folder}/mlflow.db"])
        home = Home(Path(folder) / "nothing")
        home.make()
        backbone = backbones.build("efficientnet_lite0", image_size=32)
        card = make_card(backbone, HParams(), [str(n) for n in range(10)], {})
        save_delta(home.root / "model", build_model(backbone, HParams(), 10), backbone, card)
        study = SearchStudy.create(spec, home)
        running.run_search(Search(spec, home, study), Console(file=io.StringIO()), trainable=Nothing)
        completed = study.progress().completed
    busy = seconds["search.run.running.run_trials"] + seconds["Tracker.close"]
    print(
        json.dumps(
            {
                "benchmark": "control_loop",
                "trials": completed,
                "epochs": asked.epochs,
                "workers": asked.workers,
                "seconds_per_trial": round(busy / completed, 4),
                "whole_seconds": round(time.perf_counter() - whole, 2),
                "driver_seconds": {name: round(value, 3) for name, value in seconds.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
