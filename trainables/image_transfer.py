"""The Tune trainable: a dictionary in, one epoch a step, everything else in `loop`."""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ray import tune

from trainables.files.cache import Cache, default_root
from trainables.files.claim import Claim
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import Epochs, model_metric, read_epochs
from trainables.image import augment, backbones, data  # noqa: F401  while a process waits for its first trial
from trainables.modalities import modality
from trainables.modality import Backbone, Data
from trainables.record import BEST, EPOCHS, MODEL_FOLDER, PROGRESS_FILE, TEST_METRICS, TOLD
from trainables.training.delta import load_delta
from trainables.training.footprint import keep_within
from trainables.training.loop import Training
from trainables.training.settings import Monitor, Settings

__all__ = ["ImageTransfer", "TrialConfig"]

_STATE_SECONDS = 10.0
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
    score_test: NotRequired[bool]


class ImageTransfer(tune.Trainable):  # type: ignore[misc]
    """One trial of transfer learning on an actor that stays warm between trials.

    The data, the backbones and the cache stay in the process. A trial that left a state in its folder
    goes on from there, whichever process and node it is on. It never says that it is done: whoever
    reads its results decides.
    """

    def setup(self, config: TrialConfig) -> None:
        self._claim: Claim | None = None
        self.reset_config(config)

    def reset_config(self, new_config: TrialConfig) -> bool:
        # Real work waits for the first step, where Tune retries what fails.
        self._trial = new_config
        self._training: Training | None = None
        self._release()
        self._saved = time.monotonic()
        return True

    def step(self) -> dict[str, Any]:
        """Runs one epoch and gives its metrics, `epoch`, and those of the kept epoch under `best`.

        The last epoch's `best` has `test_*` too where the trial is to be scored on the test split.
        """
        told: list[str] = []
        if self._training is None:
            self._reads: set[str] = set()
            self._release()
            self._claim = Claim(Path(self._trial["folder"]), self._trial.get("checkpoints"))
            if self.trial_resources is not None:
                keep_within(self.trial_resources.required_resources.get("GPU", 0))
            self._training, told = _training(self._trial, self._claim.folder, self._reads)
            self._repeated = frozenset(self._training.epochs)
        assert self._claim is not None, "claimed with the first step"
        training, folder = self._training, self._claim.folder
        metrics = training.run_epoch()
        self._claim.check()
        (folder / PROGRESS_FILE).unlink(missing_ok=True)
        training.save_record(folder)
        if training.phase_began:
            self._check_reads(training)
        if training.improved and not (training.epoch in self._repeated and _stands(training, folder)):
            training.save_model(folder)
        if time.monotonic() - self._saved > _STATE_SECONDS and not training.finished:
            training.save_state(folder)
            self._saved = time.monotonic()
        self._claim.share()
        scored = training.finished and training.best and self._trial.get("score_test")
        return {
            **metrics,
            "epoch": training.epoch,
            BEST: {**(training.best or {}), **(_test_scores(training, folder) if scored else {})},
            "node": platform.node(),
            "pid": os.getpid(),
            EPOCHS: [{"epoch": epoch, **known} for epoch, known in sorted(training.epochs.items())],
            TOLD: told,
        }

    def _check_reads(self, training: Training) -> None:
        """Fails a trial whose search varies something that nothing looks at: it would learn noise."""
        if training.epoch <= training.phases[-1].first:
            return  # a later phase may still read it
        if training.phases[-1].kind == "trunk" and training.model.trunk_is_frozen:
            return  # `freeze` left nothing of the trunk to train, so its knobs have no use this time
        unread = set(self._trial["sampled"]) & set(training.hparams.active) - self._reads
        if unread:
            raise ValueError(f"sampled, but nothing read it: {', '.join(sorted(unread))}")

    def cleanup(self) -> None:
        self._training = None
        self._release()

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
        self._claim = None


def _training(trial: TrialConfig, folder: Path, reads: set[str]) -> tuple[Training, list[str]]:
    """The training as its folder left it, and what was found damaged there.

    It goes on from its state where that and the model of its best epoch are whole; else it begins again,
    knowing what it told of its epochs.
    """
    settings = {**trial["settings"], "monitor": Monitor(**trial["settings"]["monitor"])}
    if "trained_on" in settings:
        settings["trained_on"] = tuple(settings["trained_on"])
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
        cache=_cache(cache_dir, trial["cache_bytes"]) if trial["cache_bytes"] else None,
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
    if best is not None and best["epoch"] <= training.epoch and not _stands(training, folder):
        raise Damaged(
            f"{folder / MODEL_FOLDER} is not the model of epoch {best['epoch']:g}, the trial's best"
        )


def _stands(training: Training, folder: Path) -> bool:
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


def _test_scores(training: Training, folder: Path) -> dict[str, float]:
    """The test split's scores of the kept model; nothing where it has no images."""
    if not len(training.data.splits["test"]):
        return {}
    training.model.load_state_dict(load_delta(folder / MODEL_FOLDER).model.state_dict())
    found = training.evaluate("test")
    return dict(zip(TEST_METRICS, (found.loss, found.accuracy, found.macro_f1), strict=True))


@functools.lru_cache(maxsize=1)
def _data(kind: str, cache_dir: str, config: str) -> Data:
    return modality(kind).load(json.loads(config), cache_dir=Path(cache_dir))


@functools.lru_cache(maxsize=4)
def _backbone(kind: str, **asked: Any) -> Backbone:
    return modality(kind).backbone(asked)


@functools.lru_cache(maxsize=1)
def _cache(root: str, max_bytes: int) -> Cache:
    return Cache(Path(root), max_bytes)
