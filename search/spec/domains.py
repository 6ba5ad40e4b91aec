"""What a hyperparameter may be drawn from: one value, one of several, or a range."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from search.errors import Problem
from search.spec.section import Section, problems_of
from search.spec.wording import misread, unknown_key
from trainables.errors import did_you_mean
from trainables.training.knobs import Knob

__all__ = ["Choice", "Domain", "Fixed", "Range", "plain", "points", "read_space"]

_SET_ELSEWHERE = {"max_epochs": "search.max_epochs", "seed": "search.seed"}


class Fixed(Section):
    """A knob with one value."""

    sampled: ClassVar[bool] = False
    value: Any


class Choice(Section):
    """A knob that is one of several values."""

    sampled: ClassVar[bool] = True

    values: tuple[Any, ...] = Field(min_length=1)


class Range(Section):
    """A knob that is a number between two others, or one of the values of `or`."""

    sampled: ClassVar[bool] = True

    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, gt=0)
    alternatives: tuple[Any, ...] = Field((), alias="or")


Domain = Fixed | Choice | Range


def plain(domain: Domain) -> Any:
    """The domain as a spec writes it."""
    match domain:
        case Fixed():
            return domain.value
        case Choice():
            return list(domain.values)
        case Range():
            return domain.model_dump(mode="json", by_alias=True, exclude_unset=True)


def read_space(
    raw: Any, knobs: Mapping[str, Knob], given: Container[str] = ()
) -> tuple[dict[str, Domain], list[Problem]]:
    """The domains of a space of `knobs`, and what is wrong with them.

    Args:
        raw: as the spec has it.
        knobs: by name.
        given: the knobs that the spec gives elsewhere, which the default space leaves as they are.
    """
    if raw == "default":
        sampled = (known for known in knobs.values() if known.space is not None)
        raw = {known.name: known.space for known in sampled if known.name not in given}
    if raw is None:
        return {}, [Problem(place="space", given=None, message="is missing; `space: default` samples all")]
    if not isinstance(raw, dict):
        message = "must be `default` or a mapping of hyperparameters"
        return {}, [Problem(place="space", given=repr(raw), message=message)]
    domains: dict[str, Domain] = {}
    problems: list[Problem] = []
    for name, value in raw.items():
        known = knobs.get(str(name))
        place = f"space.{name}"
        if known is None:
            problems.append(Problem(place=place, given=None, message=unknown_key(str(name), knobs)))
        elif name in _SET_ELSEWHERE:
            message = f"is not sampled; set {_SET_ELSEWHERE[name]}"
            problems.append(Problem(place=place, given=None, message=message))
        else:
            domain, wrong = _domain(known, value, place)
            problems += wrong
            if not wrong:
                domains[known.name] = domain
    if not problems:
        problems += _unread(domains, knobs)
    return domains, problems


def _domain(known: Knob, value: Any, place: str) -> tuple[Domain, list[Problem]]:
    if known.rows is not None:
        most = known.rows.most
        good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        message = f"must be the number of rows to sample, from 1 to {most}"
        wrong = [] if good else [Problem(place=place, given=repr(value), message=message)]
        return Fixed(value=value), wrong
    if isinstance(value, dict):
        return _range(known, value, place)
    values = value if isinstance(value, list) else [value]
    values = [_number(known, each) for each in values]
    problems = [
        Problem(
            place=place,
            given=repr(each),
            message=f"must be {known.allowed}{misread(each)}{_hint(known, each)}",
        )
        for each in values
        if not known.accepts(each)
    ]
    if not values:
        message = f"is an empty list; give values ({known.allowed}) or leave it out"
        problems.append(Problem(place=place, given="[]", message=message))
        return Fixed(value=None), problems
    if len(set(map(repr, values))) < len(values):
        problems.append(Problem(place=place, given=repr(values), message="names a value twice"))
    if isinstance(value, list) and len(values) > 1:
        return Choice(values=tuple(values)), problems
    return Fixed(value=values[0]), problems


def _hint(known: Knob, value: Any) -> str:
    return did_you_mean(value, map(str, known.every)) if isinstance(value, str) else ""


def _number(known: Knob, value: Any) -> Any:
    """YAML reads 1e-4 as text; a knob that is a number takes it as one."""
    if known.low is not None and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if known.integer and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _range(known: Knob, value: Mapping[str, Any], place: str) -> tuple[Domain, list[Problem]]:
    given = str(dict(value))
    fallback = Range(low=0, high=1)
    if known.low is None or known.high is None:
        message = f"must not be a range; must be {known.allowed}, or a list of those"
        return fallback, [Problem(place=place, given=given, message=message)]
    raw = dict(value)
    if "or" in raw:
        others = raw["or"] if isinstance(raw["or"], list) else [raw["or"]]
        raw["or"] = [_number(known, each) for each in others]
    try:
        domain = Range.model_validate(raw)
    except ValidationError as error:
        return fallback, [
            Problem(place=f"{place}.{problem.place}", given=problem.given, message=problem.message)
            for problem in problems_of(error, Range)
        ]
    problems = []
    if not domain.low < domain.high:
        problems.append(f"is an empty range: low {domain.low:g} must be below high {domain.high:g}")
    if not (known.low <= domain.low and domain.high <= known.high):
        problems.append(f"must be {known.allowed}")
    if domain.log and domain.low <= 0:
        problems.append("a log range cannot hold 0 or less; raise low, or add `or: [0]`")
    if domain.log and domain.step is not None:
        problems.append("log and step exclude each other")
    if known.integer and any(number != int(number) for number in (domain.low, domain.high, domain.step or 1)):
        problems.append("low, high and step must be whole numbers")
    if not all(known.accepts(other) for other in domain.alternatives):
        problems.append(f"`or` must hold what is {known.allowed}")
    return domain, [Problem(place=place, given=given, message=problem) for problem in problems]


def _unread(domains: Mapping[str, Domain], knobs: Mapping[str, Knob]) -> Iterator[Problem]:
    """Sampled knobs that no trial could ever read."""
    for name, domain in domains.items():
        if domain.sampled and not _reachable(name, domains, knobs):
            yield Problem(
                place=f"space.{name}",
                given=None,
                message=f"is sampled but nothing reads it: it needs {knobs[name].condition}; "
                "allow that in the space, or leave this knob out",
            )


def _reachable(name: str, domains: Mapping[str, Domain], knobs: Mapping[str, Knob]) -> bool:
    """Whether some trial could read the knob."""

    def possible(other: str, any_of: tuple[Any, ...]) -> set[Any]:
        # Of a range the values that are asked about, as far as it has them.
        match domains.get(other, Fixed(value=knobs[other].default)):
            case Fixed(value=value):
                return {value}
            case Choice(values=values):
                return set(values)
            case Range(low=low, high=high, alternatives=others):
                inside = (each for each in any_of if isinstance(each, int | float) and low <= each <= high)
                return {*inside, *(each for each in any_of if each in others)}

    known = knobs[name]
    for other, allowed in known.when.items():
        if not possible(other, allowed) & set(allowed) or not _reachable(other, domains, knobs):
            return False
    return not known.unless or any(
        not _reachable(other, domains, knobs) or possible(other, values) - set(values)
        for other, values in known.unless.items()
    )


def points(domain: Domain) -> int:
    """How many values a grid has of it."""
    match domain:
        case Choice(values=values):
            return len(values)
        case Range(low=low, high=high, step=float() as step):
            return math.floor((high - low) / step + 1e-9) + 1
    return 1
