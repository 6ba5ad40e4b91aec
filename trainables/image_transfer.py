"""The Tune trainable: a dictionary in, one epoch a step, everything else in `loop`."""

from __future__ import annotations

import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

from trainables import lean

lean.install()  # before anything imports torch

from ray import tune

from trainables.files import sealed
from trainables.files.claim import Claim
from trainables.image import augment, backbones, data  # noqa: F401  while a process waits for its first trial
from trainables.record import BEST, EPOCHS, MODEL_FOLDER, PROGRESS_FILE, TOLD
from trainables.training.delta import load_delta
from trainables.training.footprint import keep_within
from trainables.training.loop import Training
from trainables.trial import TrialConfig, begun, has_best_model

__all__ = ["ImageTransfer", "TrialConfig"]

log = logging.getLogger(__name__)

_STATE_SECONDS = 10.0
_SYNC_SECONDS = 1.0
"""How long what is written in each epoch may stay unsynced while the trial runs: a power cut costs that."""


class ImageTransfer(tune.Trainable):  # type: ignore[misc]
    """One trial of transfer learning on an actor that stays warm between trials.

    The data, the backbones and the cache stay in the process. A trial that left a state in its folder
    goes on from there, whichever process and node it is on. It never says that it is done: whoever
    reads its results decides.
    """

    def setup(self, config: TrialConfig) -> None:
        self._claim: Claim | None = None
        self._unsynced: set[Path] = set()
        self.reset_config(config)

    def reset_config(self, new_config: TrialConfig) -> bool:
        # Real work waits for the first step, where Tune retries what fails.
        self._trial = new_config
        self._training: Training | None = None
        self._release()
        self._saved = self._synced = time.monotonic()
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
            self._training, told = begun(self._trial, self._claim.folder, self._reads)
            self._repeated = frozenset(self._training.epochs)
        assert self._claim is not None, "claimed with the first step"
        training, folder = self._training, self._claim.folder
        metrics = training.run_epoch()
        self._claim.check()
        (folder / PROGRESS_FILE).unlink(missing_ok=True)
        with sealed.later(self._unsynced):
            training.save_record(folder)
            if training.phase_began:
                self._check_reads(training)
            is_saved = training.epoch in self._repeated and has_best_model(training, folder)
            if training.improved and not is_saved:
                training.save_model(folder)
        is_due = time.monotonic() - self._saved > _STATE_SECONDS
        if training.finished or is_due or time.monotonic() - self._synced > _SYNC_SECONDS:
            sealed.sync(self._unsynced)
            self._synced = time.monotonic()
        if is_due and not training.finished:
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
        try:
            sealed.sync(self._unsynced)
        except OSError as error:
            log.warning("what a trial has left may not be on its disk yet: %s", error)
            self._unsynced.clear()
        if self._claim is not None:
            self._claim.release()
        self._claim = None


def _test_scores(training: Training, folder: Path) -> dict[str, float]:
    """The test split's scores of the kept model; nothing where it has no images."""
    if not len(training.data.splits["test"]):
        return {}
    training.model.load_state_dict(load_delta(folder / MODEL_FOLDER).model.state_dict())
    return training.evaluate("test").named("test")
