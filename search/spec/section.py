"""A section of the spec: a frozen model that knows its keys, and what its errors mean to a person."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from search.errors import Problem
from search.spec.wording import reworded, unknown_key

__all__ = ["SECRET", "Section", "problems_of"]

SECRET = re.compile(r"://[^/@:]*:[^/@$]+@")
"""A password inside an address."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def problems_of(error: ValidationError, model: type[BaseModel]) -> Iterator[Problem]:
    for detail in error.errors():
        place = ".".join(str(part) for part in detail["loc"] if part != "[key]") or "file"
        message = reworded(detail["type"], place, detail["input"], detail["msg"])
        given: str | None = repr(detail["input"])
        if detail["type"] == "extra_forbidden":
            given, message = None, unknown_key(str(detail["loc"][-1]), _siblings(model, detail["loc"][:-1]))
        elif detail["type"] == "missing":
            given, message = None, "is missing"
        elif given is not None and (len(given) > 80 or SECRET.search(given) or "must not contain" in message):
            given = None
        yield Problem(place=place, given=given, message=message)


def _siblings(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """The keys allowed in the section of `model` at `place`."""
    for part in place:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        annotation = next((each for each in get_args(annotation) if each is not NoneType), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]
