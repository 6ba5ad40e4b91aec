"""The spec's space as Optuna sees it: define-by-run, each knob drawn only where something reads it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna

from search.spec.domains import Choice, Fixed, Range
from search.spec.search_spec import SearchSpec
from search.study.portfolio import KIND, portfolio
from search.study.recipes import most_trials, recipes
from trainables.training.hparams import HParams
from trainables.training.knobs import Knob, Rows, is_active

__all__ = [
    "configured",
    "default_params",
    "first_params",
    "fitted_params",
    "grid_params",
    "suggest",
]

_RANGE = "range"


def suggest(trial: optuna.trial.BaseTrial, spec: SearchSpec, seed: int) -> HParams:
    """Draws one trial's hyperparameters, conditions first."""
    values: dict[str, Any] = {"seed": seed}
    for name, known in spec.knobs.items():
        if name == "seed" or not is_active(name, values, spec.hparams):
            continue
        values[name] = _draw_rows(trial, known, spec) if known.rows else _draw(trial, name, spec)
    return spec.hparams.from_dict(values)


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
            return _draw_number(trial, spec.knobs[name], domain)


def _draw_number(trial: optuna.trial.BaseTrial, known: Knob, domain: Range) -> float:
    if known.integer:
        step = int(domain.step or 1)
        return trial.suggest_int(known.name, int(domain.low), int(domain.high), step=step, log=domain.log)
    return trial.suggest_float(known.name, domain.low, domain.high, step=domain.step, log=domain.log)


def _draw_rows(trial: optuna.trial.BaseTrial, known: Knob, spec: SearchSpec) -> list[list[tuple[Any, ...]]]:
    """A table, such as the sampled policy of fast-autoaugment's kind."""
    domain, rows = spec.domain(known.name), known.rows
    assert isinstance(domain, Fixed)
    assert rows is not None
    return [
        [
            tuple(
                _draw_cell(trial, f"{known.name}.{row}.{step}.{column.name}", column)
                for column in rows.columns
            )
            for step in range(rows.steps)
        ]
        for row in range(domain.value or known.space)
    ]


def _draw_cell(trial: optuna.trial.BaseTrial, name: str, column: Knob) -> Any:
    if column.choices is not None:
        return trial.suggest_categorical(name, column.choices)
    assert column.low is not None
    assert column.high is not None
    if column.integer:
        return trial.suggest_int(name, int(column.low), int(column.high))
    return trial.suggest_float(name, column.low, column.high)


def first_params(spec: SearchSpec) -> Iterator[dict[str, Any]]:
    """What is run before the sampler draws: the recipes and the portfolio, or all of a grid."""
    if spec.search.sampler == "grid":
        yield from grid_params(spec)
        return
    first = [params for values in recipes(spec) if (params := fitted_params(spec, values)) is not None]
    yield from first or [default_params(spec)]
    known = [configured(params, spec) for params in first]
    for values in portfolio(spec) if first else ():
        if len(known) >= most_trials(spec.search.trials):
            return
        params = fitted_params(spec, values)
        if params is not None and (runs_as := configured(params, spec)) not in known:
            known.append(runs_as)
            yield params


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
        if name not in values or not is_active(name, values, spec.hparams):
            continue
        value = values[name]
        rows = spec.knobs[name].rows
        if rows is not None:
            params |= _named_rows(name, rows, value)
            continue
        match domain:
            case Fixed(value=only) if name in KIND and only != value:
                return None
            case Choice(values=choices) if value in choices:
                params[name] = value
            case Choice(values=choices):
                if not all(map(_is_number, (value, *choices))):
                    return None
                params[name] = min(choices, key=lambda each: abs(each - value))
            case Range() if value in domain.alternatives:
                params[_kind(name)] = value
            case Range() if _is_number(value):
                params[name] = _on_grid(name, domain, min(max(value, domain.low), domain.high), spec)
                if domain.alternatives:
                    params[_kind(name)] = _RANGE
    return params


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named_rows(name: str, rows: Rows, table: Sequence[Sequence[Sequence[Any]]]) -> dict[str, Any]:
    """A table of a trial as `_draw_rows` names its cells."""
    return {
        f"{name}.{row}.{step}.{column.name}": value
        for row, steps in enumerate(table)
        for step, values in enumerate(steps)
        for column, value in zip(rows.columns, values, strict=True)
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
                params[name] = _on_grid(name, domain, default if inside else _middle(domain), spec)
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
                axes[name] = [_on_grid(name, domain, domain.low + i * step, spec) for i in range(count)]
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _middle(domain: Range) -> float:
    return math.sqrt(domain.low * domain.high) if domain.log else (domain.low + domain.high) / 2


def _on_grid(name: str, domain: Range, value: float, spec: SearchSpec) -> float:
    if domain.step is not None:
        last = math.floor((domain.high - domain.low) / domain.step + 1e-9)
        value = domain.low + min(last, round((value - domain.low) / domain.step)) * domain.step
    return round(value) if spec.knobs[name].integer else value


def _kind(name: str) -> str:
    return f"{name}.kind"
