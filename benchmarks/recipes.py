"""Accuracy and cost of strategies, and of policies with few labels, on Fashion-MNIST; three seeds each.

    python benchmarks/recipes.py strategies [--train 500] [--size 64] [--epochs 6]
    python benchmarks/recipes.py policies [--train 200] [--size 64] [--epochs 16]
    python benchmarks/recipes.py heads [--train 300] [--size 48] [--epochs 4] [--test 2000]

EfficientNet-Lite0 with its ImageNet weights, 500 validation images, fp32 on the CPU, the model that a trial
keeps. `strategies` fine-tunes without augmentation; `policies` trains the head on cached views of each
policy; `heads` solves for a head on each kind of features, fine-tunes all of the network, in equal epochs,
from a head found in steps (as lp_ft did before there were solved ones) and by the recipe from solved heads,
and scores all on test images. Prints one JSON line: for each row the accuracies of the seeds, their mean and
spread (highest less lowest), and mean seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from search.study.recipes import FROM_SOLVED
from trainables.files.cache import Cache
from trainables.image import backbones
from trainables.image.augment import operations
from trainables.image.data import DataConfig, load
from trainables.image.hparams import POLICIES
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.loop import Training, fit
from trainables.training.settings import Settings

SEEDS = (0, 1, 2)
STRATEGIES: dict[str, dict[str, Any]] = {
    "probe": {"strategy": "probe", "lr": 1e-2},
    "partial": {"strategy": "partial", "freeze": 0.5, "lr": 2e-3, "backbone_lr_mult": 0.3},
    "lp_ft": {"strategy": "lp_ft", "freeze": 0.5, "lr": 2e-3, "backbone_lr_mult": 0.3, "lp_share": 0.34},
    "full": {"strategy": "full", "lr": 2e-3, "backbone_lr_mult": 0.3},
    "bias": {"strategy": "bias", "lr": 2e-3, "trunk_lr": 2e-3},
}
HEADS: dict[str, dict[str, Any]] = {
    **{
        f"ridge on {features}": {"strategy": "probe", "solver": "ridge", "features": features}
        for features in ("last", "stages", "grid")
    },
    "found in steps": {
        "strategy": "lp_ft",
        "freeze": 0.0,
        "lr": 2e-3,
        "backbone_lr_mult": 0.1,
        "lp_share": 0.25,
    },
    **{
        f"solved on {features}": {**FROM_SOLVED, "strategy": "lp_ft", "solver": "ridge", "features": features}
        for features in ("stages", "grid")
    },
}
DEFAULTS = {"strategies": (500, 64, 6), "policies": (200, 64, 16), "heads": (300, 48, 4)}
"""Training images, their size and the epochs."""


def policies() -> dict[str, dict[str, Any]]:
    """Every policy, the sampled one with three sub-policies that were not tuned."""
    names = operations(True)
    rows = tuple(((names[i], 0.7, 10), (names[-i - 1], 0.5, 8)) for i in range(3))
    return {
        policy: {"policy": policy, "lr": 1e-2, "sub_policies": rows if policy == "sampled" else ()}
        for policy in POLICIES
    }


def main() -> None:
    """Trains every row with every seed and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=DEFAULTS)
    for name in ("train", "size", "epochs"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--test", type=int, default=2000)
    asked = parser.parse_args()
    sizes = (asked.train, asked.size, asked.epochs)
    train, size, epochs = (given or known for given, known in zip(sizes, DEFAULTS[asked.what], strict=True))
    table = {"strategies": STRATEGIES, "heads": HEADS}.get(asked.what) or policies()
    backbone = backbones.build("efficientnet_lite0", image_size=size)
    settings = Settings(threads=os.cpu_count() or 1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, values in table.items():
            accuracies, seconds = [], []
            for seed in SEEDS:
                # Another seed is another subset, too: the spread is that of labelling anew.
                config = DataConfig(
                    source="fashion-mnist",
                    seed=seed,
                    train_limit=train,
                    validation_limit=500,
                    test_limit=asked.test if asked.what == "heads" else 10,
                    orientation_matters=True,
                )
                data = load(config, cache_dir=Path(folder))
                told = {"image_size": size, "batch_size": 32, "max_epochs": epochs, "seed": seed}
                hparams = HParams(**(told | values))
                began = time.perf_counter()
                cache = Cache(Path(folder))
                training = Training(hparams, data, backbone, settings=settings, cache=cache)
                best = fit(training, lambda epoch, metrics: False)
                assert best is not None
                seconds.append(time.perf_counter() - began)
                tested = asked.what == "heads"
                accuracies.append(training.evaluate("test").accuracy if tested else best["val_accuracy"])
            found[name] = {
                "accuracy": [round(value, 4) for value in accuracies],
                "mean": round(statistics.mean(accuracies), 4),
                "spread": round(max(accuracies) - min(accuracies), 4),
                "seconds": round(statistics.mean(seconds), 1),
            }
    line = {"benchmark": f"recipes {asked.what}", "train": train, "size": size, "epochs": epochs}
    print(json.dumps({**line, "rows": found}))


if __name__ == "__main__":
    main()
