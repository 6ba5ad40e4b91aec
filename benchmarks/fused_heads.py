"""What training several heads in one batched product could save at most.

    python benchmarks/fused_heads.py [--heads 1 2 4 8] [--images 1000] [--features 1280] [--classes 10]

Epochs of linear heads on features that are in memory: one head after the other, as trials are run, against
as many heads at once, whose weights are one tensor [heads, features, classes] under one AdamW. Each head
draws its own batches of 64 and all have one batch size, one policy and one learning rate: more than heads
of one rung have in common, so that the ratio is a bound on what fusing them would win. One thread, as a
worker has. Prints one JSON line: for each number of heads the median ratio of seven rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional

BATCH, ROUNDS = 64, 7


def epoch(features: Tensor, labels: Tensor, heads: int, classes: int) -> float:
    """Seconds that an epoch of so many heads at once takes."""
    weights = torch.zeros(heads, features.shape[1], classes, requires_grad=True)
    biases = torch.zeros(heads, 1, classes, requires_grad=True)
    optimizer = torch.optim.AdamW([weights, biases], lr=1e-3)
    began = time.perf_counter()
    orders = torch.stack([torch.randperm(len(labels)) for _ in range(heads)])
    for batch in orders.split(BATCH, dim=1):
        logits = torch.baddbmm(biases, features[batch], weights)
        losses = functional.cross_entropy(logits.flatten(0, 1), labels[batch].flatten(), reduction="sum")
        optimizer.zero_grad()
        (losses / batch.shape[1]).backward()
        optimizer.step()
    return time.perf_counter() - began


def main() -> None:
    """Times both and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 2, 4, 8])
    for name, default in (("images", 1000), ("features", 1280), ("classes", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = torch.randn(asked.images, asked.features)
    labels = torch.randint(asked.classes, (asked.images,))
    epoch(features, labels, 1, asked.classes)
    ratios = {}
    for heads in asked.heads:
        rounds = []
        for _ in range(ROUNDS):
            each = sum(epoch(features, labels, 1, asked.classes) for _ in range(heads))
            rounds.append(each / epoch(features, labels, heads, asked.classes))
        ratios[heads] = round(statistics.median(rounds), 2)
    one = statistics.median(epoch(features, labels, 1, asked.classes) for _ in range(ROUNDS))
    line = {"benchmark": "fused_heads", **vars(asked), "one_after_another_over_fused": ratios}
    print(json.dumps({**line, "seconds_of_one_epoch": round(one, 4)}))


if __name__ == "__main__":
    main()
