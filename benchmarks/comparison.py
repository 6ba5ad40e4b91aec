"""A probe search with a cold, a used and a warm cache against the same search written with plain Ray Tune.

    python benchmarks/comparison.py [--data images] [--trials 64] [--seed 0] [--size 96] [--epochs 8]
    python benchmarks/comparison.py --data texts [--peer-trials 16]

Fashion-MNIST, 1,000 training and 500 validation images, EfficientNet-Lite0 frozen; or as many of Debian's
quotations, MiniLM frozen. Four policies and the head's knobs, early stopping on both sides, two workers of
one core each. Each side is timed as a whole
process, from its start to its end, with all that it imports and writes: ours with an empty cache (`cold`),
with what that left there (`used`: views are computed when first asked for, and a second search asks for
others), and with every view there (`warm`), then `peer_plain_tune.py` or `peer_plain_text.py`; where that has
fewer trials, the ratios are of its time times what it lacks. Prints one JSON line. `lines` say
where our wall time went: until the first trial began, while trials ran (the workers' mean seconds of
computing views, of waiting for one that the other computes, of training and measuring heads, and of anything
else), and after the last trial ended. `best` is of completed trials, as a search's winner is;
`best_of_all_trials` of pruned ones too, as the peer's is. `--no-peer` leaves the peer out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient

from search.home import Home
from search.spec.search_spec import read_spec
from search.study.search_study import SearchStudy
from trainables.image import backbones
from trainables.image.data import DataConfig, load
from trainables.record import APPLIED_FILE
from trainables.text.data import load as load_texts
from trainables.text.data_config import TextConfig

ROOT = Path(__file__).parents[1]
WORKERS = 2
DATA = {
    "images": """
data:
  source: fashion-mnist
  image_size: {size}
  limit: {{train: 1000, validation: 500, test: 10}}
  splits: {{seed: {seed}}}
space:
  backbone: efficientnet_lite0
  policy: [none, flip_crop, trivial_augment, rand_augment]
""",
    "texts": """
data:
  modality: text
  source: fortunes
  limit: {{train: 1000, validation: 500, test: 32}}
  splits: {{seed: {seed}}}
  options: {{at_least: 250}}
space:
  backbone: all-minilm-l6-v2
  max_length: 64
  policy: [none, deletion, swap, masking]
  edited: 0.1
""",
}
SPEC = """
  strategy: probe
  lr: {{low: 1.0e-4, high: 1.0e-1, log: true}}
  weight_decay: {{low: 1.0e-5, high: 1.0e-1, log: true}}
  batch_size: [32, 64, 128]
  dropout: {{low: 0.0, high: 0.4}}
  label_smoothing: [0.0, 0.05, 0.1]
name: probe
search: {{trials: {trials}, max_epochs: {epochs}, seed: {seed}}}
resources: {{cpu: 1, concurrency: {workers}}}
cache: {{dir: cache}}
"""
FILES = {"images": "data.npz", "texts": "data.csv"}
PEERS = {"images": "peer_plain_tune.py", "texts": "peer_plain_text.py"}

EVERY_VIEW = (
    "search.sampler=grid", "search.pruner=none", "search.trials=4", "space.batch_size=64", "space.dropout=0",
    "space.label_smoothing=0", "space.lr=0.001", "space.weight_decay=0.0001",
)  # fmt: skip
"""What makes of the search one that asks for every view of the four policies."""


def write_images(size: int, seed: int, file: Path) -> None:
    """The frames and labels of the very images that our search takes, for the peer."""
    config = DataConfig(
        source="fashion-mnist", train_limit=1000, validation_limit=500, test_limit=10, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        data = load(config, cache_dir=Path(folder))
        preprocessing = backbones.build("efficientnet_lite0", image_size=size).preprocessing
        frames = data.frames(preprocessing.frame_size, preprocessing.interpolation)
        arrays = {}
        for name, split in (("train", "train"), ("val", "validation")):
            chosen = data.splits[split]
            arrays |= {f"{name}_x": frames[chosen].numpy(), f"{name}_y": data.labels[chosen].numpy()}
        np.savez(file, **arrays)


def write_texts(seed: int, file: Path) -> None:
    """The same of texts."""
    config = TextConfig(
        source="fortunes", at_least=250, train_limit=1000, validation_limit=500, test_limit=32, seed=seed
    )
    data = load_texts(config)
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened)
        table.writerow(("text", "label", "split"))
        for split in ("train", "validation"):
            for place in data.splits[split].tolist():
                table.writerow((data.texts[place], data.classes[int(data.labels[place])], split))


def timed(words: list[str], folder: Path) -> tuple[float, str]:
    """Seconds that a process took, and what it printed."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - began, done.stdout


def lines(folder: Path, name: str, began: float, ended: float) -> dict[str, float]:
    """Where the wall time of a search went that took from `began` to `ended`; of workers their mean."""
    home = Home.of(name, folder / "searches")
    study = SearchStudy.open(read_spec(home.spec), home)
    first = min(trial.datetime_start.timestamp() for trial in study.trials() if trial.datetime_start)
    last = max(trial.datetime_complete.timestamp() for trial in study.trials() if trial.datetime_complete)
    used = [json.loads(file.read_text())["cache"] for file in home.checkpoints.glob(f"*/{APPLIED_FILE}")]
    views = sum(each["compute_seconds"] for each in used) / WORKERS
    waiting = sum(each["wait_seconds"] for each in used) / WORKERS
    mlflow, records = MlflowClient(f"sqlite:///{folder}/mlflow.db"), study.records()
    histories = [mlflow.get_metric_history(record.mlflow_run_id, "epoch_seconds") for record in records]
    epochs = sum(point.value for history in histories for point in history) / WORKERS
    told = {
        "until_first_trial": first - began,
        "views": views,
        "waiting": waiting,
        "heads": epochs - views - waiting,
        "beside": last - first - epochs,
        "after_last_trial": ended - last,
    }
    best = max(record.value for record in records if record.value is not None)
    seen = {"epochs_run": sum(map(len, histories)), "best_of_all_trials": round(best, 4)}
    return {**seen, **{key: round(value, 1) for key, value in told.items()}}


def main() -> None:
    """Runs the three and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("trials", 64), ("seed", 0), ("size", 96), ("epochs", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", choices=DATA, default="images")
    parser.add_argument("--peer-trials", type=int, help="fewer of the peer")
    parser.add_argument("--no-peer", action="store_true")
    asked = parser.parse_args()
    numbers = {name: getattr(asked, name) for name in ("trials", "seed", "size", "epochs")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text((DATA[asked.data] + SPEC).format(**numbers, workers=WORKERS))
        file = folder / FILES[asked.data]
        if asked.data == "images":
            write_images(asked.size, asked.seed, file)
        else:
            write_texts(asked.seed, file)
        ours: dict[str, dict[str, Any]] = {}
        for cache in ("cold", "used", "fill", "warm"):
            changes = [f"--set={each}" for each in EVERY_VIEW] if cache == "fill" else []
            began = time.time()
            seconds, _ = timed(["-m", "search", "launch", "spec.yaml", "--name", cache, *changes], folder)
            if cache == "fill":
                continue
            where = lines(folder, cache, began, time.time())
            best = json.loads(timed(["-m", "search", "best", cache, "--json"], folder)[1])
            ours[cache] = {"seconds": round(seconds, 1), "best": round(best["value"], 4), "lines": where}
        line = {"benchmark": f"comparison of {asked.data}", **numbers, **ours}
        if asked.no_peer:
            print(json.dumps(line))
            return
        trials = asked.peer_trials or asked.trials
        options = {"trials": trials, "seed": asked.seed, "epochs": asked.epochs, "workers": WORKERS}
        if asked.data == "images":
            options["size"] = asked.size
        words = [f"--data={file}", *(f"--{name}={value}" for name, value in options.items())]
        seconds, printed = timed([str(ROOT / "benchmarks" / PEERS[asked.data]), *words], folder)
    told = json.loads(printed.strip().splitlines()[-1])
    times = seconds * asked.trials / trials
    ratios = {f"{cache}_ratio": round(times / run["seconds"], 2) for cache, run in ours.items()}
    print(json.dumps({**line, **ratios, "peer": {**told, "seconds": round(seconds, 1)}}))


if __name__ == "__main__":
    main()
