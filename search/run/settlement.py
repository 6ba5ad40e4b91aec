"""What a trial that ended within an epoch has left in its folder, told to the study and to people."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable, Mapping
from typing import Protocol

from search.home import Home
from search.study.search_study import SearchStudy
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import Epochs, model_metric, read_epochs
from trainables.record import MODEL_FOLDER, REPORTED

__all__ = ["settled"]

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Whoever is told of epochs, before the study is."""

    def epoch_ended(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None: ...


def settled(
    study: SearchStudy,
    home: Home,
    number: int,
    listeners: Iterable[Listener],
    best: Mapping[str, float] | None,
) -> Mapping[str, float] | None:
    """Tells of every epoch that the trial's folder records and the study lacks.

    Args:
        study: holds the trial, which still runs there.
        home: has the trial's folder.
        number: the trial's.
        listeners: are told of each epoch.
        best: the metrics of the best epoch, as far as the trial said so.

    Returns:
        The metrics of the epoch whose model the folder holds, and with them `best` where that is of the same
        epoch; `best` where it holds none. None where the trial's process died while it wrote the model: what
        is there of it is removed.
    """
    recorded = _recorded(home, study.role, number)
    for epoch in sorted(recorded.keys() - study.told(number)):
        metrics = {name: recorded[epoch][name] for name in REPORTED if name in recorded[epoch]}
        if not all(map(math.isfinite, metrics.values())):
            break
        for listener in listeners:
            listener.epoch_ended(number, epoch, metrics)
        study.report(number, epoch, metrics)
    try:
        kept = model_metric(home.trial(number))
    except Damaged as damage:
        log.error("%s %d: %s", study.role, number, damage)
        if isinstance(damage.__cause__, OSError) and not isinstance(damage.__cause__, FileNotFoundError):
            return best  # it may be whole, and cannot be read now
        shutil.rmtree(home.trial(number) / MODEL_FOLDER, ignore_errors=True)
        return None
    if kept is None:
        return best
    return {**kept, **best} if best and best["epoch"] == kept["epoch"] else kept


def _recorded(home: Home, role: str, number: int) -> Epochs:
    try:
        return read_epochs(home.trial(number))
    except Damaged as damage:
        log.error("%s %d: %s", role, number, damage)
        return {}
