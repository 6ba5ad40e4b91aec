"""A full disk is waited for, and told once."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.run.room import Room


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk of a test's own needs the right to mount: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_waited_for(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.run.room._PAUSE_SECONDS", 0.05)
    told: list[str] = []
    room = Room([disk / "not" / "yet" / "there"], told.append, lambda: False, least=2**19)
    assert not room.was_waited_for()
    (disk / "much").write_bytes(os.urandom(2**20 - 2**16))
    threading.Timer(0.5, (disk / "much").unlink).start()
    began = time.monotonic()
    assert room.was_waited_for()
    assert time.monotonic() - began > 0.4
    assert len(told) == 2
    assert "is full: the search waits" in told[0]
    assert not room.was_waited_for()


def test_whoever_stops_the_search_does_not_wait(disk: Path) -> None:
    assert Room([disk], lambda told: None, lambda: True, least=2**30).was_waited_for()
