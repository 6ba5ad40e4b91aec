"""What a specialist would start with, one recipe for each strategy: the first trials of a search.

A recipe counts as far as the space has its values. On Fashion-MNIST and digits, with EfficientNet-Lite0 and a
thousand images, a ridge head on the stages' grid was better than any stepped head, and fine-tuning wanted a
small rate for the trunk, BatchNorm as it was, small batches and no augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from search.spec.domains import Choice, Fixed
from search.spec.search_spec import SearchSpec
from trainables.training.hparams import HParams

__all__ = [
    "FROM_SOLVED",
    "RECIPES",
    "SHARE",
    "carried_over",
    "most_trials",
    "offered",
    "recipe_of",
    "recipes",
]

SHARE = 3
"""One of so many trials, and seconds, each kind of what is begun with has at most."""

_HEAD: Mapping[str, Any] = {"solver": ("ridge", "logistic"), "features": ("grid", "stages"), "policy": "none"}
_TRUNK: Mapping[str, Any] = {
    "freeze": 0.0,
    "trunk_lr": 2e-4,
    "backbone_lr_mult": 0.1,
    "layer_rates": "multiplier",
    "batch_norm": "eval",
    "batch_size": 32,
    "optimizer": "adamw",
    "schedule": "cosine",
    "policy": "none",
    "mixing": "none",
    "regulariser": "none",
    "ema": None,
}
_STEPPED: Mapping[str, Any] = {**_TRUNK, "lr": 2e-3}
FROM_SOLVED: Mapping[str, Any] = {
    **_HEAD,
    **_TRUNK,
    "lr": 3e-4,
    "backbone_lr_mult": 0.5,
    "warmup_epochs": 1.0,
}
RECIPES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "probe": (_HEAD, {"features": ("grid", "stages"), "policy": "none"}),
    "lp_ft": (FROM_SOLVED, {**_STEPPED, "solver": "gradient", "lp_share": 0.25}),
    "full": (_STEPPED,),
    "partial": ({**_STEPPED, "freeze": 0.5},),
}
"""For each strategy the recipes, the best first; of several values of a knob the best first."""


def recipes(spec: SearchSpec) -> Iterator[dict[str, Any]]:
    """Hyperparameters of a recipe for each strategy in the space, solved heads first, as far as it has them.

    None where the space chooses neither strategy, solver nor features.
    """
    if not any(isinstance(spec.domain(name), Choice) for name in ("strategy", "solver", "features")):
        return
    for strategy in RECIPES:
        if offered(spec, "strategy", strategy):
            yield recipe_of(spec, strategy)


def recipe_of(spec: SearchSpec, strategy: str) -> dict[str, Any]:
    """The best recipe of a strategy that the space has, as far as it has it; and all that the space fixes."""
    fixed = {name: domain.value for name, domain in spec.space.items() if isinstance(domain, Fixed)}
    known = RECIPES[strategy]
    told = next((each for each in known if _admits(spec, each)), known[-1])
    found = {name: offered(spec, name, value) for name, value in told.items() if name in spec.knobs}
    values = {**fixed, **{name: each.value for name, each in found.items() if each}, "strategy": strategy}
    return {name: value for name, value in values.items() if spec.knobs[name].rows is None}


def most_trials(budget: int) -> int:
    """How many of a budget of trials that is."""
    return max(1, budget // SHARE)


def carried_over(hparams: HParams, spec: SearchSpec) -> dict[str, Any]:
    """What another search's trial was, the trunk's rate in the way in which the spec's space has it."""
    rate = hparams.trunk_rate
    if spec.domain("trunk_lr") == Fixed(value=None):
        return hparams.to_dict() | {"trunk_lr": None, "backbone_lr_mult": rate / hparams.lr}
    return hparams.to_dict() | {"trunk_lr": rate}


def _admits(spec: SearchSpec, recipe: Mapping[str, Any]) -> bool:
    """Whether the space has a recipe's solver, by which its rates were chosen."""
    return "solver" not in recipe or offered(spec, "solver", recipe["solver"]) is not None


def offered(spec: SearchSpec, name: str, wanted: Any) -> Fixed | None:
    """The first of the wanted values that the space has; a range has the nearest to any."""
    for value in wanted if isinstance(wanted, tuple) else (wanted,):
        match spec.domain(name):
            case Fixed(value=only) if only != value:
                continue
            case Choice(values=values) if value not in values:
                continue
        return Fixed(value=value)
    return None
