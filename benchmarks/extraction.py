"""Features of frozen trunks: images a second by torch as it is, folded, and as `inference` does it.

    python benchmarks/extraction.py [--size 96] [--threads 1] [--backbones NAME ...]

Batches of 32 normalised images that are there already, the ways in turn. Prints one JSON line: for each
backbone the medians and the ratio of the last to torch as it is, what computes it, how long it took to be
made ready, and its largest difference, as a share of the largest feature.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from trainables.image import backbones
from trainables.training.folding import folded
from trainables.training.inference import engine, fast_passes

ROUNDS = 10
BATCH = 32
BACKBONES = ("efficientnet_lite0", "timm/mobilenetv3_large_100", "timm/convnext_atto", "resnet18", "vgg16")


def measured(name: str, size: int) -> dict[str, object]:
    """One backbone's row; with its weights where they are at hand without a download."""
    weights = "pretrained" if name.startswith("efficientnet_lite") else "none"
    trunk = backbones.build(name, weights=weights, image_size=size).module.eval()
    images = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        simple = folded(trunk, (3, size, size))
        began = time.perf_counter()
        fast = fast_passes(trunk, (3, size, size))
        ready = time.perf_counter() - began
        ways = {"as_it_is": trunk, "folded": simple, "fast": fast}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, passes in ways.items():
                began = time.perf_counter()
                found = passes(images)
                seconds[way].append(time.perf_counter() - began)
        expected = trunk(images)
    rates = {way: round(BATCH / statistics.median(each), 1) for way, each in seconds.items()}
    difference = (found - expected).abs().max() / expected.abs().max()
    return {
        **rates,
        "ratio": round(rates["fast"] / rates["as_it_is"], 2),
        "engine": engine(trunk, torch.device("cpu")),
        "ready_seconds": round(ready, 2),
        "difference": float(f"{float(difference):.1e}"),
    }


def main() -> None:
    """Measures every backbone and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = {name: measured(name, asked.size) for name in asked.backbones}
    line = {"benchmark": "extraction", "size": asked.size, "threads": asked.threads, "rows": rows}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
