"""How a search starts other processes: with its own modules, whatever lies in the folders of its user.

Python puts the folder in which a module is started, and PYTHONPATH, before everything that is installed. A
user's `search.py` or `random.py` would then run in place of ours or of Python's. So each process starts
without the folder it is started in (`-P`, PYTHONSAFEPATH), and where PYTHONPATH holds another `search` or
`trainables`, the folder of ours comes first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["environment", "own_modules", "python"]

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("search", "trainables")


def python(module: str, *words: str) -> list[str]:
    """The command that runs a module; to be started with `environment`."""
    return [sys.executable, "-P", "-m", module, *words]


def environment() -> dict[str, str]:
    """The environment of a process in which our modules are ours, and so in those that it starts."""
    return {**os.environ, **_changes()}


@contextmanager
def own_modules() -> Iterator[None]:
    """Lets a library start processes, which take after this one, as `environment` has it.

    A library that hands on the current folder gets one that holds nobody's modules.
    """
    before = {name: os.environ.get(name) for name in _changes()}
    folder = os.getcwd()
    os.environ.update(_changes())
    os.chdir("/")
    try:
        yield
    finally:
        os.chdir(folder)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _changes() -> dict[str, str]:
    changes = {"PYTHONSAFEPATH": "1"}
    given = [Path(each).absolute() for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    if any(_holds_others(folder) for folder in given):
        given.insert(0, _ROOT)
    if given:
        changes["PYTHONPATH"] = os.pathsep.join(map(str, given))
    return changes


def _holds_others(folder: Path) -> bool:
    """Whether a folder has modules that are called as ours."""
    return folder.resolve() != _ROOT and any(
        (folder / name).exists() or (folder / f"{name}.py").exists() for name in _OURS
    )
