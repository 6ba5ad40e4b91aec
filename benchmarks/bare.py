"""Virtual environments that hold some packages and what they require, and nothing else."""

from __future__ import annotations

import venv
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, EntryPoint, distribution
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["bare_python"]


def bare_python(folder: Path, *packages: str) -> Path:
    """The Python of a virtual environment of these packages and what they require, linked from this one."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python3*/site-packages")
    for found in _required(packages):
        for top in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))
        for script in found.entry_points.select(group="console_scripts"):
            _write_script(python, script)
    return python


def _write_script(python: Path, script: EntryPoint) -> None:
    """Puts a command of a package beside the Python that runs it, as pip does."""
    path = python.with_name(script.name)
    text = f"#!{python}\nimport sys\nfrom {script.module} import {script.attr}\nsys.exit({script.attr}())\n"
    path.write_text(text)
    path.chmod(0o755)


def _required(packages: Sequence[str]) -> Iterator[Distribution]:
    seen: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        yield found
        for text in found.requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(need.name)
