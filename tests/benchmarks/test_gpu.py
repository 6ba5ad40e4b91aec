"""The benchmark of a GPU in its tiny form, so that it works the first time that a card is lent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.long
def test_every_part_prints_its_lines_on_a_cpu() -> None:
    ended = subprocess.run(
        [sys.executable, str(BENCHMARK), "--tiny"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    parts = [line["part"] for line in lines]
    assert list(dict.fromkeys(parts)) == ["fine_tuning", "extraction", "sharing", "solving", "gpu_tests"]
    for line in lines[:-1]:
        (figure,) = line.keys() & {"ratio", "one_after_another_over_at_once", "cpu_over_card"}
        assert line[figure] > 0
    assert lines[-1]["tests"] > 0
    assert lines[-1]["failures"] == lines[-1]["errors"] == 0


@pytest.mark.long
def test_without_a_card_it_says_what_else_there_is() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    ended = subprocess.run([sys.executable, str(BENCHMARK)], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "there is no CUDA device; use a machine that has one, or --tiny" in ended.stderr
