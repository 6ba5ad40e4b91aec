"""The tests whose lives are forks, in a process that has no threads yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import FORKS

PLACE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lives_that_are_forks(tmp_path: Path) -> None:
    files = [str(PLACE / name) for name in FORKS]
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            f"--basetemp={tmp_path}/own",
            *files,
        ],
        env={**os.environ, "FAULTS": "forks", "PYTEST_ADDOPTS": ""},
        cwd=PLACE.parents[1],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
