"""Cached views against online augmentation: how many views hold, and whether features stay exact.

    python benchmarks/views.py [--train 1000] [--size 96] [--epochs 16] [--policies P ...]

A probe of EfficientNet-Lite0 on Fashion-MNIST, 500 validation images, three seeds, each another subset. Each
policy is trained on 1, 2, 4 and 8 views that are kept, in turn, and online, on a fresh view each epoch
that is computed and thrown away. Prints one JSON line: for each number of views the best accuracies of the
seeds, their mean and spread (highest less lowest); and the largest difference between logits of kept
features (float16, of a folded trunk) and of the trunk as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainables.files.cache import Cache
from trainables.image import backbones
from trainables.image.data import DataConfig, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.loop import Training, fit
from trainables.training.settings import Settings

SEEDS = (0, 1, 2)
VIEWS = (1, 2, 4, 8, None)


def logit_difference(training: Training) -> float:
    """The largest difference of a trained head's logits on what was kept and on what the trunk gives now."""
    kept = training._features["train"]
    exact = replace(kept, dtype=torch.float32, cache=None)  # in full precision the trunk is not folded
    head = training.model.head.eval()
    with torch.no_grad():
        return float((head(kept.view(0).float()) - head(exact.view(0))).abs().max())


def main() -> None:
    """Trains every row with every seed and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--policies", nargs="+", default=["trivial_augment", "rand_augment"])
    asked = parser.parse_args()
    backbone = backbones.build("efficientnet_lite0", image_size=asked.size)
    found: dict[str, Any] = {policy: {} for policy in asked.policies}
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            limits = {"train_limit": asked.train, "validation_limit": 500, "test_limit": 10}
            config = DataConfig(source="fashion-mnist", seed=seed, **limits)
            data = load(config, cache_dir=Path(folder))
            for policy in asked.policies:
                cache = Cache(Path(folder) / f"{seed} {policy}")
                hparams = HParams(
                    policy=policy, strategy="probe", lr=1e-2, max_epochs=asked.epochs, seed=seed,
                    image_size=asked.size,
                )  # fmt: skip
                for views in VIEWS:
                    settings = Settings(threads=os.cpu_count() or 1, views=views)
                    kept = None if views is None else cache
                    training = Training(hparams, data, backbone, settings=settings, cache=kept)
                    best = fit(training, lambda epoch, metrics: False)
                    assert best is not None
                    row = found[policy].setdefault(str(views or "online"), {"accuracy": []})
                    row["accuracy"].append(round(best["val_accuracy"], 4))
                    if views == 1:
                        differences.append(logit_difference(training))
    for rows in found.values():
        for row in rows.values():
            row["mean"] = round(statistics.mean(row["accuracy"]), 4)
            row["spread"] = round(max(row["accuracy"]) - min(row["accuracy"]), 4)
    line = {"benchmark": "views", "train": asked.train, "size": asked.size, "epochs": asked.epochs}
    print(json.dumps({**line, "logits_differ_by": round(max(differences), 5), "views": found}))


if __name__ == "__main__":
    main()
