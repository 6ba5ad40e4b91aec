"""The spec's space as Optuna sees it: define-by-run, each knob drawn only where something reads it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import optuna

from search.spec.domains import Choice, Fixed, Range
from search.spec.search_spec import SearchSpec
from trainables.training.hparams import HParams, is_active, knobs

__all__ = ["default_params", "grid_params", "suggest"]

_RANGE = "range"
_OPERATIONS_IN_A_ROW = 2
_MAGNITUDE_BINS = 31


def suggest(trial: optuna.Trial, spec: SearchSpec, seed: int) -> HParams:
    """Draws one trial's hyperparameters, conditions first."""
    values: dict[str, Any] = {"seed": seed}
    for name in knobs():
        if name == "seed" or not is_active(name, values):
            continue
        if name == "sub_policies":
            values[name] = _sub_policies(trial, spec)
        else:
            values[name] = _draw(trial, name, spec)
    return HParams.from_dict(values)


def _draw(trial: optuna.Trial, name: str, spec: SearchSpec) -> Any:
    match spec.domain(name):
        case Fixed(value=value):
            return value
        case Choice(values=values):
            return trial.suggest_categorical(name, values)
        case Range() as domain:
            if domain.alternatives:
                # A log range cannot hold 0: whether it is the range at all is a choice of its own.
                kind = trial.suggest_categorical(_kind(name), (_RANGE, *domain.alternatives))
                if kind != _RANGE:
                    return kind
            return _draw_number(trial, name, domain)


def _draw_number(trial: optuna.Trial, name: str, domain: Range) -> float:
    if knobs()[name].integer:
        step = int(domain.step or 1)
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=step, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def _sub_policies(trial: optuna.Trial, spec: SearchSpec) -> list[list[tuple[str, float, int]]]:
    """The sampled policy of fast-autoaugment's kind: k rows of (operation, probability, magnitude)."""
    domain = spec.domain("sub_policies")
    assert isinstance(domain, Fixed)
    count = domain.value or knobs()["sub_policies"].space
    from trainables.image.augment import operations  # not above: it takes torch with it

    names = operations(spec.data.orientation_matters)
    return [
        [
            (
                trial.suggest_categorical(f"sub_policies.{row}.{column}.operation", names),
                trial.suggest_float(f"sub_policies.{row}.{column}.probability", 0.0, 1.0),
                trial.suggest_int(f"sub_policies.{row}.{column}.magnitude", 0, _MAGNITUDE_BINS - 1),
            )
            for column in range(_OPERATIONS_IN_A_ROW)
        ]
        for row in range(count)
    ]


def default_params(spec: SearchSpec) -> dict[str, Any]:
    """Optuna parameters of the first trial: the recipe's own values, as far as the space has them."""
    params: dict[str, Any] = {}
    for name, domain in spec.space.items():
        default = spec.default(name)
        match domain:
            case Choice(values=choices):
                params[name] = default if default in choices else choices[0]
            case Range():
                inside = isinstance(default, int | float) and domain.low <= default <= domain.high
                params[name] = _on_grid(name, domain, default if inside else _middle(domain))
                if domain.alternatives:
                    other = not inside and default in domain.alternatives
                    params[_kind(name)] = default if other else _RANGE
            case Fixed():
                continue
    return params


def grid_params(spec: SearchSpec) -> list[dict[str, Any]]:
    """Optuna parameters of every point of the grid."""
    axes: dict[str, list[Any]] = {}
    for name, domain in spec.space.items():
        match domain:
            case Choice(values=choices):
                axes[name] = list(choices)
            case Range(step=float() as step):
                count = math.floor((domain.high - domain.low) / step + 1e-9) + 1
                axes[name] = [_on_grid(name, domain, domain.low + i * step) for i in range(count)]
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _middle(domain: Range) -> float:
    return math.sqrt(domain.low * domain.high) if domain.log else (domain.low + domain.high) / 2


def _on_grid(name: str, domain: Range, value: float) -> float:
    if domain.step is not None:
        value = domain.low + round((value - domain.low) / domain.step) * domain.step
    return round(value) if knobs()[name].integer else value


def _kind(name: str) -> str:
    return f"{name}.kind"
