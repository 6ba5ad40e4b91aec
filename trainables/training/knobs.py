"""Knobs: what a hyperparameter may be, and when anything reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from trainables.plugins import Registry

__all__ = ["Knob", "Rows", "is_active", "knob", "knobs"]


@dataclass(frozen=True, kw_only=True)
class Knob:
    """What is known of one knob: its default, what it may be, and when anything reads it.

    Attributes:
        name: field of `HParams`.
        default: the recipe's value, always part of the first trial.
        doc: one sentence for help and error messages.
        choices: the allowed values, where there are finitely many.
        low, high: the bounds of a number, both inclusive.
        optional: whether `None` is allowed.
        integer: whether the number must be whole.
        when: knob names and the values they must have for this knob to be read.
        added: the names that installed packages add to the choices.
        rows: the shape of a knob that is a table; a spec then gives the number of rows to sample.
        unless: knob names and values; where all of them hold (and are read), this knob is not read.
        space: what `space: default` samples, in the spec's own notation; `None`: the default alone.
    """

    name: str
    default: Any
    doc: str
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    optional: bool = False
    integer: bool = False
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    added: Registry | None = None
    rows: Rows | None = None
    unless: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    space: Any = None

    @property
    def allowed(self) -> str:
        """What the knob may be, in words."""
        if self.choices is not None:
            text = "one of " + ", ".join(map(str, self.every))
        elif self.low is not None and self.high is not None:
            kind = "a whole number" if self.integer else "a number"
            text = f"{kind} from {self.low:g} to {self.high:g}"
        elif self.rows is not None:
            text = "rows of (" + ", ".join(column.name for column in self.rows.columns) + ")"
        else:
            text = "text"
        return f"{text}, or null" if self.optional else text

    @property
    def every(self) -> tuple[Any, ...]:
        """The choices, those that installed packages add too."""
        return (*(self.choices or ()), *(self.added.added if self.added else ()))

    @property
    def condition(self) -> str:
        """When the knob is read, in words; empty if always."""
        told = [_told(self.when)] if self.when else []
        return " and ".join(told + ([f"not ({_told(self.unless)})"] if self.unless else []))

    def may_be(self, value: Any) -> bool:
        """Whether a trial can have had `value`: the package that added a choice may be gone."""
        return self.accepts(value) or (self.added is not None and isinstance(value, str) and value != "")

    def accepts(self, value: Any) -> bool:
        """Whether `value` is allowed, whatever the other knobs are."""
        if value is None:
            return self.optional
        if self.choices is not None:
            # By type too: 1 equals True, but is no answer to yes or no.
            return any(isinstance(value, type(each)) and value == each for each in self.every)
        if self.low is None:
            return isinstance(value, type(self.default))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.integer and isinstance(value, float) and not value.is_integer():
            return False
        assert self.high is not None
        return self.low <= value <= self.high  # neither NaN nor infinity is


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table: each row is some steps, each step a value of every column.

    Attributes:
        columns: knobs without a condition of their own.
        steps: in each row that is sampled.
        most: rows that a space may ask for.
    """

    columns: tuple[Knob, ...]
    steps: int
    most: int

    def restored(self, rows: Any) -> tuple[tuple[tuple[Any, ...], ...], ...]:
        """The rows as tuples, whatever JSON made of them, each value of its column's type."""
        kinds = [int if column.integer else str if column.low is None else float for column in self.columns]
        return tuple(
            tuple(tuple(kind(value) for kind, value in zip(kinds, step, strict=True)) for step in row)
            for row in rows
        )


def _told(condition: Mapping[str, tuple[Any, ...]]) -> str:
    return " and ".join(f"{name} is " + " or ".join(map(str, values)) for name, values in condition.items())


def knob(default: Any, doc: str, **known: Any) -> Any:
    """A field of `HParams` that carries its own `Knob`."""
    return field(default=default, metadata={"doc": doc, **known})


def knobs(kind: type[Any]) -> dict[str, Knob]:
    """Every knob of a kind of `HParams` by name, in the order in which a space draws them.

    Conditions come first.
    """
    key: Any = kind  # type checkers take a class's hash for its values'
    return _knobs(key)


@cache
def _knobs(kind: Any) -> dict[str, Knob]:
    return {each.name: Knob(name=each.name, default=each.default, **each.metadata) for each in fields(kind)}


def is_active(name: str, values: Mapping[str, Any], kind: type[Any]) -> bool:
    """Whether anything reads the knob `name` when the others have `values` (defaults where absent)."""
    known = knobs(kind)

    def holds(condition: Mapping[str, tuple[Any, ...]]) -> bool:
        return all(
            is_active(other, values, kind) and values.get(other, known[other].default) in allowed
            for other, allowed in condition.items()
        )

    own = known[name]
    return holds(own.when) and not (own.unless and holds(own.unless))
