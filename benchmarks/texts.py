"""How good a search's answer on texts is, next to what people do by hand, on texts that nothing else read.

    python benchmarks/texts.py [--per-class 20 100] [--seeds 0 1 2] [--set KEY=VALUE ...]

Debian's quotations (package `fortunes`) in 16 categories, the first by name that have 250 different ones.
Each seed draws anew 100 test texts a class, and of the rest those to train on and half as many to validate
on. The search is a whole process, `transfer-search launch` of `space: default` with an empty cache, on two
workers of one core each; then `export` and `predict` on files. By hand are logistic regressions on TF-IDF and
on MiniLM's features under a mean, of three strengths the one that is best on the test texts: on those to
train on, and on all that the search has. Prints one JSON line a seed and size.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from trainables.files.cache import Cache
from trainables.text.data import TextData, load
from trainables.text.data_config import TextConfig
from trainables.text.hparams import TextHParams as HParams
from trainables.text.modality import TEXT
from trainables.text.sources import listing_of
from trainables.training.loop import Training
from trainables.training.settings import Settings

ROOT = Path(__file__).parents[1]
CLASSES, LEAST, TEST = 16, 250, 100
STRENGTHS = (1, 10, 100)
SPEC = """
name: texts
data: {{modality: text, source: texts.csv}}
search: {{trials: 10000, time: {time}, max_epochs: 4, seed: {seed}}}
space: default
resources: {{cpu: 1, concurrency: 2}}
cache: {{dir: cache}}
tracking: {{uri: "sqlite:///mlflow.db"}}
"""
SECONDS = {20: 60, 100: 180}
"""How long a search lasts, by texts a class; the refit is beside it."""


def write_table(file: Path, per_class: int, seed: int) -> None:
    """The texts of a seed, with their splits."""
    texts: dict[str, dict[str, str]] = {}
    for row in listing_of(TextConfig(source="fortunes")).rows:
        texts.setdefault(row.label, {}).setdefault(" ".join(row.text.split()), row.text)
    chance = np.random.default_rng(seed)
    splits = ["test"] * TEST + ["train"] * per_class + ["validation"] * (per_class // 2)
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened)
        table.writerow(("text", "label", "split"))
        for label in [each for each in sorted(texts) if len(texts[each]) >= LEAST][:CLASSES]:
            own = list(texts[label].values())
            drawn = chance.permutation(len(own))[: len(splits)]
            table.writerows((own[place], label, split) for place, split in zip(drawn, splits, strict=True))


def by_hand(data: TextData) -> dict[str, float]:
    """Test accuracies of what people do without a search."""
    texts = {name: [data.texts[place] for place in places] for name, places in data.splits.items()}
    answers = {name: data.labels[places].numpy() for name, places in data.splits.items()}
    hparams = HParams(max_length=64)
    backbone = TEXT.backbone(hparams.to_dict())
    with tempfile.TemporaryDirectory() as folder:
        training = Training(hparams, data, backbone, settings=Settings(), cache=Cache(Path(folder), 2**30))
        features = {
            name: training._trunk.features(name, training.model, clean=True).view(0).float().numpy()
            for name in data.splits
        }
    found = {}
    for name, used in (("train", ["train"]), ("all", ["train", "validation"])):
        labels = np.concatenate([answers[each] for each in used])
        vectorizer = TfidfVectorizer(sublinear_tf=True)
        rows = vectorizer.fit_transform([text for each in used for text in texts[each]])
        both = {
            "tf-idf": (rows, vectorizer.transform(texts["test"])),
            "minilm": (np.concatenate([features[each] for each in used]), features["test"]),
        }
        for kind, (own, test) in both.items():
            models = (LogisticRegression(C=each, max_iter=2000).fit(own, labels) for each in STRENGTHS)
            found[f"{kind}, {name}"] = round(max(model.score(test, answers["test"]) for model in models), 4)
    return found


def searched(data: TextData, folder: Path, seconds: int, seed: int, changes: Sequence[str]) -> dict[str, Any]:
    """What a search ends with, as a person would use it."""
    (folder / "spec.yaml").write_text(SPEC.format(time=seconds, seed=seed))
    for place in data.splits["test"].tolist():
        file = folder / "test" / data.classes[int(data.labels[place])] / f"{place}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(data.texts[place], encoding="utf-8")
    began = time.perf_counter()
    _search(folder, "launch", "spec.yaml", *(f"--set={each}" for each in changes))
    took = time.perf_counter() - began
    best = json.loads(_search(folder, "best", "texts", "--json"))
    trials = json.loads(_search(folder, "trials", "texts", "--json"))
    _search(folder, "export", "texts", "--to", "export", "--format", "onnx")
    answers = json.loads(_search(folder, "predict", "export", "test", "--json"))
    right = sum(answer["label"] == Path(answer["text"]).parent.name for answer in answers)
    states = [trial["state"] for trial in trials]
    return {
        "seconds": round(took, 1),
        "trials": {state: states.count(state) for state in sorted(set(states))},
        "validation": round(best["value"], 4),
        "test_accuracy": round(right / len(answers), 4),
        "test_texts": len(answers),
        "won": {
            key: best["params"].get(key)
            for key in ("strategy", "solver", "features", "policy", "pooling", "max_length", "trunk_lr")
            if key in best["params"]
        },
    }


def _search(folder: Path, *words: str) -> str:
    """What a command of transfer-search prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "search", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def main() -> None:
    """Runs every seed and size and prints its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--per-class", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the specs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for per_class in asked.per_class:
        for seed in asked.seeds:
            with tempfile.TemporaryDirectory() as name:
                folder, told = Path(name), dict[str, Any]()
                write_table(folder / "texts.csv", per_class, seed)
                data = load(TextConfig(source=str(folder / "texts.csv")))
                told |= searched(data, folder, SECONDS.get(per_class, 2 * per_class), seed, asked.set)
                told |= {"by_hand": by_hand(data)}
            print(
                json.dumps({"benchmark": "texts", "per_class": per_class, "seed": seed, **told}), flush=True
            )


if __name__ == "__main__":
    main()
