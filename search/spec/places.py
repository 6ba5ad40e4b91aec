"""Paths in a kept spec are told from where it lies, so that a project that moves takes all of itself along.

`${here}` stands for the folder of the spec's file, in what a search keeps and in anybody's own spec.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

__all__ = ["HERE", "placed", "portable"]

HERE = "${here}"
_TOLD = re.compile(re.escape(HERE) + r"([^?#]*)")
_SQLITE = "sqlite:///"
_PLACES = (
    ("data", "source"),
    ("data", "root"),
    ("search", "start_from"),
    ("space", "weights"),
    ("tracking", "uri"),
    ("storage",),
    ("cache", "dir"),
)


def placed(value: Any, folder: Path) -> Any:
    """What YAML holds, with `${here}` filled in for a file that lies in `folder`."""
    match value:
        case str():
            return _TOLD.sub(lambda match: os.path.normpath(f"{folder.resolve()}/{match[1]}"), value)
        case dict():
            return {key: placed(inner, folder) for key, inner in value.items()}
        case list():
            return [placed(inner, folder) for inner in value]
    return value


def portable(values: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """A spec's values for the file in `home`: paths within the folder of its searches told from there."""
    told = deepcopy(dict(values))
    for *sections, key in _PLACES:
        section = told
        for name in sections:
            section = section.get(name) or {}
        if isinstance(section.get(key), str):
            section[key] = _from(section[key], home)
    return told


def _from(text: str, home: Path) -> str:
    project = home.parent.parent
    start, path = (_SQLITE, text.removeprefix(_SQLITE)) if text.startswith(_SQLITE) else ("", text)
    is_within = path.startswith("/") and Path(path).is_relative_to(project) and project != project.parent
    return f"{start}{HERE}/{os.path.relpath(path, home)}" if is_within else text
