"""The command line as tests call it."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from search.cli import main as cli


def transfer_search(*words: str | Path, code: int = 0) -> str:
    """What a command printed, or what it complained where it is to fail.

    Runs in this process, since importing everything anew for each command would take most of the time.
    """
    output, errors = both_streams(*words, code=code)
    return output if code == 0 else errors


def both_streams(*words: str | Path, code: int) -> tuple[str, str]:
    """What a command wrote to its output and to its errors; fails where it does not exit with `code`."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        cli.main(lambda: cli.app(args=[str(word) for word in words]))
    assert (ended.value.code or 0) == code, f"{words}:\n{output.getvalue()}\n{errors.getvalue()}"
    return output.getvalue(), errors.getvalue()


def rows(command: str, *words: str | Path) -> Any:
    """What a command says to a program."""
    return json.loads(transfer_search(command, *words, "--json"))
