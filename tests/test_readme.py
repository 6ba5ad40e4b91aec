"""The README's commands and links are real."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from search.cli.main import app
from search.spec.search_spec import read_spec

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_exists() -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^(?:.*bin/)?transfer-search (\w+)", TEXT, re.MULTILINE))
    assert used
    assert used <= known


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_the_two_command_lines_are_there() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv")]
    assert [line.split()[-1] for line in lines] == ["examples/quickstart.yaml", "-q"]


def test_the_spec_of_the_first_steps_is_valid() -> None:
    text = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[0]
    assert read_spec(text).name == "flowers"
