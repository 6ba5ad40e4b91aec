"""Real trials of the default space on tasks that differ, and what a search can learn from them beforehand.

    python benchmarks/portfolio.py record [--to benchmarks/recorded.jsonl] [--processes 2]
    python benchmarks/portfolio.py choose
    python benchmarks/portfolio.py regret [--seeds 20] [--samplers tpe random ...] [--pruners none asha ...]

`record` draws configurations of the default space (EfficientNet-Lite0, without the size of images, which is
the task's) and trains each on every task: Fashion-MNIST at two sizes, with few labels and with a long
tail, scikit-learn's digits, and three sets that are drawn here, of textures, shapes and colours. Each becomes
a line of JSON as it ends, and what is there is not trained again. A line has the validation accuracy of each
epoch, what the search would have counted, the accuracy on test images that chose nothing, and the seconds of
one core.

`choose` writes the file that `search.study.portfolio` reads, and prints the regret of the first trials that
this picks where every task is left out once of the choice, next to that of TPE and of random draws.

`regret` lets samplers and pruners search at equal cost, each draw being worth what the recorded trial nearest
to it was. Regret is told in points of test accuracy below the best recorded trial.
"""

from __future__ import annotations

import argparse
import colorsys
import functools
import json
import math
import multiprocessing
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from holds import SHAPES, draw_shape
from PIL import Image, ImageDraw

from search.spec.search_spec import SearchSpec, read_spec
from search.study import space
from search.study.portfolio import Portfolio
from search.study.pruners import build_pruner
from search.study.recipes import recipes
from search.study.samplers import build_sampler
from trainables.files.cache import Cache
from trainables.image import backbones
from trainables.image.data import DataConfig, ImageData, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.image.modality import IMAGE
from trainables.training.loop import Training, fit
from trainables.training.settings import Settings

RECORDED = Path(__file__).parent / "recorded.jsonl"
SPEC = """
name: portfolio
data: {source: digits, image_size: 40}
search: {trials: 64, max_epochs: 6}
space: default
cache: {views: 2}
"""
KINDS = {"solved": 88, "stepped": 138, "lp_ft": 14, "full": 10, "partial": 10}
"""How many configurations of a kind there are: of heads on a frozen trunk, solved for or found in steps, and
of strategies that train it."""
COUNTS = (1, 3, 10)
FIRST = COUNTS[-1]
"""Trials that are chosen to begin with."""


# Tasks


@dataclass(frozen=True, kw_only=True)
class Task:
    """Images to learn from, and how large they are to be."""

    size: int = 40
    source: str = "fashion-mnist"
    train: int | None = 128
    validation: int | None = 150
    orientation_matters: bool = True


TASKS = {
    "clothes": Task(),
    "clothes, large": Task(size=56),
    "clothes, few labels": Task(train=50, validation=100),
    "clothes, long tail": Task(source="tail", train=None, validation=None),
    "digits": Task(source="digits"),
    "textures": Task(source="textures", orientation_matters=False),
    "shapes": Task(source="shapes", orientation_matters=False),
    "colours": Task(source="colours", orientation_matters=False),
}
TEST = 600
TAIL = (60, 42, 30, 20, 14, 10, 8, 6, 5, 5)
"""Training images of each class, where a tail is long."""
COUNT = 260
"""Images of a class that are drawn."""
SIDE = 40


def read_task(name: str, folder: Path) -> ImageData:
    """The images of a task, drawn where they are."""
    task = TASKS[name]
    source = task.source
    if source in ("textures", "shapes", "colours", "tail"):
        place = folder / source
        if not place.exists():
            (_write_tail if source == "tail" else functools.partial(_write_drawn, source))(place)
        source = str(place)
    config = DataConfig(
        source=source,
        seed=0,
        validation=0.2,
        test=0.5,
        train_limit=task.train,
        validation_limit=task.validation,
        test_limit=TEST,
        orientation_matters=task.orientation_matters,
    )
    return load(config, cache_dir=folder)


def _write_tail(place: Path) -> None:
    data = load(DataConfig(source="fashion-mnist", seed=1), cache_dir=place.parent)
    for split, counts in (("train", TAIL), ("validation", (15,) * 10), ("test", (TEST // 10,) * 10)):
        of = data.splits[split]
        for label, count in enumerate(counts):
            for index in of[data.labels[of] == label][:count].tolist():
                file = place / split / str(label) / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(data.image(index).permute(1, 2, 0).numpy()).save(file)


def _write_drawn(kind: str, place: Path) -> None:
    chance = np.random.default_rng(0)
    for name, draw in DRAWN[kind].items():
        (place / name).mkdir(parents=True)
        for number in range(COUNT):
            noisy = draw(chance) + chance.normal(0, 22, (SIDE, SIDE, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / name / f"{number:04}.png")


Chance = np.random.Generator
Picture = np.ndarray[Any, Any]


def _texture(chance: Chance, name: str) -> Picture:
    """Stripes, checks, rings, blobs, grain or dots, at any angle, scale and contrast."""
    y, x = np.mgrid[:SIDE, :SIDE] - chance.uniform(0, SIDE, (2, 1, 1))
    angle, length = chance.uniform(0, np.pi), chance.uniform(5, 9)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave, other = np.sin(2 * np.pi * along / length), np.sin(2 * np.pi * across / length)
    match name:
        case "stripes":
            field = wave
        case "checks":
            field = np.sign(wave * other)
        case "rings":
            field = np.sin(2 * np.pi * np.hypot(x - SIDE / 2, y - SIDE / 2) / length)
        case "dots":
            field = np.maximum(wave, 0) * np.maximum(other, 0) * 2 - 0.5
        case _:
            coarse = chance.normal(0, 1, (SIDE // (6 if name == "blobs" else 2),) * 2)
            grey = Image.fromarray(coarse.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            field = np.asarray(grey)
    grey = chance.uniform(90, 160) + chance.uniform(8, 26) * field
    return np.repeat(grey[:, :, None], 3, axis=2)


def _shape(chance: Chance, name: str, ink: Sequence[int] | None = None) -> Picture:
    """A thing somewhere, of any size, hardly brighter than what is behind it."""
    image = Image.new("RGB", (SIDE, SIDE), (int(chance.integers(90, 120)),) * 3)
    pen = ImageDraw.Draw(image)
    x, y, r = (int(each) for each in chance.integers((12, 12, 4), (28, 28, 11)))
    draw_shape(pen, name, x, y, r, tuple(ink or (int(chance.integers(125, 190)),) * 3))
    return np.asarray(image, dtype=float)


def _colour(chance: Chance, place: int) -> Picture:
    """A thing of any shape in one of six hues, none of them pure."""
    hue = (place / 6 + chance.normal(0, 0.035)) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, chance.uniform(0.15, 0.4), chance.uniform(0.5, 0.8))
    ink = [int(255 * each) for each in (red, green, blue)]
    return _shape(chance, SHAPES[chance.integers(len(SHAPES))], ink)


DRAWN: Mapping[str, Mapping[str, Any]] = {
    "textures": {
        name: functools.partial(_texture, name=name)
        for name in ("stripes", "checks", "rings", "dots", "blobs", "grain")
    },
    "shapes": {name: functools.partial(_shape, name=name) for name in SHAPES},
    "colours": {f"hue {place}": functools.partial(_colour, place=place) for place in range(6)},
}


# Trials


@functools.cache
def the_spec() -> SearchSpec:
    """The spec whose space the configurations are of."""
    return read_spec(SPEC)


@functools.cache
def configurations() -> tuple[HParams, ...]:
    """The configurations, the same in every process: the recipes, then drawn until there are enough."""
    spec, left, found = the_spec(), dict(KINDS), dict[str, HParams]()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for values in recipes(spec):
        study.enqueue_trial(space.fitted_params(spec, values))
    while any(left.values()):
        drawn = space.suggest(study.ask(), spec, len(found))
        assert isinstance(drawn, HParams)
        read = json.dumps({**drawn.active, "seed": 0})  # others are the same trial
        if left[kind := _kind(drawn)] and read not in found:
            left[kind] -= 1
            found[read] = drawn
    return tuple(found.values())


def _kind(hparams: HParams) -> str:
    if hparams.strategy != "probe":
        return hparams.strategy
    return "solved" if hparams.head_is_solved else "stepped"


@functools.lru_cache(maxsize=1)
def _opened(task: str, folder: Path) -> tuple[ImageData, Any, Cache]:
    backbone = backbones.build("efficientnet_lite0", image_size=TASKS[task].size)
    return read_task(task, folder), backbone, Cache(folder / "cache", 8 * 2**30)


def trained(task: str, number: int, folder: Path) -> dict[str, Any]:
    """The line of a trial."""
    data, backbone, cache = _opened(task, folder)
    hparams = HParams.from_dict({**configurations()[number].to_dict(), "image_size": TASKS[task].size})
    settings = Settings(views=the_spec().cache.views, features=("last", "stages", "grid"))
    training = Training(hparams, data, backbone, settings=settings, cache=cache)
    values, seconds, diverged = list[float](), 0.0, False

    def report(epoch: int, metrics: Mapping[str, float]) -> bool:
        nonlocal seconds, diverged
        values.append(round(metrics["val_accuracy"], 4))
        seconds += metrics["epoch_seconds"]
        diverged = not math.isfinite(metrics["train_loss"])
        return diverged

    best = fit(training, report)
    expected = None if best is None or diverged else round(best["val_accuracy"], 4)
    tested = None
    if expected is not None:
        if training.model.trunk_is_frozen:
            features = training._trunk.features("test", training.model).view(0)
            with torch.no_grad():
                logits = training.model.eval().head(features.float())
        else:
            logits = training.logits("test")
        right = logits.argmax(1) == data.labels[data.splits["test"]]
        tested = round(float(right.double().mean()), 4)
    return {
        "task": task,
        "configuration": number,
        "values": values,
        "counted": expected,
        "test": tested,
        "seconds": round(seconds, 3),
    }


def record(to: Path, processes: int) -> None:
    """Trains what is not there yet."""
    there = {(each["task"], each["configuration"]) for each in lines(to)} if to.exists() else set()
    # One task after another, so that a process opens few; the costly trials of a task first.
    numbers = sorted(range(len(configurations())), key=lambda n: configurations()[n].strategy == "probe")
    todo = [(task, number) for task in TASKS for number in numbers if (task, number) not in there]
    with (
        tempfile.TemporaryDirectory(prefix="portfolio-") as name,
        _processes(processes) as pool,
        to.open("a") as file,
    ):
        folder = Path(name)
        for task in TASKS:  # before two processes would
            read_task(task, folder)
        ran = (pool.submit(trained, task, number, folder) for task, number in todo)
        for done in list(ran):
            file.write(json.dumps(done.result()) + "\n")
            file.flush()


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """What is recorded."""
    with file.open() as opened:
        for line in opened:
            yield json.loads(line)


# What they say


@dataclass(frozen=True, kw_only=True)
class Table:
    """Recorded trials.

    Attributes:
        known: what a search reads of them.
        seconds: float [T, C].
        values: of each trial, of each epoch.
    """

    known: Portfolio
    seconds: Picture
    values: Mapping[tuple[int, int], Sequence[float]]

    @classmethod
    def of(cls, file: Path) -> Table:
        """What a file holds of the configurations that every task has."""
        ran = {(each["task"], each["configuration"]): each for each in lines(file)}
        tasks = tuple(task for task in TASKS if any(known == task for known, _ in ran))
        every = range(len(configurations()))
        if missing := [(task, n) for task in tasks for n in every if (task, n) not in ran]:
            raise SystemExit(
                f"{len(missing)} trials are not recorded yet, {missing[0]} the first: run `record`"
            )

        def array(name: str) -> Picture:
            return np.array([[ran[task, n][name] or 0.0 for n in every] for task in tasks])

        return cls(
            known=Portfolio(
                tasks=tasks,
                configurations=tuple(map(_told, configurations())),
                counted=array("counted"),
                test=array("test"),
            ),
            seconds=array("seconds"),
            values={(place, n): ran[task, n]["values"] for place, task in enumerate(tasks) for n in every},
        )


def _told(hparams: HParams) -> dict[str, Any]:
    """What is kept of a configuration: what a trial of it reads, but for its seed and its backbone."""
    left_out = ("seed", "max_epochs", *IMAGE.backbone_knobs)
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in hparams.active.items()
        if name not in left_out
    }


def choose(file: Path, seeds: int, to: Path) -> dict[str, Any]:
    """What first trials would be worth on a task that the table does not know; and the file that we ship."""
    table = Table.of(file)
    known = table.known
    to.write_text(known.to_json())
    places, every = range(len(known.configurations)), range(len(known.tasks))
    left_out = {}
    for task, name in enumerate(known.tasks):
        first = known.complementing(places, FIRST, tasks=[each for each in every if each != task])
        left_out[name] = [100 * known.regret(task, first[:count]) for count in COUNTS]
    others = {
        (sampler, trials): [
            searched(table, task, _spec_with(sampler, "none"), seed, trials=trials).regret
            for task in every
            for seed in range(seeds)
        ]
        for sampler in ("tpe", "random")
        for trials in (FIRST, 64)
    }
    return {
        "benchmark": "portfolio",
        "trials": known.test.size,
        "bytes": to.stat().st_size,
        "regret_left_out": {name: [round(each, 2) for each in told] for name, told in left_out.items()},
        **{
            f"first_{count}": _mean(told)
            for count, told in zip(COUNTS, zip(*left_out.values(), strict=True), strict=True)
        },
        **{f"{sampler}_{trials}": _mean(each) for (sampler, trials), each in others.items()},
    }


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """A mean and its standard error."""
    return round(statistics.fmean(values), 2), _error(values)


def _error(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return round(statistics.stdev(values) / len(values) ** 0.5, 2)


# Searches of what is recorded


@functools.cache
def _coded() -> Picture:
    """The configurations as numbers [C, D]: choices as codes, rates by their logarithm; NaN: not read."""
    return np.array([_code(each) for each in configurations()])


CHOICES = (
    "strategy", "solver", "features", "policy", "mixing", "optimizer", "schedule", "batch_norm", 
    "layer_rates", "regulariser", "class_weights",
)  # fmt: skip
SCALES: Mapping[str, tuple[float, float, bool]] = {
    "lr": (3e-4, 3e-2, True),
    "trunk_lr": (3e-5, 5e-4, True),
    "batch_size": (16, 256, True),
    "freeze": (0.0, 0.9, False),
    "dropout": (0.0, 0.4, False),
    "label_smoothing": (0.0, 0.1, False),
    "warmup_epochs": (0.0, 1.0, False),
    "ra_magnitude": (0, 30, False),
    "lp_share": (0.25, 0.5, False),
    "layer_decay": (0.65, 0.75, False),
    "mixing_alpha": (0.1, 1.0, False),
    "regulariser_strength": (1e-4, 1e-1, True),
}
WEIGHTS = {"strategy": 100.0, "solver": 100.0, "features": 3.0, "policy": 2.0, "lr": 3.0, "trunk_lr": 3.0}
"""How much more than others a difference counts: another strategy has other epochs."""


def _code(hparams: HParams) -> list[float]:
    active = hparams.active
    told = [float(_number(name, active[name])) if name in active else math.nan for name in CHOICES]
    for name, (low, high, log) in SCALES.items():
        if active.get(name) is None:
            told.append(math.nan)
        elif log:
            told.append(math.log(active[name] / low) / math.log(high / low))
        else:
            told.append((active[name] - low) / (high - low))
    return told


@functools.cache
def _number(name: str, value: Any) -> int:
    """A number for a choice, another for each."""
    return zlib.crc32(f"{name} {value}".encode())


def nearest(hparams: HParams) -> int:
    """The recorded configuration that is most like another one."""
    known, own = _coded(), np.array(_code(hparams))
    apart = np.abs(known - own)
    apart[:, : len(CHOICES)] = apart[:, : len(CHOICES)] != 0
    apart = np.where(np.isnan(known) & np.isnan(own), 0.0, np.where(np.isnan(known - own), 1.0, apart))
    weights = np.array([WEIGHTS.get(name, 1.0) for name in (*CHOICES, *SCALES)])
    return int((apart * weights).sum(1).argmin())


@dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search of recorded trials came to.

    Attributes:
        regret: points of test accuracy that its best lacks of the best there is.
        trials: of each the place of what it was worth, and whether it was completed.
    """

    regret: float
    trials: Sequence[tuple[int, bool]]


def searched(
    table: Table,
    task: int,
    spec: SearchSpec,
    seed: int,
    *,
    trials: int | None = None,
    seconds: float = math.inf,
) -> Searched:
    """A search by the spec's sampler and pruner, for so many trials or so long."""
    spec = spec.model_copy(update={"search": spec.search.model_copy(update={"seed": seed})})
    drawn: dict[int, HParams] = {}
    study = optuna.create_study(
        direction="maximize",
        sampler=build_sampler(spec, 0, lambda trial: False),
        pruner=build_pruner(spec, lambda trial: drawn.get(trial.number)),
    )
    ran, spent = list[tuple[int, bool]](), 0.0
    while spent < seconds and (trials is None or len(ran) < trials):
        trial = study.ask()
        hparams = space.suggest(trial, spec, trial.number)
        assert isinstance(hparams, HParams)
        drawn[trial.number] = hparams
        number = nearest(hparams)
        values = table.values[task, number]
        stopped = False
        for epoch, value in enumerate(values, 1):
            spent += table.seconds[task, number] / len(values)
            trial.report(value, epoch)
            if stopped := len(values) > 1 and trial.should_prune():
                break
        if stopped:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, float(table.known.counted[task, number]))
        ran.append((number, not stopped))
    tried = [number for number, completed in ran if completed] or [number]
    return Searched(regret=100 * table.known.regret(task, tried), trials=ran)


def _spec_with(sampler: str, pruner: str) -> SearchSpec:
    spec = the_spec()
    search = spec.search.model_copy(update={"sampler": sampler, "pruner": pruner})
    return spec.model_copy(update={"search": search})


def _survival(
    table: Table, task: int, trials: Sequence[tuple[int, bool]]
) -> Iterator[tuple[str, bool, bool]]:
    """Of each fine-tuning: its strategy, whether it was completed, and whether its end deserved that.

    As many deserve it as were completed: those that would have ended best.
    """
    tuned = [each for each in trials if configurations()[each[0]].strategy != "probe"]
    completed = sum(done for _, done in tuned)
    order = sorted(range(len(tuned)), key=lambda place: -table.known.counted[task, tuned[place][0]])
    for place, (number, done) in enumerate(tuned):
        yield configurations()[number].strategy, done, place in order[:completed]


def regret_of(file: Path, seeds: int, sampler: str, pruner: str, worth: int) -> dict[str, Any]:
    """The line of a sampler with a pruner."""
    table, spec, began = Table.of(file), _spec_with(sampler, pruner), time.process_time()
    pairs = [(task, seed) for task in range(len(table.known.tasks)) for seed in range(seeds)]
    found = [
        searched(table, task, spec, seed, seconds=worth * float(table.seconds[task].mean()))
        for task, seed in pairs
    ]
    fates = [
        fate
        for (task, _), each in zip(pairs, found, strict=True)
        for fate in _survival(table, task, each.trials)
    ]
    survived = {}
    for strategy in ("lp_ft", "full", "partial"):
        own = [fate[1:] for fate in fates if fate[0] == strategy]
        if own:
            survived[strategy] = [round(statistics.fmean(each), 2) for each in zip(*own, strict=True)]
    return {
        "benchmark": "regret",
        "sampler": sampler,
        "pruner": pruner,
        "worth_trials": worth,
        "searches": len(found),
        "trials": round(statistics.fmean(len(each.trials) for each in found), 1),
        "regret": _mean([each.regret for each in found]),
        "survived_and_deserved": survived,
        "cpu": round(time.process_time() - began),
    }


def regret(
    file: Path, seeds: int, samplers: Sequence[str], pruners: Sequence[str], worth: int, processes: int
) -> Iterator[dict[str, Any]]:
    """A line for each sampler with each pruner."""
    with _processes(processes) as pool:
        told = [
            pool.submit(regret_of, file, seeds, sampler, pruner, worth)
            for sampler in samplers
            for pruner in pruners
        ]
        for each in told:
            yield each.result()


def _processes(count: int) -> ProcessPoolExecutor:
    """So many, of one thread each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin)


def _begin() -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def main() -> None:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("record", "choose", "regret"))
    parser.add_argument("--to", "--file", type=Path, default=RECORDED)
    parser.add_argument("--ship", type=Path, default=IMAGE.portfolio, help="the file that `choose` writes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random", "qmc", "cmaes", "nsga2", "gp"])
    parser.add_argument("--pruners", nargs="+", default=["none", "asha", "hyperband", "median"])
    parser.add_argument("--worth", type=int, default=160, help="cost of a search, in trials of mean cost")
    asked = parser.parse_args()
    _begin()
    if asked.what == "record":
        record(asked.to, asked.processes)
    elif asked.what == "choose":
        print(json.dumps(choose(asked.to, asked.seeds, asked.ship)))
    else:
        given = (asked.seeds, asked.samplers, asked.pruners, asked.worth, asked.processes)
        for line in regret(asked.to, *given):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
