"""Whether what a search says holds on images that nobody touched.

    python benchmarks/holds.py [--arms calibration labels twins folds winners shuffled] [--seeds 3]

Each arm prints one JSON line. EfficientNet-Lite0 with its ImageNet weights on a CPU; the images are those of
scikit-learn's digits, Fashion-MNIST (1,000 training and 500 validation images at 64 pixels) and shapes that
are drawn here.

- `calibration`: expected calibration errors (15 bins) on test images before and after the temperature of the
  validation images, what it would be of perfect probabilities on as many images, and how often conformal
  sets of 90 % hold the true class, a split a seed.
- `labels`: 5 % of labels changed: which share of the 5 % that are doubted most were.
- `twins`: images encoded again, resized or shifted from one split to another: which share is found, and how
  many other pairs are told; seconds for 10,000.
- `folds`: 64 solved heads, by five folds over by one hold-out, in time.
- `winners`: searches of 64 heads on cached features, a draw a seed (times 10): the best value less its test
  accuracy, the same of the corrected value, and how often the test split's 95 % interval of a winner's three
  runs holds its accuracy on the other test images.
- `shuffled`: the same with shuffled labels, a search a seed: how many claim to have found something.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from search.study.intervals import Sample, beats_majority, of_new_images
from search.study.optimism import corrected_accuracy
from trainables.files.cache import Cache
from trainables.image import backbones
from trainables.image.data import DataConfig, ImageData, load
from trainables.image.decode import to_frame
from trainables.image.hparams import ImageHParams as HParams
from trainables.image.modality import IMAGE
from trainables.modality import Backbone
from trainables.training.calibration import calibrated, classes_in, threshold
from trainables.training.doubts import doubts, left_out_shares
from trainables.training.features import FrozenFeatures
from trainables.training.loop import Training, fit
from trainables.training.metrics import calibration_error
from trainables.training.model import build_model
from trainables.training.settings import Settings
from trainables.training.twins import twins

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "ring")
TRIALS, VALIDATION, RUNS, TOP = 64, 500, 3, 3


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where things are: the node's cache, a folder of drawn images, and the backbone."""

    cache: Path
    drawn: Path
    backbone: Backbone

    def data(self, name: str, seed: int, **limits: int) -> ImageData:
        """One of the three sets, split by a seed."""
        source = str(self.drawn) if name == "shapes" else name
        return load(DataConfig(source=source, seed=seed, **limits), cache_dir=self.cache)

    def features(self, data: ImageData, places: Tensor, stages: bool = False) -> Tensor:
        """What the frozen backbone sees of images, float [N, F]."""
        hparams = HParams(image_size=SIZE, features="stages" if stages else "last")
        frozen = FrozenFeatures(
            model=build_model(self.backbone, hparams, len(data.classes)),
            trunk_key=f"{self.backbone.name} {self.backbone.weights_hash} {self.backbone.preprocessing}",
            examples=data.examples(self.backbone.preprocessing),
            indices=places,
            policy=IMAGE.plain(self.backbone.preprocessing),
            data_key=data.fingerprint,
            cache=Cache(self.cache, 4 * 2**30),
            dtype=torch.float16,
            device=torch.device("cpu"),
        )
        return frozen.view(0).float()


LIMITS: dict[str, dict[str, int]] = {
    "digits": {},
    "fashion-mnist": {"train_limit": 1000, "validation_limit": 500, "test_limit": 2000},
    "shapes": {"train_limit": 1200, "validation_limit": 400},
}


def draw_shape(pen: ImageDraw.ImageDraw, name: str, x: int, y: int, r: int, ink: Any) -> None:
    """One of `SHAPES` around a place."""
    box = (x - r, y - r, x + r, y + r)
    match name:
        case "circle":
            pen.ellipse(box, fill=ink)
        case "square":
            pen.rectangle(box, fill=ink)
        case "triangle":
            pen.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill=ink)
        case "cross":
            pen.line((x - r, y, x + r, y), fill=ink, width=3)
            pen.line((x, y - r, x, y + r), fill=ink, width=3)
        case "ring":
            pen.ellipse(box, outline=ink, width=3)


def draw_shapes(folder: Path, count: int = 3000, seed: int = 0) -> None:
    """Shapes of a class each, some of them hardly to be told under noise."""
    numbers = np.random.default_rng(seed)
    for name in SHAPES:
        (folder / name).mkdir(parents=True)
        for place in range(count):
            image = Image.new("L", (40, 40), int(numbers.integers(90, 120)))
            pen = ImageDraw.Draw(image)
            x, y, r = (int(each) for each in numbers.integers((12, 12, 4), (28, 28, 11)))
            ink = int(numbers.integers(125, 190))
            draw_shape(pen, name, x, y, r, ink)
            noisy = np.asarray(image, dtype=float) + numbers.normal(0, 25, (40, 40))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{place:04}.png")


# Arms


def calibration(bench: Bench, seeds: int) -> dict[str, Any]:
    """Errors before and after, and coverage, of a stepped head, a solved one and a fine-tune."""
    kinds: dict[str, dict[str, Any]] = {
        "probe": {"strategy": "probe", "lr": 0.01},
        "ridge": {"strategy": "probe", "solver": "ridge", "features": "stages"},
    }
    found: dict[str, Any] = {}
    for name, limits in LIMITS.items():
        limits = {split: count for split, count in limits.items() if split != "test_limit"}
        for kind, knobs in kinds.items():
            before, after, perfect, covered = [], [], [], []
            for seed in range(seeds):
                data = bench.data(name, seed, **limits)
                hparams = HParams(image_size=SIZE, max_epochs=6, seed=seed, **knobs)
                training = Training(
                    hparams, data, bench.backbone, settings=Settings(), cache=Cache(bench.cache, 4 * 2**30)
                )
                fit(training, lambda epoch, metrics: None)
                held, test = training.logits("validation"), training.logits("test")
                labels, answers = (data.labels[data.splits[split]] for split in ("validation", "test"))
                factor = calibrated(held, labels).factor
                before.append(calibration_error(test.softmax(1), answers))
                shares = (factor * test).double().softmax(1)
                after.append(calibration_error(shares, answers))
                perfect.append(_of_perfect(shares))
                least = threshold((factor * held).softmax(1), labels, 0.9)
                inside = classes_in(shares, least)
                covered.append(float(inside[torch.arange(len(answers)), answers].double().mean()))
            found[f"{name}, {kind}"] = {
                "test_images": len(answers),
                "before": mean(before),
                "after": mean(after),
                "after_largest": round(max(after), 4),
                "of_perfect_probabilities": mean(perfect),
                "coverage": mean(covered),
                "coverages": [round(each, 3) for each in covered],
            }
    return found


def _of_perfect(shares: Tensor, times: int = 10) -> float:
    """The calibration error that probabilities [N, C] show which hold: of labels that are drawn by them."""
    numbers = torch.Generator().manual_seed(0)
    drawn = (torch.multinomial(shares, 1, generator=numbers).squeeze(1) for _ in range(times))
    return statistics.fmean(calibration_error(shares, labels) for labels in drawn)


def labels(bench: Bench, seeds: int) -> dict[str, Any]:
    """Precision at 5 % where 5 % of labels are changed."""
    found: dict[str, Any] = {}
    for name in LIMITS:
        limits = {"train_limit": 1000, "validation_limit": 300, "test_limit": 200}
        data = bench.data(name, 0, **limits)
        places, classes = torch.arange(len(data.labels)), len(data.classes)
        features = bench.features(data, places, stages=True)
        precisions = []
        for seed in range(seeds):
            numbers = torch.Generator().manual_seed(seed)
            count = len(places) // 20
            wrong = torch.randperm(len(places), generator=numbers)[:count]
            told = data.labels.clone()
            told[wrong] = (told[wrong] + torch.randint(1, classes, (count,), generator=numbers)) % classes
            shares = left_out_shares(features, told, classes)
            doubted = {each.place for each in doubts(shares, told)[:count]}
            precisions.append(len(doubted & set(wrong.tolist())) / count)
        found[name] = {"precision_at_5_percent": mean(precisions), "each": [round(p, 3) for p in precisions]}
    return found


def _altered(pixels: np.ndarray, kind: str, numbers: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    if kind == "encoded":
        output = io.BytesIO()
        image.save(output, "JPEG", quality=70)
        return np.asarray(Image.open(output))
    if kind == "resized":
        scale = numbers.choice([0.75, 0.9, 1.5, 2.0])
        return np.asarray(
            image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        )
    most = max(1, round(0.07 * height))
    down, right = numbers.integers(-most, most + 1, 2)
    right = most if down == right == 0 else right
    padded = np.pad(pixels, ((most, most), (most, most), (0, 0)), mode="edge")
    return padded[most + down : most + down + height, most + right : most + right + width]


def planted_twins(bench: Bench, seeds: int) -> dict[str, Any]:
    """The share of planted copies that is found, by kind, and what else is told."""
    found: dict[str, Any] = {}
    kinds, how = ("encoded", "resized", "shifted"), bench.backbone.preprocessing
    for name in LIMITS:
        data = bench.data(name, 0, train_limit=900, validation_limit=100, test_limit=100)
        places = data.splits["train"]
        pictures = [data.image(int(place)).permute(1, 2, 0).numpy() for place in places]
        own = bench.features(data, places)
        shares: dict[str, list[float]] = {kind: [] for kind in kinds}
        others = []
        for seed in range(seeds):
            numbers = np.random.default_rng(seed)
            chosen = numbers.choice(len(places), 90, replace=False)
            copies = [_altered(pictures[at], kinds[n % 3], numbers) for n, at in enumerate(chosen)]
            frames = torch.stack(
                [
                    to_frame(
                        torch.from_numpy(each.copy()).permute(2, 0, 1), how.frame_size, how.interpolation
                    )
                    for each in copies
                ]
            )
            with torch.no_grad():
                model = build_model(bench.backbone, HParams(image_size=SIZE), len(data.classes))
                theirs = model.features(IMAGE.plain(how)(frames, torch.zeros(len(frames), dtype=torch.int64)))
            examples = torch.cat([data.examples(how)[places], frames])
            small = IMAGE.thumbnails(examples)
            assert small is not None
            pairs = {(one, two) for one, two, _ in twins(small, torch.cat([own, theirs]))}
            planted = [(int(at), len(places) + n) for n, at in enumerate(chosen)]
            for n, kind in enumerate(kinds):
                shares[kind].append(statistics.fmean(pair in pairs for pair in planted[n::3]))
            others.append(len([pair for pair in pairs if pair[1] < len(places)]))
        found[name] = {
            **{kind: mean(each) for kind, each in shares.items()},
            "found": mean([each for kind in kinds for each in shares[kind]]),
            "other_pairs_of_900": round(statistics.fmean(others), 1),
        }
    many = torch.rand(10_000, 32, 32)
    began = time.perf_counter()
    twins(many, torch.randn(10_000, 1280))
    return {**found, "seconds_for_10,000": round(time.perf_counter() - began, 1)}


def folds(bench: Bench, seeds: int) -> dict[str, Any]:
    """64 solved heads with features in the cache: five folds over one hold-out."""
    data, cache = bench.data("fashion-mnist", 0, **LIMITS["fashion-mnist"]), Cache(bench.cache, 4 * 2**30)

    def seconds(settings: Settings) -> float:
        began = time.perf_counter()
        for number in range(TRIALS):
            knobs: dict[str, Any] = {"solver": "ridge", "class_weights": bool(number % 2)}
            hparams = HParams(image_size=SIZE, strategy="probe", seed=number, **knobs)
            Training(hparams, data, bench.backbone, settings=settings, cache=cache).run_epoch()
        return time.perf_counter() - began

    seconds(Settings(folds=5))  # computes the features
    alone = [seconds(Settings()) for _ in range(seeds)]
    folded = [seconds(Settings(folds=5)) for _ in range(seeds)]
    ratio = statistics.median(folded) / statistics.median(alone)
    return {"hold_out_seconds": mean(alone), "folds_seconds": mean(folded), "ratio": round(ratio, 2)}


class Probes:
    """Searches of heads on cached features, each of a few of them and with a strength of its own.

    Args:
        features, labels: of all images, [N, F] and [N].
        seed: of the split: 1,000 to train, 500 to validate, 500 to test, the rest nobody touches.
    """

    def __init__(self, features: Tensor, labels: Tensor, seed: int) -> None:
        self.numbers = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=self.numbers)
        self.features, self.labels = features, labels
        self.train, self.validation = order[:1000], order[1000 : 1000 + VALIDATION]
        self.test, self.untouched = order[1500:2000], order[2000:]
        self.classes = int(labels.max()) + 1
        width = features.shape[1]
        self.trials = [self._drawn(width) for _ in range(TRIALS)]

    def _drawn(self, width: int) -> tuple[Tensor, float]:
        """The features that a head reads, and the strength of its penalty."""
        count = int(torch.randint(60, 400, (1,), generator=self.numbers))
        columns = torch.randperm(width, generator=self.numbers)[:count]
        return columns, float(10 ** (6 * torch.rand(1, generator=self.numbers) - 3))

    def right(self, trial: tuple[Tensor, float], train: Tensor, *places: Tensor) -> list[Tensor]:
        """Whether a head tells each of some images right, for each of several lists of them."""
        columns, strength = trial
        own = self.features[train][:, columns]
        targets = torch.nn.functional.one_hot(self.labels[train], self.classes).float()
        gram = own.T @ own + strength * len(train) * torch.eye(len(columns))
        weight = torch.linalg.solve(gram, own.T @ (targets - targets.mean(0)))
        return [
            (self.features[each][:, columns] @ weight + targets.mean(0)).argmax(1) == self.labels[each]
            for each in places
        ]

    def run(self) -> dict[str, Any]:
        """What a search of these says, and what is true."""
        every = [self.right(trial, self.train, self.validation)[0] for trial in self.trials]
        values = [share(each) for each in every]
        order = sorted(range(TRIALS), key=lambda n: -values[n])
        (true,) = self.right(self.trials[order[0]], self.train, self.untouched)
        splits = (self.validation, self.test, self.untouched)
        runs = {
            n: [list(map(share, self.right(self.trials[n], self._resampled(), *splits))) for _ in range(RUNS)]
            for n in order[:TOP]
        }
        winner = max(runs, key=lambda n: statistics.fmean(run[0] for run in runs[n]))
        validated, tests, truths = zip(*runs[winner], strict=True)
        return {
            "selected": values[order[0]],
            "corrected": corrected_accuracy([every[n].tolist() for n in order]),
            "true": share(true),
            "test_interval": of_new_images(tests, len(self.test)),
            "validation_interval": of_new_images(validated, VALIDATION),
            "winner_true": statistics.fmean(truths),
            "trial_claims": beats_majority(values[order[0]], self._sample(self.validation), TRIALS),
            "winner_claims": beats_majority(statistics.fmean(tests), self._sample(self.test), TOP),
        }

    def _resampled(self) -> Tensor:
        """Other images from the same: what another seed does to a head."""
        return self.train[torch.randint(len(self.train), (len(self.train),), generator=self.numbers)]

    def _sample(self, places: Tensor) -> Sample:
        counts = torch.bincount(self.labels[places])
        return Sample(count=len(places), majority=float(counts.max() / counts.sum()))


def _pool(bench: Bench) -> tuple[Tensor, Tensor]:
    """Standardised features and labels of 6,000 images of Fashion-MNIST."""
    data = bench.data("fashion-mnist", 0, train_limit=1500, validation_limit=500, test_limit=4000)
    features = bench.features(data, torch.arange(len(data.labels)))
    return (features - features.mean(0)) / features.std(0).clamp(min=1e-6), data.labels


def winners(bench: Bench, seeds: int) -> dict[str, Any]:
    """Ten draws a seed."""
    features, classes = _pool(bench)
    found = [Probes(features, classes, seed).run() for seed in range(10 * seeds)]

    def covers(name: str) -> float:
        return mean([each[name][0] <= each["winner_true"] <= each[name][1] for each in found])

    return {
        "draws": len(found),
        "selected_less_true": mean([each["selected"] - each["true"] for each in found]),
        "corrected_less_true": mean([each["corrected"] - each["true"] for each in found]),
        "test_interval_covers": covers("test_interval"),
        "test_interval_width": mean([each["test_interval"][1] - each["test_interval"][0] for each in found]),
        "validation_interval_covers": covers("validation_interval"),
    }


def shuffled(bench: Bench, seeds: int) -> dict[str, Any]:
    """Searches whose labels say nothing."""
    features, classes = _pool(bench)
    found = []
    for seed in range(seeds):
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(1000 + seed))
        found.append(Probes(features, classes[order], seed).run())
    return {
        "searches": len(found),
        "claims_of_best": sum(each["trial_claims"] for each in found),
        "claims_of_finalists": sum(each["winner_claims"] for each in found),
        "best_value": mean([each["selected"] for each in found]),
        "corrected": mean([each["corrected"] for each in found]),
        "true": mean([each["true"] for each in found]),
    }


def share(right: Tensor) -> float:
    """Of right answers."""
    return float(right.float().mean())


def mean(values: list[Any]) -> float:
    """Rounded."""
    return round(statistics.fmean(float(each) for each in values), 4)


ARMS: dict[str, Callable[[Bench, int], dict[str, Any]]] = {
    "calibration": calibration,
    "labels": labels,
    "twins": planted_twins,
    "folds": folds,
    "winners": winners,
    "shuffled": shuffled,
}


def lines(arms: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    """What each arm found."""
    with tempfile.TemporaryDirectory(prefix="holds-") as place:
        drawn = Path(place) / "shapes"
        draw_shapes(drawn)
        built = backbones.build("efficientnet_lite0", image_size=SIZE)
        bench = Bench(cache=Path(place) / "cache", drawn=drawn, backbone=replace(built))
        for arm in arms:
            began = time.perf_counter()
            found = ARMS[arm](bench, seeds)
            yield {"arm": arm, "seeds": seeds, **found, "seconds": round(time.perf_counter() - began, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for line in lines(given.arms, given.seeds):
        print(json.dumps(line), flush=True)
