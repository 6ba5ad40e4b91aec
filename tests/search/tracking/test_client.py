"""Opening MLflow's store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_OPEN = """
import sys
from search.spec.search_spec import read_spec
from search.tracking.client import load_mlflow, prepared
from tests.search.specs import small
load_mlflow(whole=True)
print("ready", flush=True)
sys.stdin.readline()
print(len(prepared(small()).search_experiments()))
"""


def test_two_that_open_a_new_store_at_one_time_both_get_it(folder: Path) -> None:
    command = [sys.executable, "-c", _OPEN]
    root = str(Path(__file__).parents[3])
    both = [
        subprocess.Popen(
            command,
            env={"PYTHONPATH": root, "PATH": "/usr/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for each in both:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in both:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    assert [each.communicate()[0].strip() for each in both] == ["1", "1"]
    assert not list(folder.glob(".*.lock"))
