"""How good a search's answer is: accuracy of what `launch` ends with, on images that nothing else read.

    python benchmarks/answer.py [--arms few minute minutes digits peer] [--seeds 0 1 2] [--set KEY=VALUE ...]

Each arm is a whole process, `transfer-search launch` of `space: default` (for `digits` of
`examples/quickstart.yaml`), with an empty cache, on two workers of one core each. What it ends with is used
as a person would: `export`, then `predict` on a folder of PNG files.

    few      200 training and 100 validation images of Fashion-MNIST at 96 px, within 60 s of wall time
    minute   1,000 and 500 images, within 60 s
    minutes  1,000 and 500 images, within 300 s
    digits   the quickstart as it is, on its 359 test images, which chose nothing
    peer     16 trials of 4 epochs of `peer_plain_tune.py` on the images of `minute`

Training and validation images are drawn anew for each seed. The test images of Fashion-MNIST are 4,000 of
its own 10,000, without the ten that the search's spec names. Prints one JSON line an arm and seed:
`test_accuracy`, wall `seconds` from the process's start to its end, the `load` of the machine as it began,
how many trials ran, what won, and what was made of it. Wall times, and with them what is found in them, mean
nothing on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainables.image import backbones
from trainables.image.data import DataConfig, ImageData, load

ROOT = Path(__file__).parents[1]
SIZE = 96
SPEC = """
name: answer
data:
  source: fashion-mnist
  image_size: 96
  limit: {{train: {train}, validation: {validation}, test: 10}}
  splits: {{seed: {seed}}}
  orientation_matters: true
search: {{trials: 10000, time: {time}, max_epochs: {epochs}, seed: {seed}}}
space: default
resources: {{cpu: 1, concurrency: 2}}
cache: {{dir: cache}}
tracking: {{uri: "sqlite:///mlflow.db"}}
"""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Sizes of the splits, epochs of a trial, and how many of the seconds of wall time the search has."""

    train: int = 1000
    validation: int = 500
    epochs: int = 8
    time: int = 0


ARMS = {
    "few": Arm(train=200, validation=100, time=28),
    "minute": Arm(time=28),
    "minutes": Arm(time=270, epochs=4),
    "digits": Arm(),
    "peer": Arm(),
}


def main() -> None:
    """Runs the arms and prints their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["few", "minute", "minutes", "digits"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--test", type=int, default=4000, help="test images of Fashion-MNIST")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the specs")
    asked = parser.parse_args()
    for seed in asked.seeds:
        for name in asked.arms:
            with tempfile.TemporaryDirectory() as folder:
                told = _run(name, seed, Path(folder), asked.test, asked.set)
            print(json.dumps({"benchmark": "answer", "arm": name, "seed": seed, **told}), flush=True)


def _run(name: str, seed: int, folder: Path, test: int, changes: Sequence[str]) -> Mapping[str, Any]:
    arm, load_before = ARMS[name], os.getloadavg()[0]
    images = folder / "test"
    if name == "digits":
        data = load(DataConfig(source="digits", seed=seed), cache_dir=folder / "test-data")
        _write_images(data, data.splits["test"].tolist(), images)
        words = [str(ROOT / "examples" / "quickstart.yaml"), f"--set=data.splits.seed={seed}"]
        words += ["--name=answer", f"--set=search.seed={seed}", "--set=cache.dir=cache"]
    else:
        data, chosen = _untouched(arm, seed, test, folder / "test-data")
        if name == "peer":
            return {"load": load_before, **_peer(arm, seed, data, chosen, folder)}
        _write_images(data, chosen, images)
        (folder / "spec.yaml").write_text(SPEC.format(**vars(arm), seed=seed))
        words = ["spec.yaml"]
    began = time.perf_counter()
    _search(folder, "launch", *words, *(f"--set={each}" for each in changes))
    seconds = time.perf_counter() - began
    best = json.loads(_search(folder, "best", "answer", "--json"))
    trials = json.loads(_search(folder, "trials", "answer", "--json"))
    _search(folder, "export", "answer", "--to", "export", "--format", "onnx")
    answers = json.loads(_search(folder, "predict", "export", "test", "--json"))
    meant = (data.classes[int(Path(answer["image"]).parent.name)] for answer in answers)
    right = sum(answer["label"] == label for answer, label in zip(answers, meant, strict=True))
    states = [trial["state"] for trial in trials]
    return {
        "load": round(load_before, 1),
        "seconds": round(seconds, 1),
        "trials": {state: states.count(state) for state in sorted(set(states))},
        "validation": round(best["value"], 4),
        "test_accuracy": round(right / len(answers), 4),
        "test_images": len(answers),
        "model_of": best["model_of"],
        "shares": best.get("shares"),
        "won": {
            key: best["params"].get(key)
            for key in ("strategy", "solver", "features", "image_size", "policy", "trunk_lr")
            if key in best["params"]
        },
    }


def _untouched(arm: Arm, seed: int, count: int, cache: Path) -> tuple[ImageData, list[int]]:
    """Fashion-MNIST as a search of the arm splits it, and test images that are not in that search."""
    known = set(_read(arm, seed, cache).names)
    data = load(DataConfig(source="fashion-mnist", seed=seed), cache_dir=cache)
    free = [index for index in data.splits["test"].tolist() if data.names[index] not in known]
    drawn = np.random.default_rng(0).permutation(len(free))[:count]
    return data, [free[place] for place in sorted(drawn)]


def _read(arm: Arm, seed: int, cache: Path) -> ImageData:
    """What a search of the arm reads."""
    config = DataConfig(
        source="fashion-mnist",
        seed=seed,
        train_limit=arm.train,
        validation_limit=arm.validation,
        test_limit=10,
    )
    return load(config, cache_dir=cache)


def _write_images(data: ImageData, chosen: Sequence[int], folder: Path) -> None:
    """The images as PNG files in a folder a class, whose name is the class's number."""
    for place in range(len(data.classes)):
        (folder / str(place)).mkdir(parents=True)
    for index in chosen:
        pixels = data.image(index).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / str(int(data.labels[index])) / f"{index}.png")


def _peer(arm: Arm, seed: int, data: ImageData, chosen: Sequence[int], folder: Path) -> Mapping[str, Any]:
    """The plain Ray Tune search on the images of the arm, its best model on the test images."""
    small = _read(arm, seed, folder / "test-data")
    how = backbones.build("efficientnet_lite0", image_size=SIZE).preprocessing
    arrays: dict[str, Any] = {}
    for name, source, places in (
        ("train", small, small.splits["train"]),
        ("val", small, small.splits["validation"]),
        ("test", data, torch.tensor(chosen)),
    ):
        frames = source.frames(how.frame_size, how.interpolation)
        arrays |= {f"{name}_x": frames[places].numpy(), f"{name}_y": source.labels[places].numpy()}
    np.savez(folder / "data.npz", **arrays)
    words = [
        "--data=data.npz",
        f"--size={SIZE}",
        f"--seed={seed}",
        "--trials=16",
        "--epochs=4",
        "--log-each-epoch",
    ]
    printed = _python(folder, str(ROOT / "benchmarks" / "peer_plain_tune.py"), *words)
    told = json.loads(printed.strip().splitlines()[-1])
    return {name: told[name] for name in ("seconds", "best", "test_accuracy", "errors")}


def _search(folder: Path, *words: str) -> str:
    """What a command of transfer-search prints."""
    return _python(folder, "-m", "search", *words)


def _python(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
