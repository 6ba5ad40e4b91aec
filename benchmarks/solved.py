"""How many heads are solved for in a minute when the features are there.

    python benchmarks/solved.py [--trials 42] [--train 1000] [--sizes 64 96] [--policies none flip_crop]

Fashion-MNIST, 500 validation images, EfficientNet-Lite0, ridge regressions on the last features and on
stages. A first search visits all features, sizes and policies, which fills the cache; a second one draws from
the same space, with Optuna, MLflow and a logged model a trial, on two workers of one core each. A trial
solves a path of strengths, each of them a configuration. Timed from the first trial's start to the last one's
end. Prints one JSON line; `in_60_seconds` is the rate, times 60, and `solve_seconds` what a path takes of a
worker.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from rich.console import Console

from search.home import Home
from search.run.planning import plan
from search.run.ray_session import local_ray
from search.run.running import run_search
from search.search import Search
from search.spec.search_spec import SearchSpec, read_spec
from search.study.search_study import SearchStudy
from trainables.record import APPLIED_FILE

SPEC = """
name: solved
data:
  source: fashion-mnist
  limit: {{train: {train}, validation: 500, test: 10}}
  orientation_matters: true
search: {{trials: {trials}, max_epochs: 1, sampler: random, pruner: none}}
space:
  backbone: efficientnet_lite0
  strategy: probe
  solver: ridge
  features: [last, stages]
  image_size: {sizes}
  policy: {policies}
resources: {{cpu: 1, concurrency: 2}}
cache: {{dir: {folder}/cache}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""


def searched(spec: SearchSpec, home: Home) -> dict[str, Any]:
    """A search in a new home: its seconds, the configurations solved, and the seconds of each kind."""
    home.make()
    study = SearchStudy.create(spec, home)
    run_search(Search(spec, home, study), Console(file=io.StringIO()))
    trials = study.trials()
    began = min(trial.datetime_start.timestamp() for trial in trials if trial.datetime_start)
    ended = max(trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete)
    solved, kinds = 0, dict[str, list[float]]()
    for record in study.records():
        applied = json.loads((home.trial(record.number) / APPLIED_FILE).read_text())
        solved += len(applied["phases"][0]["solved"]["path"])
        kind = f"{record.params['features']} {record.params['policy']}"
        assert record.best is not None
        kinds.setdefault(kind, []).append(record.best["epoch_seconds"])
    return {
        "trials": len(trials),
        "configurations": solved,
        "seconds": round(ended - began, 1),
        "in_60_seconds": round(60 * solved / (ended - began)),
        "solve_seconds": {kind: round(statistics.median(each), 3) for kind, each in sorted(kinds.items())},
    }


def main() -> None:
    """Fills the cache, runs the search and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=42)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--policies", nargs="+", default=["none", "flip_crop"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, chdir(name), local_ray(preloaded=True):
        folder = Path(name)
        text = SPEC.format(**vars(asked), folder=folder)
        count = 2 * len(asked.sizes) * len(asked.policies)
        fill = read_spec(text, ["search.sampler=grid", f"search.trials={count}"], name="fill")
        plan(fill, Home(folder / "fill"))
        searched(fill, Home(folder / "fill"))
        told = searched(read_spec(text, name="warm"), Home(folder / "warm"))
    print(json.dumps({"benchmark": "solved", "load": round(os.getloadavg()[0], 1), **vars(asked), **told}))


if __name__ == "__main__":
    main()
