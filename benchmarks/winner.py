"""What the winner's refit and an ensemble gain over the plain winner, on test images that chose nothing.

    python benchmarks/winner.py [--seeds 0 1 2] [--train 1000] [--validation 500] [--size 64] [--epochs 5]

Fashion-MNIST, EfficientNet-Lite0 with its ImageNet weights, 4,000 test images; each seed draws the training
and the validation images anew. The trials are a fixed few: heads that are solved for, which cost seconds, and
fine-tunes that begin with one. Prints a JSON line a seed: for the heads alone and for all trials the test
accuracy of the plain winner (by validation accuracy), of its refit on training and validation images, of the
ensemble that is chosen on validation images, with what says whether that pays, and of its members' refits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.files.cache import Cache
from trainables.image import backbones
from trainables.image.data import DataConfig, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.loop import Training, fit
from trainables.training.metrics import scores
from trainables.training.selection import select
from trainables.training.settings import Settings

HEADS: dict[str, dict[str, Any]] = {
    "ridge on the grid": {"strategy": "probe", "solver": "ridge", "features": "grid"},
    "ridge on stages": {"strategy": "probe", "solver": "ridge", "features": "stages"},
    "logistic on stages": {"strategy": "probe", "solver": "logistic", "features": "stages"},
    "ridge on last": {"strategy": "probe", "solver": "ridge"},
}
_TUNED = {"strategy": "lp_ft", "solver": "ridge", "features": "grid", "freeze": 0.0, "batch_size": 32}
FINE_TUNES: dict[str, dict[str, Any]] = {
    "lp_ft, trunk 3e-4": {**_TUNED, "trunk_lr": 3e-4},
    "lp_ft, trunk 1e-4": {**_TUNED, "trunk_lr": 1e-4},
    "lp_ft, flip_crop": {**_TUNED, "trunk_lr": 3e-4, "policy": "flip_crop"},
}


class Bench:
    """The trials of one seed.

    Args:
        seed: of the draw of images, and of the trials.
        given: the command line's.
        cache: where the node keeps features.
    """

    def __init__(self, seed: int, given: argparse.Namespace, cache: Path) -> None:
        limits = {"train_limit": given.train, "validation_limit": given.validation, "test_limit": 4000}
        config = DataConfig(source="fashion-mnist", seed=seed, orientation_matters=False, **limits)
        self.data = load(config, cache_dir=cache)
        self.backbone = backbones.build("efficientnet_lite0", image_size=given.size)
        self.cache = Cache(cache, 4 * 2**30)
        self.settings = Settings(threads=given.threads)
        self.fixed = {"image_size": given.size, "max_epochs": given.epochs, "seed": seed}

    def trained(self, knobs: dict[str, Any], *trained_on: str) -> tuple[Training, float]:
        """A training that has ended, and its validation accuracy."""
        settings = replace(self.settings, trained_on=trained_on or ("train",))
        hparams = HParams(**self.fixed, **knobs)
        training = Training(hparams, self.data, self.backbone, settings=settings, cache=self.cache)
        kept = fit(training, lambda epoch, metrics: None)
        assert kept is not None
        return training, kept["val_accuracy"]

    def accuracy(self, logits: Tensor, split: str = "test") -> float:
        """Of logits on a split."""
        return round(scores(logits, self.data.labels[self.data.splits[split]]).accuracy, 4)


def compared(
    bench: Bench, ran: dict[str, tuple[Tensor, Tensor, float]], every: dict[str, Any]
) -> dict[str, Any]:
    """The plain winner of some trials, its refit and the ensemble.

    Args:
        bench: where they ran.
        ran: by name, validation and test logits and the validation accuracy.
        every: their hyperparameters.
    """
    order = sorted(ran, key=lambda name: -ran[name][2])
    winner = order[0]
    labels = bench.data.labels[bench.data.splits["validation"]]
    chosen = select(torch.stack([ran[name][0] for name in order]), labels)

    def averaged(tests: dict[str, Tensor]) -> float:
        parts = [
            share * (chosen.factors[place] * tests[order[place]]).softmax(1)
            for place, share in chosen.shares.items()
        ]
        return bench.accuracy(torch.stack(parts).sum(0).log())

    plain, ensemble = bench.accuracy(ran[winner][1]), averaged({name: ran[name][1] for name in ran})
    members = {winner, *(order[place] for place in chosen.shares)}
    refits = {name: bench.trained(every[name], "train", "validation")[0].logits("test") for name in members}
    refitted, both = bench.accuracy(refits[winner]), averaged(refits)
    return {
        "winner": winner,
        "claimed": round(ran[winner][2], 4),
        "test": plain,
        "refit": refitted,
        "refit_gain": round(refitted - plain, 4),
        "ensemble": ensemble,
        "ensemble_gain": round(ensemble - plain, 4),
        "ensemble_of_refits": both,
        "ensemble_of_refits_gain": round(both - plain, 4),
        "shares": {order[place]: round(share, 2) for place, share in chosen.shares.items()},
        "pays": chosen.pays,
        "left_out": {
            "accuracy": round(chosen.accuracy, 4),
            "winner": round(chosen.winner_accuracy, 4),
            "gain": round(chosen.gain, 4),
            "error": round(chosen.error, 4),
        },
    }


def main() -> None:
    """Runs every seed and prints its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    for seed in given.seeds:
        began, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(seed, given, Path(folder))
            ran, every = {}, {**HEADS, **FINE_TUNES}
            for name, knobs in every.items():
                training, value = bench.trained(knobs)
                ran[name] = (training.logits("validation"), training.logits("test"), value)
            told = {
                "heads": compared(bench, {name: ran[name] for name in HEADS}, every),
                "all": compared(bench, ran, every),
            }
            tests = {name: bench.accuracy(test) for name, (_, test, _) in ran.items()}
        told |= {"tests": tests, "seconds": round(time.perf_counter() - began)}
        print(
            json.dumps({"seed": seed, **vars(given), **told, "cpu": round(time.process_time() - cpu)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
