"""What a specialist would start with, one recipe for each strategy: the first trials of a search.

A recipe counts as far as the space has its values. On Fashion-MNIST and digits, with EfficientNet-Lite0 and a
thousand images, a ridge head on stages was better than any stepped head, and fine-tuning wanted a small rate
for the trunk, BatchNorm as it was, small batches and no augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from search.spec.domains import Choice, Fixed
from search.spec.search_spec import SearchSpec

__all__ = ["recipes"]

_SOLVED: Mapping[str, Any] = {"solver": "ridge", "features": "stages", "policy": "none"}
_TUNED: Mapping[str, Any] = {
    "freeze": 0.0,
    "lr": 2e-3,
    "backbone_lr_mult": 0.1,
    "layer_rates": "multiplier",
    "batch_norm": "eval",
    "batch_size": 32,
    "policy": "none",
    "mixing": "none",
    "regulariser": "none",
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "probe": _SOLVED,
    "lp_ft": {**_TUNED, "lp_share": 0.25},
    "full": _TUNED,
    "partial": {**_TUNED, "freeze": 0.5},
}


def recipes(spec: SearchSpec) -> Iterator[dict[str, Any]]:
    """Hyperparameters of a recipe for each strategy in the space, solved heads first, as far as it has them.

    None where the space has no choice of strategy or solver.
    """
    if not any(isinstance(spec.domain(name), Choice) for name in ("strategy", "solver")):
        return
    fixed = {name: domain.value for name, domain in spec.space.items() if isinstance(domain, Fixed)}
    for strategy, recipe in RECIPES.items():
        if _offers(spec, "strategy", strategy):
            told = {name: value for name, value in recipe.items() if _offers(spec, name, value)}
            values = {**fixed, **told, "strategy": strategy}
            yield {name: value for name, value in values.items() if spec.knobs[name].rows is None}


def _offers(spec: SearchSpec, name: str, value: Any) -> bool:
    """Whether the space has the value; a range has the nearest to any."""
    match spec.domain(name):
        case Fixed(value=only):
            return bool(only == value)
        case Choice(values=values):
            return value in values
    return True
