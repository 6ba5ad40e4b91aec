"""A trial run once more from its record, in this process, and compared with what it wrote down.

It is trained by the same code on the same data from the same weights and seeds, and what a frozen trunk
computes is computed anew, not read from the cache. On a CPU of the same kind all is then equal, to the bit:
every metric of every epoch but those of the clock, and the model. The search, its home and MLflow see
nothing of it.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search.errors import BadInput
from search.run.planning import trial_config
from search.run.premises import data_change
from search.search import Search
from trainables.errors import BackboneError
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import CARD_FILE, Epochs, read_epochs
from trainables.provenance import changes, made_with
from trainables.record import APPLIED_FILE, BY_THE_CLOCK, MODEL_FOLDER
from trainables.training.hparams import HParams
from trainables.training.loop import Training
from trainables.trial import TrialConfig, begun

__all__ = ["Difference", "Repetition", "repeated"]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric that an epoch has otherwise."""

    epoch: int
    metric: str
    was: float
    now: float


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """What a repeated trial has beside its record.

    Attributes:
        search, trial: which it is.
        epochs: how many were run again.
        seconds: that took.
        differences: metrics that differ, by epoch.
        model: digests of the model, as recorded and now; a trial that kept none has None.
        surroundings: what it is made with otherwise than then: name, what it was, what it is.
        known: whether the record says what it was made with; those of earlier versions do not.
    """

    search: str
    trial: int
    epochs: int
    seconds: float
    differences: tuple[Difference, ...]
    model: tuple[str | None, str | None]
    surroundings: tuple[tuple[str, str, str], ...]
    known: bool

    @property
    def is_equal(self) -> bool:
        """Whether all metrics and the model are equal to the bit."""
        return not self.differences and self.model[0] == self.model[1]

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return {**asdict(self), "equal": self.is_equal}

    def lines(self) -> list[str]:
        """The same for people."""
        told = f"trial {self.trial} of {self.search}: {self.epochs} epochs again in {self.seconds:.1f} s"
        was, now = ("none" if each is None else each[:12] for each in self.model)
        if self.is_equal:
            lines = [told, f"equal to the bit: the metrics of every epoch, and the model ({was})"]
        else:
            lines = [told, "NOT equal"]
            epochs = {each.epoch for each in self.differences}
            lines += [
                f"  epoch {each.epoch} {each.metric}: was {each.was!r}, is {each.now!r}"
                for each in self.differences[:_SHOWN]
            ]
            if len(self.differences) > _SHOWN:
                lines.append(f"  and {len(self.differences) - _SHOWN} more, in {len(epochs)} epochs")
            lines.append(f"  model: was {was}, is {now}" if was != now else f"  model: the same ({was})")
        if self.surroundings:
            lines.append("made with something else than then:")
            lines += [f"  {name}: was {before}, is {after}" for name, before, after in self.surroundings]
        elif not self.known:
            lines.append("the record does not say what it was made with: an earlier version wrote it")
        elif not self.is_equal:
            lines.append("code, libraries, kind of machine, data and weights are those of then")
        return lines


def repeated(search: Search, number: int, tell: Callable[[int, int], None]) -> Repetition:
    """Runs a trial again, as many epochs as it ran.

    Args:
        search: whose trial.
        number: of the trial.
        tell: is told the epochs that are done, and all.

    Raises:
        BadInput: if there is no such trial, it left no epochs, or this machine cannot run it.
    """
    hparams, folder = _hparams(search, number), search.home.trial(number)
    try:
        recorded = read_epochs(folder, hparams.to_dict())
    except Damaged as damage:
        raise BadInput(f"trial {number} cannot be compared: {damage}") from damage
    if not recorded:
        raise BadInput(f"trial {number} of {search.name!r} left no record of an epoch to compare with")
    applied = _applied(folder)
    config = trial_config(search.spec, rule=search.study.rule)
    _check_device(config["settings"]["device"])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="transfer-search-repeat-") as place:
        trial = TrialConfig(
            **config,  # type: ignore[typeddict-item]  # one dictionary, for Ray
            number=number,
            hparams=hparams.to_dict(),
            folder=str(Path(place) / "trial"),
            features_dir=str(Path(place) / "features"),
        )
        training = _run(trial, max(recorded), tell)
        model = _digest(Path(trial["folder"]) / MODEL_FOLDER)
    return Repetition(
        search=search.name,
        trial=number,
        epochs=len(recorded),
        seconds=time.perf_counter() - began,
        differences=tuple(_differences(recorded, training.epochs)),
        model=(_digest(folder / MODEL_FOLDER), model),
        surroundings=tuple(_surroundings(search, applied, training)),
        known="made_with" in applied,
    )


def _hparams(search: Search, number: int) -> HParams:
    """The hyperparameters of a trial as it was handed out."""
    known = [trial.number for trial in search.study.trials()]
    if number not in known:
        raise BadInput(f"{search.name!r} has no trial {number}; it has 0 to {max(known, default=-1)}")
    begun = search.study.begun(number)
    if begun is None:
        raise BadInput(f"trial {number} of {search.name!r} was never begun")
    return begun.hparams


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput(
            "the trial ran on a GPU, and this machine has none that torch can use; repeat it where it has"
        )


def _run(trial: TrialConfig, count: int, tell: Callable[[int, int], None]) -> Training:
    """The training of a trial that begins anew, after so many epochs."""
    folder = Path(trial["folder"])
    folder.mkdir(parents=True)
    try:
        training, _ = begun(trial, folder, set())
    except BackboneError as error:
        raise BadInput(str(error)) from error
    while training.epoch < count:
        training.run_epoch()
        if training.improved:
            training.save_model(folder)
        tell(training.epoch, count)
    return training


def _differences(was: Epochs, now: Epochs) -> list[Difference]:
    """What differs of the metrics that both have; NaN is NaN."""
    return [
        Difference(epoch=epoch, metric=name, was=value, now=now[epoch][name])
        for epoch, metrics in sorted(was.items())
        for name, value in metrics.items()
        if name in now.get(epoch, {})
        and name not in BY_THE_CLOCK
        and value != now[epoch][name]
        and not (math.isnan(value) and math.isnan(now[epoch][name]))
    ]


def _digest(model: Path) -> str | None:
    """The digest that the card of a model gives of its tensors; None where there is no model."""
    try:
        return str(json.loads((model / CARD_FILE).read_bytes())["delta_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _applied(folder: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads((folder / APPLIED_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return known


def _surroundings(
    search: Search, applied: Mapping[str, Any], training: Training
) -> list[tuple[str, str, str]]:
    """What code, libraries, machine, data and weights are otherwise than when the trial ran."""
    premises = search.study.premises or {}
    data, was = training.data, {"data": premises.get("data"), **applied.get("made_with", {})}
    now = {**made_with(training.settings.device), "data": data.fingerprint}
    if "weights_hash" in applied:
        was["weights"], now["weights"] = applied["weights_hash"], training.backbone.weights_hash
    known = {name: str(value) for name, value in was.items() if value is not None}
    told = [each for each in changes(known, now) if each[0] in known]
    why = data_change(premises, data)
    return [
        (name, before, f"{after} ({why})" if name == "data" and why else after)
        for name, before, after in told
    ]
