"""Accuracy and cost of strategies, and of policies with few labels, on Fashion-MNIST; three seeds each.

    python benchmarks/recipes.py strategies [--train 500] [--size 64] [--epochs 6]
    python benchmarks/recipes.py policies [--train 200] [--size 64] [--epochs 16]

EfficientNet-Lite0 with its ImageNet weights, 500 validation images, fp32 on the CPU, best epoch by
validation accuracy. `strategies` fine-tunes without augmentation; `policies` trains the head on four
cached views of each policy. Prints one JSON line: for each row the accuracies of the seeds, their mean
and spread (highest less lowest), and mean seconds.
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
}


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
    parser.add_argument("what", choices=("strategies", "policies"))
    parser.add_argument("--train", type=int)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int)
    asked = parser.parse_args()
    train = asked.train or {"strategies": 500, "policies": 200}[asked.what]
    epochs = asked.epochs or {"strategies": 6, "policies": 16}[asked.what]
    table = STRATEGIES if asked.what == "strategies" else policies()
    backbone = backbones.build("efficientnet_lite0", image_size=asked.size)
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
                    test_limit=10,
                    orientation_matters=True,
                )
                data = load(config, cache_dir=Path(folder))
                hparams = HParams(
                    image_size=asked.size, batch_size=32, max_epochs=epochs, seed=seed, **values
                )
                began = time.perf_counter()
                cache = Cache(Path(folder))
                best = fit(
                    Training(hparams, data, backbone, settings=settings, cache=cache),
                    lambda epoch, metrics: False,
                )
                assert best is not None
                accuracies.append(best["val_accuracy"])
                seconds.append(time.perf_counter() - began)
            found[name] = {
                "accuracy": [round(value, 4) for value in accuracies],
                "mean": round(statistics.mean(accuracies), 4),
                "spread": round(max(accuracies) - min(accuracies), 4),
                "seconds": round(statistics.mean(seconds), 1),
            }
    line = {"benchmark": f"recipes {asked.what}", "train": train, "size": asked.size, "epochs": epochs}
    print(json.dumps({**line, "rows": found}))


if __name__ == "__main__":
    main()
