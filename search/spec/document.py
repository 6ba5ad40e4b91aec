"""A spec as it was written: text that is not trusted, its mapping, and the line of each key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search.errors import Problem, SpecError
from search.spec.wording import number_as_yaml_reads_it

__all__ = ["located", "override", "parsed", "text_of"]

_MAX_BYTES = 256 * 1024


def text_of(path: Path, title: str) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SpecError(title, [Problem(place="file", given=None, message="is over 256 KiB")])
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        message = f"cannot be read ({reason}); give the path of a YAML file"
        raise SpecError(title, [Problem(place="file", given=str(path), message=message)]) from error


def parsed(text: str, title: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The YAML's mapping, and the line of each dotted path in it."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise SpecError(
                title,
                [Problem(place="file", given=None, message="YAML aliases (*name) are not allowed")],
            )
        root = yaml.compose(text, yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "file"
        reason = getattr(error, "problem", None) or str(error)
        raise SpecError(
            title, [Problem(place=place, given=None, message=f"not valid YAML: {reason}")]
        ) from error
    if not isinstance(raw, dict):
        message = "must be a mapping with name, data, search and space; see examples/quickstart.yaml"
        raise SpecError(title, [Problem(place="file", given=None, message=message)])
    lines: dict[str, int] = {}
    duplicates = [
        Problem(place=place, given=None, message="is given twice; keep one")
        for place in _mark(root, "", lines)
    ]
    problems = [*duplicates, *_odd_numbers(root, "")]
    if problems:
        raise SpecError(title, (located(problem, lines) for problem in problems))
    return raw, lines


def _mark(node: yaml.Node | None, prefix: str, lines: dict[str, int]) -> Iterator[str]:
    """Fills `lines`, and yields each path that stands twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = f"{prefix}{key.value}"
            if place in lines:
                yield place
            lines[place] = key.start_mark.line + 1
            yield from _mark(value, f"{place}.", lines)


def _odd_numbers(node: yaml.Node | None, place: str) -> Iterator[Problem]:
    """Numbers that YAML 1.1 reads as others than a person would."""
    match node:
        case yaml.MappingNode():
            for key, value in node.value:
                yield from _odd_numbers(value, f"{place}.{key.value}" if place else str(key.value))
        case yaml.SequenceNode():
            for value in node.value:
                yield from _odd_numbers(value, place)
        case yaml.ScalarNode() if node.style is None:
            message = number_as_yaml_reads_it(node.value)
            if message and node.tag != "tag:yaml.org,2002:str":
                yield Problem(place=place, given=node.value, message=message)


def override(raw: dict[str, Any], overrides: Sequence[str]) -> Iterator[Problem]:
    for each in overrides:
        path, equals, text = each.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            yield Problem(
                place="--set",
                given=repr(each),
                message="must be path.to.key=value, e.g. search.trials=8",
            )
            continue
        try:
            value = yaml.safe_load(text)
            yield from _odd_numbers(yaml.compose(text, yaml.SafeLoader), path)
        except yaml.YAMLError:
            value = text
        section = raw
        for key in keys[:-1]:
            inner = section.get(key)
            if not isinstance(inner, dict):
                inner = section[key] = {}
            section = inner
        section[keys[-1]] = value


def located(problem: Problem, lines: Mapping[str, int]) -> Problem:
    """The problem with the line of the closest path that the file holds."""
    place = problem.place
    while place and place not in lines:
        place = place.rpartition(".")[0]
    if not place:
        return problem
    return Problem(
        place=f"{problem.place} (line {lines[place]})", given=problem.given, message=problem.message
    )
