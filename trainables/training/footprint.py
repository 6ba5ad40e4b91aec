"""The memory of a trial: what it takes, measured in a process of its own, and the bound that it keeps."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import torch

from trainables.modalities import modality
from trainables.training.hparams import HParams
from trainables.training.loop import Training
from trainables.training.settings import Settings

__all__ = ["GIB", "keep_within", "peak_bytes"]

GIB = 2**30
_STEPS = 2
_EVALUATED = 128  # one batch of an evaluation on a GPU


def keep_within(share: float) -> None:
    """Bounds what torch takes of a GPU's memory in this process, so that trials beside it keep theirs.

    Beyond it torch raises `OutOfMemoryError`, as if the card were so small. CUDA's own context, some
    hundred MB a process, does not count.

    Args:
        share: of a GPU, as the trial was given it; 1 or more, or a machine without a GPU: no bound.
    """
    if 0 < share and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def peak_bytes(
    hparams: HParams, data: Mapping[str, Any], *, cache_dir: Path, settings: Settings
) -> int | None:
    """The peak memory of a trial's training, bytes; None where the machine's memory did not suffice.

    Runs a few steps of each of the trial's phases, and an evaluation, on a part of its data, in a
    process of its own, without the cache of features. On a GPU it is what torch reserved there; on a
    CPU the growth of the process's resident memory since the data was loaded.

    Args:
        data: as the modality's `load` takes it.
    """
    epochs = {"max_epochs": 1 if hparams.strategy == "probe" else 2}
    told = {**hparams.to_dict(), **epochs}
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads and a peak
    with ProcessPoolExecutor(1, mp_context=context) as process:
        try:
            return process.submit(_measured, hparams.modality, told, dict(data), cache_dir, settings).result()
        except (torch.OutOfMemoryError, MemoryError, BrokenProcessPool):
            return None


def _measured(
    name: str, hparams: dict[str, Any], data: dict[str, Any], cache_dir: Path, settings: Settings
) -> int:
    kind = modality(name)
    trial = kind.hparams.from_dict(hparams)
    classes = len(kind.load(data, cache_dir=cache_dir).classes)
    limits = {
        "train_limit": max(_STEPS * trial.batch_size, classes),
        "validation_limit": max(_EVALUATED, classes),
        "test_limit": classes,
    }
    part = kind.load({**data, **limits}, cache_dir=cache_dir)
    before = _peak(settings.device, start=True)
    backbone = kind.backbone({name: getattr(trial, name) for name in kind.backbone_knobs})
    training = Training(trial, part, backbone, settings=settings)
    while not training.finished:
        training.run_epoch()
    return max(0, _peak(settings.device) - before)


def _peak(device: str, *, start: bool = False) -> int:
    """Bytes taken at most so far; at the start, bytes taken now."""
    if device.startswith("cuda"):
        if start:
            torch.cuda.reset_peak_memory_stats()
            return 0
        return torch.cuda.max_memory_reserved()
    if start:
        return int(psutil.Process().memory_info().rss)
    import resource  # not above: Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
