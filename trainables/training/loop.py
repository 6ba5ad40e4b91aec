"""One trial's training: phases, epochs, evaluation, and a state from which it resumes exactly.

`Training` runs one epoch at a time and knows no framework; `fit` drives it with a `report` callable.
Randomness is drawn anew each epoch from (seed, epoch), so a state holds no generator and a trial that
resumes at an epoch's boundary equals one that was never interrupted.
"""

from __future__ import annotations

import functools
import json
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.files import sealed
from trainables.files.cache import Cache
from trainables.files.sealed import Damaged
from trainables.files.trial_folder import Epochs, write_epochs
from trainables.modalities import modality
from trainables.modality import Backbone, Data, Modality, Policy
from trainables.provenance import made_with
from trainables.record import (
    APPLIED_FILE,
    COSTS,
    MODEL_FOLDER,
    MORE_SCORES,
    PREVIEW_FILE,
    STATE_FILE,
    VALIDATION_FILE,
)
from trainables.seeds import derived_seed
from trainables.training.ahead import ahead, placed
from trainables.training.batches import Batches
from trainables.training.card import TRAIN, make_card
from trainables.training.costs import costs
from trainables.training.delta import save_delta
from trainables.training.evaluation import evaluation, page
from trainables.training.features import Views
from trainables.training.folded import folded_scores
from trainables.training.frozen import FrozenTrunk
from trainables.training.hparams import HParams
from trainables.training.keeping import BEST_EPOCH, counted, expected
from trainables.training.metrics import Scores
from trainables.training.model import TransferModel, build_model, unfreeze
from trainables.training.optimisation import Optimisation
from trainables.training.phases import Phase, phases
from trainables.training.regularisers import Regulariser, regulariser
from trainables.training.settings import Settings, dtype_of
from trainables.training.solved import SolvedHead, solve, standardisation

__all__ = ["Training", "fit"]

_EVALUATION_BATCH = {"cpu": 32, "cuda": 128}
_PART = 32
"""Examples in a pass on a CPU: the feature maps of more fall out of its cache, 1.1 to 1.2 times slower."""
_ROWS = 4096
_PREVIEW_ROWS = 3
_WORST = 8
"""Mistakes that a trial's page shows."""
_LONG = 1.0
"""Seconds of training beside which a page costs nothing."""


Part = tuple[Tensor, Tensor, float, Tensor | None]
"""Logits and targets of a part of a batch, its share of the batch, and a penalty."""


class Training:
    """A trial in the making.

    Args:
        hparams: what varies between trials; they say which modality it is a trial of.
        data: labelled examples with splits `train` and `validation`.
        backbone: freshly built; its module is not changed, a trial that trains it works on a copy.
        settings: what the search fixes.
        cache: where frozen features are kept; None computes them anew.
        progress: called with (what, done, total) during anything slow.
    """

    def __init__(
        self,
        hparams: HParams,
        data: Data,
        backbone: Backbone,
        *,
        settings: Settings = Settings(),
        cache: Cache | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        torch.set_num_threads(settings.threads)
        self.hparams = hparams
        self.data = data
        self.backbone = backbone
        self.settings = settings
        self.cache = cache
        self._usage_before = {} if cache is None else dict(vars(cache.usage))
        self.progress = progress
        self.device = torch.device(settings.device)
        self._asked = {settings.monitor.metric, *settings.asked}
        self._dtype = dtype_of(settings.precision, self.device)
        # Does nothing but for fp16, whose small gradients would be zeros.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._dtype == torch.float16)
        self.epoch = 0
        self.best: dict[str, float] | None = None
        """Number and metrics of the epoch whose model is kept, and what these are expected to be."""
        self.epochs: Epochs = {}
        self.improved = False
        """Whether the epoch that was run last is the one that is kept."""
        self.phases = phases(hparams)
        self.modality: Modality[Any] = modality(hparams.modality)
        self.policy = self.modality.policy(hparams, data, backbone.preprocessing)
        self._plain = self.modality.plain(backbone.preprocessing)
        self._examples = data.examples(backbone.preprocessing)
        self.model = build_model(backbone, hparams, len(data.classes)).to(self.device)
        self._trained_on = torch.cat([data.splits[split] for split in settings.trained_on])
        labels, classes = data.labels[self._trained_on], len(data.classes)
        self._weights = _class_weights(labels, classes).to(self.device) if hparams.class_weights else None
        trains = any(phase.kind == "trunk" for phase in self.phases) and hparams.batch_norm == "train"
        self._batches = Batches(
            hparams,
            data,
            self._examples,
            self._trained_on,
            policy=self.policy,
            mixing=self.modality.mixing(hparams, len(data.classes)),
            at_least=2 if trains else 1,
            device=self.device,
        )
        self._trunk = FrozenTrunk(
            backbone,
            data,
            self._examples,
            policy=self.policy,
            plain=self._plain,
            settings=settings,
            cache=cache,
            device=self.device,
            progress=progress,
        )
        self._phase: Phase | None = None
        self._applied: dict[int, dict[str, Any]] = {}
        self._seconds = 0.0  # in epochs so far
        self._told: Tensor | None = None  # logits of the validation images in the last epoch
        self._told_right: list[bool] | None = None  # in the last epoch, each validation image
        self._right: list[bool] | None = None  # the same in the epoch that is kept
        self._solved: SolvedHead | None = None
        self._folded: dict[str, float] = {}  # what heads are expected to have, by folds
        self._folded_right: list[bool] | None = None  # whether they tell each image that folds are of right
        self._penalty: Regulariser | None = None
        self._enter(self.phases[0])

    @property
    def phase_began(self) -> bool:
        """Whether the epoch that was run last was the first of its phase."""
        return self._phase is not None and self.epoch == self._phase.first + 1

    @property
    def finished(self) -> bool:
        """Whether all epochs have run."""
        return self.epoch >= self.hparams.epochs

    @property
    def _takes_no_steps(self) -> bool:
        """Whether the phase trains a head alone, and that is solved for."""
        return bool(self._features) and self.hparams.head_is_solved

    def run_epoch(self) -> dict[str, float]:
        """Trains and evaluates one epoch and returns its metrics.

        Raises:
            RuntimeError: after the last epoch, or out of memory as torch raises it.
        """
        if self.finished:
            raise RuntimeError(f"all {self.hparams.epochs} epochs have run")
        began, cold = time.perf_counter(), self._cold_seconds
        phase = next(p for p in self.phases if p.first <= self.epoch < p.first + p.epochs)
        if phase is not self._phase:
            self._enter(phase)
        torch.manual_seed(derived_seed(self.hparams.seed, "epoch", self.epoch))
        if self.epoch == 0:
            self._begin_head()
        rate = 0.0 if self._takes_no_steps else self._optimisation.rate
        loss, images = self._train()
        measured = self._measure()
        more = self.epoch + 1 == self.hparams.epochs or not self._asked.isdisjoint(MORE_SCORES)
        monitored = {"train_loss": loss, **measured.named("val", more=more)}
        self._optimisation.epoch_end(self._rising_or_falling(monitored))
        self.epoch += 1
        seconds = time.perf_counter() - began
        self._seconds += seconds
        # What the next trial finds in the cache is no cost of this one's hyperparameters.
        seconds = max(1e-6, seconds - (self._cold_seconds - cold))
        metrics = {
            **monitored,
            **self._costs,
            "learning_rate": rate,
            "epoch_seconds": seconds,
            "images_per_second": images / seconds,
        }
        if (wanted := self.settings.monitor.metric) not in metrics:
            kind = self.hparams.modality
            raise ValueError(
                f"the objective {wanted} is none that {kind} data has; it has {', '.join(metrics)}"
            )
        if self.epoch in self.epochs:  # run before, and not saved: what was told of it stands
            self.improved = self.best is not None and self.best["epoch"] == self.epoch
            return self.epochs[self.epoch]
        self.epochs[self.epoch] = metrics
        self.improved = self._is_kept(self.epoch)
        self._right = (self._folded_right or self._told_right) if self.improved else self._right
        return metrics

    @property
    def _cold_seconds(self) -> float:
        """How long this process has computed features that the cache lacked, or waited for them."""
        return 0.0 if self.cache is None else self.cache.usage.compute_seconds + self.cache.usage.wait_seconds

    def _rising_or_falling(self, monitored: Mapping[str, float]) -> float:
        """What a schedule looks at: the monitored score; where that is a cost, the loss."""
        monitor, loss = self.settings.monitor, monitored["val_loss"]
        return monitored.get(monitor.metric, -loss if monitor.maximize else loss)

    def _is_kept(self, epoch: int) -> bool:
        """Whether an epoch takes the place of the one that is kept, by the monitor's rule."""
        monitor, metrics = self.settings.monitor, self.epochs[epoch]
        if monitor.rule == BEST_EPOCH:
            kept = monitor.better(metrics[monitor.metric], self.best[monitor.metric] if self.best else None)
        else:
            kept = math.isfinite(metrics[monitor.metric])
        if kept:
            means = {} if monitor.rule == BEST_EPOCH else expected(self.epochs, counted(self.phases, epoch))
            self.best = {"epoch": epoch, **metrics, **means, **self._folded}
        return kept

    def adopt(self, epochs: Epochs) -> None:
        """Takes over what is known of epochs that the state does not hold: they are run again, told once."""
        for epoch in sorted(epochs.keys() - self.epochs.keys()):
            self.epochs[epoch] = dict(epochs[epoch])
            if epoch > self.epoch:
                self._is_kept(epoch)

    def evaluate(self, split: str) -> Scores:
        """Scores of the model as it is on a split, not augmented, trunk and head together."""
        labels = self.data.labels[self.data.splits[split]]
        return self._scores(self.logits(split), labels)

    def logits(self, split: str) -> Tensor:
        """Logits [N, C], on the CPU, of the model as it is on a split, not augmented."""
        self.model.eval()
        indices = self.data.splits[split].split(_EVALUATION_BATCH[self.device.type])
        examples = ((placed(self._examples[batch], self.device),) for batch in indices)
        with torch.no_grad():
            parts = [
                self.model(self._plain(each, torch.zeros(len(each), dtype=torch.int64))).float()
                for (each,) in ahead(examples, self.device)
            ]
        return torch.cat(parts).cpu()

    @functools.cached_property
    def _costs(self) -> dict[str, float]:
        """What the model costs, as far as that is asked for; it is the same in every epoch."""
        if self._asked.isdisjoint(COSTS):
            return {}
        return costs(self.model, placed(self.backbone.preprocessing.blank(1), self.device), self._asked)

    # Phases

    def _enter(self, phase: Phase) -> None:
        """Freezes what the phase freezes, and builds what moves and measures the rest."""
        if self._penalty is not None:
            self._penalty.close()
        self._phase = phase
        unfreeze(self.model, self.backbone.groups, self.hparams, phase.kind)
        self._optimisation = Optimisation(
            self.model,
            self.backbone.groups,
            self.hparams,
            steps=self._batches.count,
            epochs=phase.epochs,
            maximize=self.settings.monitor.maximize,
            scaler=self._scaler,
        )
        self._penalty = None
        self._features: dict[str, Views] = {}
        if phase.kind == "head":
            self._features = {
                split: self._trunk.features(split, self.model) for split in (TRAIN, "validation")
            }
        else:
            self._penalty = regulariser(self.model, self.backbone, self.hparams)
        self._part = self._part_size()
        self._applied[phase.first] = self._described(phase)

    def _part_size(self) -> int | None:
        """Examples in a pass; None for whole batches, where something looks at all of a batch at once."""
        whole = self._penalty is not None or self._weights is not None or self.hparams.batch_norm == "train"
        return None if whole or self.device.type != "cpu" else _PART

    def _begin_head(self) -> None:
        """Gives the head what it takes from the frozen trunk's features before any step."""
        standard = getattr(self.model.head, "standard", None)
        if standard is None:
            return
        model = build_model(self.backbone, self.hparams, len(self.data.classes)).to(self.device)
        views = self._trunk.views(model)
        with torch.no_grad():
            if self.hparams.head_is_solved:
                self._solved = self._solve(views)
                if self.settings.folds and self.settings.trained_on == (TRAIN,):
                    self._folded, self._folded_right = self._over_folds(model)
                output = self.model.head.get_submodule("output")
                assert isinstance(output, nn.Linear)
                standard.set(self._solved.mean, self._solved.scale)
                output.weight.copy_(self._solved.weight)
                output.bias.copy_(self._solved.bias)
            else:
                standard.set(*standardisation(views[0]()))
        self._optimisation.restart_average()
        assert self._phase is not None
        self._applied[self._phase.first] = self._described(self._phase)

    def _over_folds(self, model: TransferModel) -> tuple[dict[str, float], list[bool]]:
        """The mean scores of heads on training and validation images that they were not fitted to."""
        splits = (TRAIN, "validation")
        return folded_scores(
            functools.partial(self._solve, self._trunk.views(model, splits), splits),
            self.data,
            torch.cat([self.data.splits[split] for split in splits]),
            self._scores,
            self.settings.folds,
            self.settings.repeats,
        )

    def _solve(
        self, views: Sequence[Callable[[], Tensor]], splits: Sequence[str] = (), folds: Tensor | None = None
    ) -> SolvedHead:
        """The head for what it is trained on, or for other `splits`."""
        places = torch.cat([self.data.splits[each] for each in splits or self.settings.trained_on])
        labels = self.data.labels[places].to(self.device)
        weights = None if self._weights is None else self._weights[labels]
        parts = None if folds is None else folds.to(self.device)
        return solve(self.hparams.solver, views, labels, len(self.data.classes), weights=weights, folds=parts)

    # Epochs

    def _train(self) -> tuple[float, int]:
        """One epoch of steps; the mean loss and the number of examples."""
        if self._takes_no_steps:
            return self._fitted()
        self.model.train()
        total, seen = torch.zeros((), device=self.device), 0

        def losses(parts: Iterator[Part]) -> Iterator[Tensor]:
            nonlocal total, seen
            for logits, targets, share, penalty in parts:
                loss = self._loss(logits, targets)
                yield loss * share if penalty is None else loss * share + penalty
                total += loss.detach() * len(targets)
                seen += len(targets)

        for parts in self._steps():
            self._optimisation.step(losses(parts))
        return float(total) / seen, seen

    def _fitted(self) -> tuple[float, int]:
        """The mean loss of a solved head on the clean training images, and their number."""
        self.model.eval()
        features = self._trunk.features(TRAIN, self.model, clean=True).view(0)
        labels = self.data.labels[self._trained_on].to(self.device)
        with torch.no_grad():
            parts = [self.model.head(part.float()) for part in features.split(_ROWS)]
        return float(functional.cross_entropy(torch.cat(parts), labels, weight=self._weights)), len(labels)

    def _steps(self) -> Iterator[Iterator[Part]]:
        """The batches of the epoch, each in parts whose gradients add up to its own."""
        if not self._features:
            for inputs, targets in ahead(self._batches.drawn(self.epoch), self.device):
                yield self._parts(inputs, targets)
            return
        # On features that are already there: a step is an index and a small product.
        assert self._phase is not None
        number = self.epoch - self._phase.first
        if self.settings.views is not None:
            number %= self.settings.views
        for features, labels in self._batches.of_features(self.epoch, self._features[TRAIN].view(number)):
            yield iter([(self.model.head(features.float()), labels, 1.0, None)])

    def _parts(self, inputs: Tensor, targets: Tensor) -> Iterator[Part]:
        """Passes of a batch through the network, in parts where that changes nothing but speed."""
        size = self._part or len(inputs)
        for part, told in zip(inputs.split(size), targets.split(size), strict=True):
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                features = self.model.features(part)
                penalty = None if self._penalty is None else self._penalty(part, features)
                logits = self.model.head(features)
            yield logits.float(), told, len(part) / len(inputs), penalty

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.modality.loss(
            logits, targets, weights=self._weights, label_smoothing=self.hparams.label_smoothing
        )

    def _scores(self, logits: Tensor, labels: Tensor) -> Scores:
        found: Scores = self.modality.scores(logits, labels)
        return found

    def _measure(self) -> Scores:
        """Validation scores of the weights that would be saved."""
        with self._optimisation.averaged(), torch.no_grad():
            self.model.eval()
            cached = self._features["validation"].view(0) if self._features else None
            logits = self.logits("validation") if cached is None else self.model.head(cached).cpu()
        labels = self.data.labels[self.data.splits["validation"]]
        self._told_right = (logits.argmax(1) == labels).tolist()
        self._told = logits
        return self._scores(logits, labels)

    # Keeping

    def save_model(self, folder: Path) -> None:
        """Writes the weights that the last epoch was measured with as `folder/model`."""
        assert self.best is not None, "no epoch has been measured"
        card = make_card(
            self.backbone,
            self.hparams,
            self.data.classes,
            self.best,
            trained_on=self.settings.trained_on,
            made_with=self._made_with,
        )
        with self._optimisation.averaged():
            save_delta(folder / MODEL_FOLDER, self.model, self.backbone, card)

    def save_state(self, folder: Path) -> None:
        """Writes all that `load_state` needs to go on as if nothing had happened."""
        state = {
            "epoch": self.epoch,
            "best": self.best,
            "epochs": self.epochs,
            "hparams": self.hparams.to_dict(),
            "model": self._own_state(),
            **self._optimisation.state_dict(),
        }
        sealed.seal(folder / STATE_FILE, functools.partial(torch.save, state))

    def load_state(self, folder: Path) -> bool:
        """Goes on from the state in `folder`; False, and nothing changed, where there is none.

        Raises:
            Damaged: where it is not what was written, or another trial's; the training is of no more use.
        """
        path = folder / STATE_FILE
        if not path.is_file():
            return False
        content = sealed.unsealed(path)
        try:
            # To the CPU: what loads a part of it puts it where it belongs.
            self._go_on(torch.load(content, map_location="cpu", weights_only=True))
        except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise Damaged(f"{path} is no state of this trial: {error}") from error
        return True

    def _go_on(self, state: dict[str, Any]) -> None:
        # A state of before has neither.
        kind = type(self.hparams)
        if "hparams" in state and kind.from_dict(state["hparams"]).to_dict() != self.hparams.to_dict():
            raise ValueError("it is of other hyperparameters")
        self.epochs = dict(state.get("epochs", {}))
        self.epoch, self.best = state["epoch"], state["best"]
        # The phase of the epoch that was run last: its optimizer goes on, or the next one begins.
        self._enter(next(p for p in self.phases if self.epoch <= p.first + p.epochs))
        self.model.load_state_dict(state["model"], strict=False)
        self._optimisation.load_state_dict(state)

    def _own_state(self) -> dict[str, Tensor]:
        """The model's tensors that can differ from the pretrained ones."""
        state = self.model.state_dict()
        if self.model.trunk_is_frozen:
            return {name: tensor for name, tensor in state.items() if name.startswith("head.")}
        return state

    def applied(self) -> dict[str, Any]:
        """What was really built so far, for the record; grows with each phase."""
        return {
            "backbone": self.backbone.name,
            "weights_hash": self.backbone.weights_hash,
            "preprocessing": self.backbone.preprocessing.to_dict(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "dtype": str(next(self.model.parameters()).dtype),
            "passes": str(self._dtype),
            "policy": self.policy.describe(),
            "trained_on": {split: len(self.data.splits[split]) for split in self.settings.trained_on},
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "seed": self.hparams.seed,
            "made_with": self._made_with,
            "phases": list(self._applied.values()),
            "cache": self._used(),
        }

    @property
    def _made_with(self) -> dict[str, str]:
        return {**made_with(self.settings.device), "data": self.data.fingerprint}

    def _used(self) -> dict[str, float]:
        """What the trial had of the cache so far; `seconds_saved` is what others took to compute it."""
        if self.cache is None:
            return {}
        now = vars(self.cache.usage)
        return {name: round(now[name] - self._usage_before[name], 3) for name in now}

    def _described(self, phase: Phase) -> dict[str, Any]:
        modules = {name.rpartition(".")[0] for name, p in self.model.named_parameters() if p.requires_grad}
        optimizer, groups = self._optimisation.optimizer, self._optimisation.described()
        return {
            **vars(phase),
            "features": ("cached" if self.cache else "online: the cache is off")
            if self._features
            else "online: the trunk trains",
            "optimizer": "none: solved for" if self._takes_no_steps else type(optimizer).__name__,
            "schedule": self.hparams.schedule if not self._takes_no_steps else "none",
            **({} if self._solved is None else {"solved": self._solved.described()}),
            "batches": self._batches.count,
            "trainable_parameters": sum(group["parameters"] for group in groups),
            "trainable_modules": len(modules),
            "groups": groups,
        }

    @property
    def _is_shown(self) -> bool:
        """Whether this epoch has a page: the last; of long trials also those where a rung may be."""
        return self.finished or (self.epoch.bit_count() == 1 and self._seconds > _LONG)

    def save_record(self, folder: Path) -> None:
        """Writes the epochs, what was built so far, and pages of what a person may look at, into `folder`."""
        write_epochs(folder, self.epochs, self.hparams.to_dict(), self._right)
        if self.finished or self.phase_began:
            sealed.write(folder / APPLIED_FILE, (json.dumps(self.applied(), indent=2) + "\n").encode())
        if self._is_shown and self._told is not None and self.settings.trained_on == (TRAIN,):
            items, shown = f"{self.modality.item}s", self.backbone.preprocessing
            found = evaluation(self.modality, self.data, shown, "validation", self._told, worst=_WORST)
            told = page(found, f"Validation {items} after epoch {self.epoch}", items)
            sealed.write(folder / VALIDATION_FILE, told.encode())
        if self.phase_began and not self.policy.is_identity:
            picture = _preview(self.modality, self.data, self.policy, self.backbone.preprocessing)
            if picture is not None:
                sealed.write(folder / PREVIEW_FILE, picture)


def fit(
    training: Training, report: Callable[[int, dict[str, float]], bool | None]
) -> dict[str, float] | None:
    """The kept epoch's metrics of a training run to its end, or until `report(epoch, metrics)` is True."""
    while not training.finished:
        metrics = training.run_epoch()
        if report(training.epoch, metrics):
            break
    return training.best


def _class_weights(labels: Tensor, classes: int) -> Tensor:
    """Inverse frequencies among the labels, with mean one over their images."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).float()
    return len(labels) / (classes * counts)


@functools.lru_cache(maxsize=32)
def _preview(kind: Modality[Any], data: Data, policy: Policy, preprocessing: Any) -> bytes | None:
    """A picture of what a policy draws of the first training examples."""
    shown = data.splits[TRAIN][:_PREVIEW_ROWS]
    return kind.preview(policy, data.examples(preprocessing)[shown])
