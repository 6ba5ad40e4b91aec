"""A trial in a process, without Ray: its training, as its configuration asks and its folder left it."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from trainables.files.cache import Cache, default_root
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import Epochs, model_metric, read_epochs
from trainables.modalities import modality
from trainables.modality import Backbone, Data
from trainables.record import MODEL_FOLDER, PROGRESS_FILE
from trainables.training.loop import Training
from trainables.training.settings import Monitor, Settings

__all__ = ["TrialConfig", "begun", "has_best_model"]

_PROGRESS_SECONDS = 0.5


class TrialConfig(TypedDict):
    """What a trial is told, in plain values.

    Attributes:
        modality: of what it is a trial; `image` where it is absent.
        number: the trial's number in its study.
        hparams: as `HParams.to_dict` gives them.
        sampled: names of the hyperparameters that the search varies.
        folder: where the trial keeps its state and its model; on storage that all nodes share.
        checkpoints: address at which it keeps them instead; see `Claim`.
        data: as the modality's `load` takes it.
        settings: fields of `Settings`; its monitor as fields of `Monitor`.
        cache_dir: root of the node's cache; None: where the node itself keeps it.
        cache_bytes: bound of the cache; 0: frozen features are not kept.
        features_dir: where frozen features are kept instead of with all else.
        score_test: whether the trial is scored on the test split when it has run all its epochs; a
            search's trials never are, only its finalists and what is made of its winner.
    """

    modality: NotRequired[str]
    number: int
    hparams: dict[str, Any]
    sampled: list[str]
    folder: str
    checkpoints: NotRequired[str | None]
    data: dict[str, Any]
    settings: dict[str, Any]
    cache_dir: str | None
    cache_bytes: int
    features_dir: NotRequired[str]
    score_test: NotRequired[bool]


def begun(trial: TrialConfig, folder: Path, reads: set[str]) -> tuple[Training, list[str]]:
    """The training as its folder left it, and what was found damaged there.

    It goes on from its state where that and the model of its best epoch are whole; else it begins again,
    knowing what it told of its epochs.
    """
    settings = {**trial["settings"], "monitor": Monitor(**trial["settings"]["monitor"])}
    settings |= {
        name: tuple(settings[name]) for name in ("trained_on", "asked", "features") if name in settings
    }
    name = trial.get("modality", "image")
    kind = modality(name)
    hparams = kind.hparams.from_dict(trial["hparams"]).watched(reads)
    asked = {each: getattr(hparams, each) for each in kind.backbone_knobs}
    cache_dir = trial["cache_dir"] or str(default_root())
    new = functools.partial(
        Training,
        hparams,
        _data(name, cache_dir, json.dumps(trial["data"], sort_keys=True)),
        _backbone(name, **asked),
        settings=Settings(**settings),
        cache=_cache(trial.get("features_dir") or cache_dir, trial["cache_bytes"])
        if trial["cache_bytes"]
        else None,
        progress=_progress(folder / PROGRESS_FILE),
    )
    told: list[str] = []
    epochs: Epochs = {}
    try:
        epochs = read_epochs(folder, hparams.to_dict())
    except Damaged as damage:
        told.append(str(damage))
    training = new()
    try:
        training.load_state(folder)
        training.adopt(epochs)
        _check_model(training, folder)
    except Damaged as damage:
        told.append(f"{damage}; the trial begins again")
        known = {**epochs, **training.epochs}
        training = new()
        training.adopt(known)
    return training, told


def _check_model(training: Training, folder: Path) -> None:
    """Sees that the model of the best epoch is there, unless that epoch is yet to be run again.

    Raises:
        Damaged: where it is not.
    """
    best = training.best
    if best is not None and best["epoch"] <= training.epoch and not has_best_model(training, folder):
        raise Damaged(
            f"{folder / MODEL_FOLDER} is not the model of epoch {best['epoch']:g}, the trial's best"
        )


def has_best_model(training: Training, folder: Path) -> bool:
    """Whether the folder holds the model of the best epoch, whole."""
    try:
        metric = model_metric(folder)
    except Damaged:
        return False
    return metric is not None and training.best is not None and metric["epoch"] == training.best["epoch"]


def _progress(file: Path) -> Callable[[str, int, int], None]:
    """Writes what is going on into a file that the search shows, at most twice a second."""
    shown = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > _PROGRESS_SECONDS:
            shown = time.monotonic()
            file.write_text(f"{what}: {done / total:.0%}")

    return show


@functools.lru_cache(maxsize=1)
def _data(kind: str, cache_dir: str, config: str) -> Data:
    return modality(kind).load(json.loads(config), cache_dir=Path(cache_dir))


@functools.lru_cache(maxsize=4)
def _backbone(kind: str, **asked: Any) -> Backbone:
    return modality(kind).backbone(asked)


@functools.lru_cache(maxsize=1)
def _cache(root: str, max_bytes: int) -> Cache:
    return Cache(Path(root), max_bytes)
