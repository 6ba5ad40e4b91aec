"""What a GPU is worth here: JSON lines by one command that needs `trainables`, and no Ray, Optuna or MLflow.

    PYTHONPATH=. python benchmarks/gpu.py [--parts fine_tuning extraction ...] [--device cuda] [--tiny]

    fine_tuning   images/s of a whole fine-tune (frames from disk, TrivialAugment, bf16) over a plain loop of
                  the same step on synthetic tensors that are on the card; goal 0.9
    extraction    images/s of a new view of a frozen trunk over its bare passes on such tensors; goal 0.9
    sharing       four trials one after another over the same four at once, each with a quarter of the card
    solving       a ridge path (12 strengths, each scored by leaving out) on the CPU with all its threads over
                  the same on the card
    gpu_tests     how the tests that need a GPU end

Networks have no weights and images are drawn, so that nothing is downloaded. Ours and its peer take
turns, and a ratio is the median of its rounds. A part that fails says so in its line, and the others go
on; the exit code is then 1. Under 8 minutes on one card; `--tiny` takes seconds on a CPU, where the
figures mean nothing. Without PYTHONPATH the package must be installed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from trainables.files.cache import Cache
from trainables.image import backbones
from trainables.image.data import DataConfig, ImageData, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.footprint import keep_within
from trainables.training.inference import fast_passes
from trainables.training.loop import Training
from trainables.training.settings import Settings
from trainables.training.solved import solve

FOREIGN = {"ray", "optuna", "mlflow"}
REPOSITORY = Path(__file__).resolve().parents[1]

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        images: training images.
        side: of the images as they lie on the disk, in pixels.
        size: of the networks' input, in pixels.
        batch: images in a step.
        rounds: in which ours and its peer take turns; one more warms up and does not count.
        trials: that share the card.
        solved: rows and features of what heads are solved on.
        backbones: what is measured.
    """

    images: int = 4096
    side: int = 300
    size: int = 224
    batch: int = 128
    rounds: int = 3
    trials: int = 4
    solved: tuple[tuple[int, int], ...] = ((20_000, 1280), (20_000, 3072))
    backbones: tuple[str, ...] = ("efficientnet_lite0", "resnet50", "vit_b_16")


TINY = Scale(
    images=20,
    side=40,
    size=32,
    batch=8,
    rounds=1,
    trials=2,
    solved=((60, 20),),
    backbones=("timm/test_efficientnet", "timm/test_resnet", "timm/test_vit"),
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where the parts are measured, and on what."""

    scale: Scale
    device: str
    folder: Path
    threads: int

    def images(self) -> ImageData:
        """The drawn images, decoded once."""
        source = DataConfig(source=str(self.folder / "images"), validation=0.05, test=0.05)
        return load(source, cache_dir=self.folder / "cache")

    def training(self, name: str, **knobs: Any) -> Training:
        """A trial on `device` of a network without weights."""
        hparams = HParams(
            backbone=name,
            weights="none",
            image_size=self.scale.size,
            batch_size=self.scale.batch,
            policy="trivial_augment",
            max_epochs=self.scale.rounds + 2,
            **knobs,
        )
        precision = "bf16" if self.device == "cuda" else "auto"
        settings = Settings(device=self.device, precision=precision, views=None, threads=self.threads)
        backbone = backbones.build(name, weights="none", image_size=self.scale.size)
        cache = Cache(self.folder / "features")
        return Training(hparams, self.images(), backbone, settings=settings, cache=cache)

    def resident(self, count: int) -> torch.Tensor:
        """Drawn inputs, uint8, that are on the device already."""
        shape = (count, 3, self.scale.size, self.scale.size)
        return torch.randint(256, shape, dtype=torch.uint8, device=self.device)

    def finish(self) -> float:
        """The clock once the device has done all that it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def rates(self, *ways: Callable[[], int]) -> list[list[float]]:
        """Images a second of each way, round by round; a way tells how many it did."""
        rates: list[list[float]] = [[] for _ in ways]
        for number in range(self.scale.rounds + 1):
            for way, found in zip(ways, rates, strict=True):
                began = self.finish()
                images = way()
                if number:
                    found.append(images / (self.finish() - began))
        return rates


def draw_images(folder: Path, scale: Scale) -> None:
    """Files of two classes: soft random shapes, which compress about as photographs do."""
    numbers = np.random.default_rng(0)
    for number in range(round(scale.images / 0.9)):
        coarse = numbers.integers(256, size=(12, 12, 3), dtype=np.uint8)
        path = folder / "images" / str(number % 2) / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((scale.side, scale.side), Image.Resampling.BICUBIC).save(path)


def compared(ours: list[float], peer: list[float]) -> Line:
    """The figures of a comparison."""
    ratios = [our / their for our, their in zip(ours, peer, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "goal": 0.9,
        "images_per_second": round(statistics.median(ours), 1),
        "peer_images_per_second": round(statistics.median(peer), 1),
    }


def fine_tuning(bench: Bench) -> Iterator[Line]:
    """Our epochs against the same step on resident tensors."""
    for name in bench.scale.backbones:
        training = bench.training(name, strategy="full", lr=1e-4)
        peer = bench.training(name, strategy="full", lr=1e-4)
        dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
        parameters = [each for each in peer.model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=bench.device == "cuda")
        inputs = bench.resident(bench.scale.batch)
        targets = torch.zeros(len(inputs), dtype=torch.int64, device=bench.device)
        steps = len(training.data.splits["train"]) // len(inputs)

        def plain(
            peer: Training = peer,
            optimizer: torch.optim.Optimizer = optimizer,
            inputs: torch.Tensor = inputs,
            targets: torch.Tensor = targets,
            steps: int = steps,
            dtype: torch.dtype = dtype,
        ) -> int:
            peer.model.train()
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(bench.device, dtype, enabled=dtype != torch.float32):
                    logits = peer.model(inputs)
                functional.cross_entropy(logits.float(), targets, label_smoothing=0.1).backward()
                optimizer.step()
            return steps * len(inputs)

        ours, theirs = bench.rates(lambda training=training: training._train()[1], plain)  # type: ignore[misc]
        yield {"backbone": name, "batch": bench.scale.batch, **compared(ours, theirs)}


def extraction(bench: Bench) -> Iterator[Line]:
    """New views of the training images against bare passes of the same trunk."""
    for name in bench.scale.backbones:
        training = bench.training(name, strategy="probe")
        features = training._features["train"]
        passes = fast_passes(training.model.trunk, (3, bench.scale.size, bench.scale.size))
        inputs = training.model.normalised(bench.resident(2 * bench.scale.batch))
        images = len(training.data.splits["train"])
        views = iter(range(bench.scale.rounds + 1))

        def bare(
            passes: Callable[[torch.Tensor], torch.Tensor] = passes,
            inputs: torch.Tensor = inputs,
            images: int = images,
        ) -> int:
            with torch.no_grad():
                for _ in range(max(1, images // len(inputs))):
                    passes(inputs)
            return max(1, images // len(inputs)) * len(inputs)

        ours, theirs = bench.rates(
            lambda features=features, views=views: len(features.view(next(views))),  # type: ignore[misc]
            bare,
        )
        yield {"backbone": name, **compared(ours, theirs)}


def sharing(bench: Bench) -> Iterator[Line]:
    """Trials in processes of their own: each alone in turn, then all at once."""
    context = multiprocessing.get_context("spawn")
    count = bench.scale.trials
    barrier, results = context.Barrier(count, timeout=240), context.SimpleQueue()
    trials = [context.Process(target=_trial, args=(bench, i, barrier, results)) for i in range(count)]
    for trial in trials:
        trial.start()
    for trial in trials:
        trial.join()
    if any(trial.exitcode for trial in trials):
        raise RuntimeError(f"the trials ended with {[trial.exitcode for trial in trials]}")
    told = [results.get() for _ in trials]
    alone, together = sum(each["alone"] for each in told), max(each["together"] for each in told)
    yield {
        "backbone": bench.scale.backbones[0],
        "trials": count,
        "one_after_another_over_at_once": round(alone / together, 3),
        "seconds_one_after_another": round(alone, 2),
        "seconds_at_once": round(together, 2),
    }


def _trial(bench: Bench, place: int, barrier: Barrier, results: Any) -> None:
    """One of them: an epoch that warms up, then one alone, then one beside the others."""
    try:
        keep_within(1 / bench.scale.trials)
        training = bench.training(bench.scale.backbones[0], strategy="full", lr=1e-4)
        training.run_epoch()
        told = {}
        for turn in range(bench.scale.trials):
            barrier.wait()
            if turn == place:
                began = bench.finish()
                training.run_epoch()
                told["alone"] = bench.finish() - began
        barrier.wait()
        began = bench.finish()
        training.run_epoch()
        told["together"] = bench.finish() - began
        results.put(told)
    except BaseException:
        barrier.abort()  # or the others would wait for it
        raise


def solving(bench: Bench) -> Iterator[Line]:
    """A path of heads on the card against the CPU; features as few, and as many, as networks have."""
    classes, threads = 10, torch.get_num_threads()
    for rows, width in bench.scale.solved:
        numbers = torch.Generator().manual_seed(0)
        features = torch.randn(rows, width, generator=numbers)
        labels = torch.randint(classes, (rows,), generator=numbers)
        seconds: dict[str, list[float]] = {}
        torch.set_num_threads(bench.threads if bench.device == "cpu" else os.cpu_count() or 1)
        for number in range(bench.scale.rounds + 1):
            for way in ("cpu", bench.device):
                given, told = features.to(way), labels.to(way)
                began = bench.finish()
                solve("ridge", [lambda given=given: given], told, classes)  # type: ignore[misc]
                if number:
                    seconds.setdefault(way, []).append(bench.finish() - began)
        torch.set_num_threads(threads)
        medians = {way: statistics.median(found) for way, found in seconds.items()}
        yield {
            "rows": rows,
            "features": width,
            "cpu_over_card": round(medians["cpu"] / medians[bench.device], 2),
            "cpu_seconds": round(medians["cpu"], 3),
            "card_seconds": round(medians[bench.device], 3),
        }


def gpu_tests(bench: Bench) -> Iterator[Line]:
    """The tests that need a GPU, in a process of their own."""
    files = [
        str(path)
        for path in sorted((REPOSITORY / "tests" / "trainables").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    ]
    report = bench.folder / "tests.xml"
    # Without what the whole suite is run with, which takes plug-ins that this needs not.
    options = ["-m", "gpu", "-q", "-o", "addopts=--import-mode=importlib", f"--junitxml={report}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.is_file():
        raise RuntimeError(f"the tests did not run: {(ended.stdout + ended.stderr)[-2000:]}")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite.iter("testcase") if case.findall("failure")]
    yield {**counts, "failed": failed}


PARTS = {part.__name__: part for part in (fine_tuning, extraction, sharing, solving, gpu_tests)}


def main() -> int:
    """Measures the parts that were asked for and prints their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, in seconds: whether it works at all")
    asked = parser.parse_args()
    device = "cpu" if asked.tiny else asked.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; use a machine that has one, or --tiny")
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    about, failed = {"benchmark": "gpu", "device": name}, False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            scale=TINY if asked.tiny else Scale(),
            device=device,
            folder=Path(folder),
            threads=1 if asked.tiny else max(1, (os.cpu_count() or 1) // 4),
        )
        draw_images(bench.folder, bench.scale)
        for part in asked.parts:
            began = time.perf_counter()
            try:
                for line in PARTS[part](bench):
                    seconds = round(time.perf_counter() - began, 1)
                    print(json.dumps({**about, "part": part, **line, "seconds": seconds}), flush=True)
            except Exception as error:  # whatever it is: a card is lent for minutes, the others go on
                traceback.print_exc()
                print(json.dumps({**about, "part": part, "error": str(error)}), flush=True)
                failed = True
            if device == "cuda":
                torch.cuda.empty_cache()
    assert not FOREIGN & sys.modules.keys(), f"imported: {FOREIGN & sys.modules.keys()}"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
