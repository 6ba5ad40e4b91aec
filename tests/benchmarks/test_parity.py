"""The comparison of exports in its small form: one backbone, a few files, environments that lack all else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "parity.py"


@pytest.mark.long
def test_an_export_says_elsewhere_what_predict_says_here() -> None:
    words = ("--files", "20", "--size", "64", "--backbones", "resnet18")
    ended = subprocess.run(
        [sys.executable, str(BENCHMARK), *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (line,) = map(json.loads, ended.stdout.splitlines())
    assert line["labels_said"] > 3
    assert list(line["batches"]) == ["1", "3", "64"]
