"""The spec's space as Optuna sees it: define-by-run, each knob drawn only where something reads it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from search.spec.domains import Choice, Fixed, Range
from search.spec.search_spec import SearchSpec
from trainables.training.hparams import HParams, is_active, knobs

__all__ = ["configured", "default_params", "first_params", "fitted_params", "grid_params", "suggest"]

_RANGE = "range"
_OPERATIONS_IN_A_ROW = 2
_MAGNITUDE_BINS = 31


def suggest(trial: optuna.trial.BaseTrial, spec: SearchSpec, seed: int) -> HParams:
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


def _draw(trial: optuna.trial.BaseTrial, name: str, spec: SearchSpec) -> Any:
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


def _draw_number(trial: optuna.trial.BaseTrial, name: str, domain: Range) -> float:
    if knobs()[name].integer:
        step = int(domain.step or 1)
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=step, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def _sub_policies(trial: optuna.trial.BaseTrial, spec: SearchSpec) -> list[list[tuple[str, float, int]]]:
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


def first_params(spec: SearchSpec) -> list[dict[str, Any]]:
    """What is run before the sampler draws: the recipe's defaults, or all of a grid."""
    if spec.search.sampler == "grid":
        return grid_params(spec)
    return [default_params(spec)]


def configured(params: Mapping[str, Any], spec: SearchSpec) -> dict[str, Any] | None:
    """The knobs that a trial with Optuna's `params` reads; None where the sampler would draw some of them."""
    try:
        active = suggest(optuna.trial.FixedTrial(dict(params)), spec, 0).active
    except ValueError:  # a parameter that is not among them
        return None
    return active


def fitted_params(spec: SearchSpec, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Optuna parameters of the hyperparameters `values` of another search, as the spec's space has them.

    A knob that they lack has the recipe's value, a number is cut to its range, or is the nearest of those
    to choose from.

    Returns:
        None where they chose what is no choice here.
    """
    params = default_params(spec)
    for name, domain in spec.space.items():
        if name not in values or not is_active(name, values):
            continue
        value = values[name]
        if name == "sub_policies":
            params |= _named_rows(value)
            continue
        match domain:
            case Choice(values=choices) if value in choices:
                params[name] = value
            case Choice(values=choices):
                if not all(map(_is_number, (value, *choices))):
                    return None
                params[name] = min(choices, key=lambda each: abs(each - value))
            case Range() if value in domain.alternatives:
                params[_kind(name)] = value
            case Range() if _is_number(value):
                params[name] = _on_grid(name, domain, min(max(value, domain.low), domain.high))
                if domain.alternatives:
                    params[_kind(name)] = _RANGE
    return params


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named_rows(rows: Sequence[Sequence[Sequence[Any]]]) -> dict[str, Any]:
    """The sub-policies of a trial as `_sub_policies` names their parts."""
    parts = ("operation", "probability", "magnitude")
    return {
        f"sub_policies.{row}.{column}.{part}": value
        for row, operations in enumerate(rows)
        for column, operation in enumerate(operations)
        for part, value in zip(parts, operation, strict=True)
    }


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
