"""What a spec would run, checked against this machine before anything is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from search.errors import Problem, SpecError
from search.home import Home, is_inside
from search.run.room import free_bytes, sized
from search.spec.domains import Choice, Domain, Fixed, Range
from search.spec.search_spec import SearchSpec
from search.spec.sections import SAMPLERS
from search.study.agenda import agenda_notes, pool_size
from search.study.earlier import start_of
from search.study.intervals import Sample
from search.study.pruners import pruner_problems
from search.study.samplers import sampler_notes
from trainables.errors import BackboneError, DataError
from trainables.files.cache import default_root
from trainables.files.remote import Remote, RemoteError
from trainables.modality import Backbone, Data
from trainables.training.card import TRAIN, ModelError
from trainables.training.keeping import LAST_EPOCHS
from trainables.training.knobs import Knob
from trainables.training.model import build_model, stages_read, unfreeze
from trainables.training.settings import Monitor, Settings

__all__ = ["Plan", "cache_root", "described", "load_data", "plan", "samples", "trial_config", "values_of"]

Progress = Callable[[str, int, int], None]

_BYTES = 4
"""Of a parameter."""


@dataclass(frozen=True)
class Plan:
    """What a spec would run, all checked.

    Attributes:
        spec: as checked.
        home: where it would be written.
        data: what was found.
        trainable: trained and all parameters, by (backbone, weights, strategy).
        weights: digests of the weights that trials start from, by backbone and weights.
    """

    spec: SearchSpec
    home: Home
    data: Data
    trainable: Mapping[tuple[str, str, str], tuple[int, int]]
    weights: Mapping[str, str]

    def lines(self) -> Iterator[str]:
        """The plan for a person."""
        spec = self.spec
        yield f"search {spec.name}"
        yield from (f"  {line}" for line in spec.warnings)
        yield from (f"  {line}" for line in self.data.report.lines())
        yield f"  {self._inspected()}"
        yield "space"
        for name, domain in spec.space.items():
            yield f"  {name}: {described(domain)}"
        yield "parameters trained"
        for (name, weights, strategy), (trained, every) in self.trainable.items():
            label = name if weights == "pretrained" else f"{name} ({weights})"
            yield f"  {label}, {strategy}: {trained:,} of {every:,}"
        time_limit = f", at most {spec.search.time:g} s" if spec.search.time else ""
        if spec.search.device_hours:
            device = "GPU" if spec.resources.gpu else "CPU"
            time_limit += f", at most {spec.search.device_hours:g} {device}-hours"
        yield (
            f"{spec.search.trials} trials of up to {spec.search.max_epochs} epochs{time_limit}; "
            f"sampler {spec.search.sampler}, pruner {spec.search.pruner}, "
            f"a trial takes cpu {spec.resources.cpu:g}, gpu {spec.resources.gpu:g}"
        )
        if folds := spec.data.splits.folds:
            drawn = f", drawn {spec.data.splits.repeats} times" if spec.data.splits.repeats > 1 else ""
            count = sum(len(self.data.splits[split]) for split in ("train", "validation"))
            yield f"a trial's value: the mean over {folds} folds of {count:,} {spec.items}{drawn}"
        for name, bounds in spec.search.constraints.items():
            yield f"constraint: {name} {bounds.told}, else a trial is never the best"
        yield from agenda_notes(spec)
        yield from sampler_notes(spec)
        if start := start_of(spec, self.home):
            yield start.line
        if spec.search.finalists:
            yield self._finalists()
        if pool := pool_size(spec):
            best = f"the best {pool} trials' probabilities averaged"
            yield f"ensemble: {best}, if that is better than the winner alone"
        if spec.search.refit and not spec.multi_objective:
            both = f"training and validation {spec.items}"
            yield f"refit: in the end the winner's configuration once more, on {both}"
        yield self._disk()
        yield f"home: {self.home.root}"
        if spec.checkpoints:
            yield f"checkpoints: {spec.checkpoints}"
        yield f"MLflow: {spec.tracking.uri}, experiment {spec.tracking.experiment}"
        yield f"cache: {cache_root(spec)}" + ("" if spec.cache.enabled else " (data only)")

    def _inspected(self) -> str:
        """What an inspection of this data has found, if this machine has made one."""
        try:
            told = json.loads(inspection_file(self.spec, self.data).read_text())["told"]
        except (OSError, ValueError, KeyError, TypeError):
            return "wrong labels, copies, outliers: not looked for; `transfer-search inspect SPEC` does"
        return f"inspected: {told}; `transfer-search inspect SPEC` shows all"

    def _disk(self) -> str:
        """What models and states take at most: a model keeps what was trained, a state thrice as much."""
        search, resources = self.spec.search, self.spec.resources
        wanted = search.finalists
        runs = search.trials + (min(wanted.top, search.trials) * wanted.seeds if wanted else 0)
        at_once = resources.concurrency or max(1, int((os.cpu_count() or 1) // max(resources.cpu, 1)))
        each = _BYTES * max((trained for trained, _ in self.trainable.values()), default=0)
        most, free = each * (2 * runs + 3 * at_once), free_bytes(self.home.root)
        told = (
            f"disk: {sized(most)} at most for the models of {runs} runs, in the home and in MLflow, and for "
            f"the states of running trials; {sized(free)} are free"
        )
        if most < free:
            return told
        return f"{told}: a search waits where its disk is full; give fewer trials, or a --home elsewhere"

    def _finalists(self) -> str:
        search = self.spec.search
        assert search.finalists is not None
        runs = min(search.finalists.top, search.trials) * search.finalists.seeds
        count, items = len(self.data.splits["test"]), self.spec.items
        scored = f"each scored once on the {count:,} test {items}" if count else f"no test {items} to score"
        return (
            f"finalists: then the best {search.finalists.top} again on {search.finalists.seeds} fresh seeds, "
            f"{runs} runs of up to {search.max_epochs} epochs, unpruned: {runs * search.max_epochs:,} epochs "
            f"beside the search's {search.trials * search.max_epochs:,} at most; {scored}"
        )


def load_data(spec: SearchSpec, progress: Progress | None = None) -> Data:
    """The data of a spec, from this machine's cache where that has it.

    Raises:
        DataError: if it cannot be used.
    """
    return spec.modality.load(spec.data.config, cache_dir=cache_root(spec), progress=progress)


def cache_root(spec: SearchSpec) -> Path:
    """Root of the node's cache."""
    return Path(spec.cache.dir) if spec.cache.dir else default_root()


def inspection_file(spec: SearchSpec, data: Data) -> Path:
    """Where an inspection of data leaves what it found, in brief."""
    return cache_root(spec) / "inspected" / f"{data.fingerprint}.json"


def plan(spec: SearchSpec, home: Home, progress: Progress | None = None) -> Plan:
    """Checks what only the machine can tell: backbones, weights, data, where checkpoints go.

    Raises:
        SpecError: with everything that would fail in trials.
    """
    problems: list[Problem] = [] if home.spec.exists() else list(pruner_problems(spec))
    data = None
    try:
        data = load_data(spec, progress)
    except DataError as error:
        problems.append(Problem(place="data", given=None, message=str(error)))
    if spec.checkpoints is not None:
        try:
            Remote(spec.checkpoints).check()
        except RemoteError as error:
            problems.append(Problem(place="checkpoints", given=None, message=str(error)))
    if spec.search.sampler in SAMPLERS.added:
        for message in SAMPLERS.problems([spec.search.sampler]):
            problems.append(Problem(place="search.sampler", given=repr(spec.search.sampler), message=message))
    classes = len(data.classes) if data else 2
    trainable: dict[tuple[str, str, str], tuple[int, int]] = {}
    weights: dict[str, str] = {}
    builds = spec.modality.backbone_knobs
    for values in product(*map(values_of, map(spec.domain, builds))):
        asked = dict(zip(builds, values, strict=True))
        name, start = asked["backbone"], asked["weights"]
        try:
            backbone = spec.modality.backbone(asked)
        except BackboneError as error:
            problem = Problem(place="space.backbone", given=repr(name), message=str(error))
            if problem not in problems:
                problems.append(problem)
            continue
        if start != "none":
            weights[_called(name, start, spec.domain("weights"))] = backbone.weights_hash
        if data is not None and not trainable:
            problems += _policy_problems(spec, data, backbone)
        try:
            for features in values_of(spec.domain("features")):
                stages_read(backbone, features)
        except ModelError as error:
            problems.append(Problem(place="space.features", given=repr(features), message=str(error)))
            continue
        for strategy in values_of(spec.domain("strategy")):
            key = (name, start, strategy)
            try:
                trainable.setdefault(key, _parameters(backbone, strategy, spec, classes))
            except ModelError as error:
                problems.append(Problem(place="space.strategy", given=repr(strategy), message=str(error)))
    if problems or data is None:
        raise SpecError(f"search {spec.name}", problems)
    return Plan(spec, home, data, trainable, weights)


def _called(backbone: str, weights: str, domain: Domain) -> str:
    """What a person calls a backbone with its weights; of one file it matters not what it is called."""
    if weights == "pretrained":
        return backbone
    return f"{backbone} ({'a file' if isinstance(domain, Fixed) else Path(weights).name})"


def _policy_problems(spec: SearchSpec, data: Data, backbone: Backbone) -> Iterator[Problem]:
    """The policies of the space that cannot be built."""
    for name in values_of(spec.domain("policy")):
        if any(known.rows and ("policy", name) in _conditions(known) for known in spec.knobs.values()):
            continue  # its table is yet to be drawn
        try:
            spec.modality.policy(spec.hparams(policy=name), data, backbone.preprocessing)
        except ValueError as error:
            yield Problem(place="space.policy", given=repr(name), message=str(error))


def _conditions(known: Knob) -> set[tuple[str, Any]]:
    return {(name, value) for name, values in known.when.items() for value in values}


def values_of(domain: Domain) -> tuple[Any, ...]:
    """The values that a knob can take, of a range its ends."""
    match domain:
        case Fixed(value=value):
            return (value,)
        case Choice(values=values):
            return values
        case Range(low=low, high=high):
            return (int(low), int(high))


def _parameters(backbone: Backbone, strategy: str, spec: SearchSpec, classes: int) -> tuple[int, int]:
    freeze = values_of(spec.domain("freeze"))[0]
    features = values_of(spec.domain("features"))[0]
    hparams = spec.hparams(backbone=backbone.name, strategy=strategy, freeze=freeze, features=features)
    model = build_model(backbone, hparams, classes)
    unfreeze(model, backbone.groups, hparams, "head" if strategy == "probe" else "trunk")
    every = [parameter.numel() for parameter in model.parameters()]
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(every)


def described(domain: Domain) -> str:
    """A domain in words."""
    match domain:
        case Fixed(value=value):
            return f"{value} (fixed)"
        case Choice(values=values):
            return "one of " + ", ".join(map(str, values))
        case Range() as r:
            text = f"{r.low:g} to {r.high:g}" + (", log" if r.log else "")
            text += f", in steps of {r.step:g}" if r.step else ""
            return text + "".join(f", or {other}" for other in r.alternatives)


def samples(data: Data) -> dict[str, Sample]:
    """The images of the splits that values are measured on."""
    counts = {split: torch.bincount(data.labels[data.splits[split]]) for split in ("validation", "test")}
    return {
        split: Sample(count=int(each.sum()), majority=float(each.max() / each.sum()))
        for split, each in counts.items()
        if each.sum()
    }


def trial_config(
    spec: SearchSpec, *, rule: str = LAST_EPOCHS, trained_on: tuple[str, ...] = (TRAIN,), passes: int = 1
) -> dict[str, Any]:
    """What is the same in the `TrialConfig` of every trial.

    Args:
        spec: the search's.
        rule: which epoch's model is kept.
        trained_on: the splits that trials are trained on.
        passes: of a frozen trunk at once, at most.
    """
    metric, direction = next(iter(spec.search.objective.items()))
    settings = Settings(
        monitor=Monitor(metric=metric, maximize=direction == "maximize", rule=rule),
        views=spec.cache.views if spec.cache.enabled else None,
        device="cuda" if spec.resources.gpu else "cpu",
        threads=max(1, int(spec.resources.cpu)),
        passes=passes,
        precision=spec.resources.precision,
        trained_on=trained_on,
        folds=spec.data.splits.folds or 0,
        repeats=spec.data.splits.repeats,
        features=tuple(values_of(spec.domain("features"))),
        asked=tuple(dict.fromkeys([*spec.search.objective, *spec.search.constraints])),
    )
    return {
        "sampled": spec.sampled,
        "modality": spec.data.modality,
        "data": spec.data.config,
        "settings": {**vars(settings), "monitor": vars(settings.monitor)},
        "cache_dir": spec.cache.dir if is_inside() else str(cache_root(spec)),
        "cache_bytes": int(spec.cache.max_gb * 2**30) if spec.cache.enabled else 0,
    }
