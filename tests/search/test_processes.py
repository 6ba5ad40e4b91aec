"""The user's own files are not our modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import search
from search.processes import environment, python

ROOT = Path(search.__file__).resolve().parents[1]
NAMES = ("search.py", "trainables/__init__.py", "random.py", "types.py", "queue.py", "ray.py", "mlflow.py")


@pytest.fixture
def mine(folder: Path) -> Path:
    """A folder of somebody whose modules are called as ours and as Python's."""
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('the user module was imported')")
    return folder


@pytest.mark.parametrize("path", [None, "lib", "lib:/nowhere"])
def test_a_child_has_our_modules(mine: Path, monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    (mine / "lib").mkdir()
    for name in ("search.py", "trainables.py"):
        (mine / "lib" / name).write_text("raise SystemExit('the user module was imported')")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    script = "import random, types, search, trainables.errors as t; print(search.__file__, t.__file__)"
    (mine / "asked").mkdir()
    for command in (python("search.errors"), [sys.executable, "-P", "-c", script]):
        ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == [str(ROOT / "search/__init__.py"), str(ROOT / "trainables/errors.py")]


def test_pythonpath_stays_where_it_holds_nothing_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somebody/lib")
    assert environment()["PYTHONPATH"] == "/somebody/lib"
    assert environment()["PYTHONSAFEPATH"] == "1"


def test_the_command_takes_our_packages_whatever_pythonpath_holds(mine: Path) -> None:
    script = f"import sys; sys.path.insert(1, {str(ROOT)!r}); sys.argv[1:] = ['--version']; "
    script += "sys.path.insert(0, 'lib'); import transfer_search; transfer_search.entry()"
    (mine / "lib").mkdir()
    (mine / "lib" / "search.py").write_text("raise SystemExit('the user module was imported')")
    ended = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout.startswith("transfer-search "), ended.stderr


@pytest.mark.slow
def test_rays_processes_have_our_modules(mine: Path) -> None:
    script = """
import ray
from search.run.ray_session import local_ray
with local_ray(cpus=1, preloaded=True):
    @ray.remote
    def files():
        import random, types, trainables
        return random.__file__, types.__file__, trainables.__file__
    print(*ray.get(files.remote()))
"""
    command = [sys.executable, "-P", "-c", script]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    found = ended.stdout.split()
    assert found[-1:] == [str(ROOT / "trainables/__init__.py")], ended.stderr
    assert not any(str(mine) in each for each in found)
