"""Training throughput of a full fine-tune against a plain PyTorch loop that does the same work.

    python benchmarks/throughput.py [--images 512] [--size 96] [--batch 64] [--rounds 3]

Both fine-tune all of EfficientNet-Lite0 on Fashion-MNIST (digits where it is not installed) with
TrivialAugment, a random crop, AdamW and cross-entropy, BatchNorm held in evaluation mode as the recipe has
it, in fp32 on the CPU with the same threads. The peer is what PyTorch's tutorials lead to: a DataLoader
over a Dataset that transforms each image with torchvision v2, two workers, and a plain step. Ours and the
peer take turns; the line has the median of the ratios, round by round.
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

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from trainables.errors import DataError
from trainables.image import backbones
from trainables.image.data import DataConfig, ImageData, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.loop import Training
from trainables.training.settings import Settings


class Transformed(Dataset[Any]):
    """The training images, each transformed when it is asked for."""

    def __init__(self, data: ImageData, preprocessing: backbones.Preprocessing) -> None:
        self._frames = data.frames(preprocessing.frame_size, preprocessing.interpolation)
        self._data = data
        self._indices = data.splits["train"]
        self._transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.TrivialAugmentWide(),
                v2.RandomCrop(preprocessing.image_size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
            ]
        )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> Any:
        index = self._indices[place : place + 1]
        return self._transform(self._frames[index][0]), int(self._data.labels[index])


def peer_epoch(model: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer) -> float:
    """Images per second of a plain epoch."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    began, seen = time.perf_counter(), 0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        seen += len(labels)
    return seen / (time.perf_counter() - began)


def main() -> None:
    """Runs both and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("images", 512), ("size", 96), ("batch", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        limits: dict[str, Any] = {"train_limit": asked.images, "validation_limit": 20, "test_limit": 20}
        try:
            data = load(DataConfig(source="fashion-mnist", **limits), cache_dir=Path(folder))
        except DataError:
            data = load(DataConfig(source="digits", **limits), cache_dir=Path(folder))
        backbone = backbones.build("efficientnet_lite0", image_size=asked.size)
        hparams = HParams(
            image_size=asked.size,
            strategy="full",
            policy="trivial_augment",
            batch_size=asked.batch,
            label_smoothing=0.0,
            backbone_lr_mult=1.0,
            lr=1e-4,
            max_epochs=asked.rounds + 1,
        )
        training = Training(hparams, data, backbone, settings=Settings(threads=threads))
        peer = nn.Sequential(
            backbones.build("efficientnet_lite0", image_size=asked.size).module,
            nn.Linear(backbone.features, len(data.classes)),
        )
        optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4)
        loader = DataLoader(
            Transformed(data, backbone.preprocessing),
            batch_size=asked.batch,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
        )
        ours, theirs = [], []
        for _ in range(asked.rounds + 1):  # the first warms up and does not count
            began = time.perf_counter()
            _, seen = training._train()
            ours.append(seen / (time.perf_counter() - began))
            theirs.append(peer_epoch(peer, loader, optimizer))
    ratios = [our / their for our, their in zip(ours[1:], theirs[1:], strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "throughput",
                "data": data.report.to_dict().get("source", ""),
                **vars(asked),
                "threads": threads,
                "ratio_median": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "images_per_second": [round(value, 1) for value in ours[1:]],
                "peer_images_per_second": [round(value, 1) for value in theirs[1:]],
            }
        )
    )


if __name__ == "__main__":
    main()
