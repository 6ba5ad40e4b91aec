"""Ordinary causes are told in ordinary words, wherever they are met."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.cli import main as cli
from search.cli import running
from search.console import lasting_output, writable_in_any_terminal
from search.errors import BadInput, RayDidNotStart
from search.home import Home
from search.run import ray_session
from tests.search.commands import transfer_search
from trainables.errors import DataError


def said(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and what is told where a command ends with an error."""

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.main(fail)
    return int(str(ended.value.code)), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DataError("data.source is ./img, which does not exist"), 2, "data.source is ./img"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "make room on that disk"),
        (OSError(errno.EMFILE, "Too many open files", "x.db"), 1, "x.db cannot be read or written"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_ordinary_causes_are_no_defects(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, told = said(error, capsys)
    assert ended == code
    assert says in told
    assert "defect" not in told
    assert "Traceback" not in told


class Refusing(io.StringIO):
    """A stream whose reader has gone, or whose disk is full."""

    def __init__(self, error: int) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise OSError(self.error, "refused")


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ENOSPC])
def test_a_search_does_not_end_with_its_reader(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(error))
    with lasting_output():
        cli.console.print("a line")
        cli.console.print("another")
        print("a third", flush=True)
    with pytest.raises(OSError, match="refused"):
        print("not within")


def test_characters_that_a_terminal_does_not_have_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    writable_in_any_terminal(sys.stdout, io.StringIO())
    cli.console.print("日本: 0.9 ± 0.1")
    sys.stdout.flush()
    assert raw.getvalue().decode("ascii").strip() == "??: 0.9 ? 0.1"


# Ray's start


@pytest.mark.parametrize("folder", ["/tmp", "/tmp/" + "deep" * 25])
def test_ray_gets_a_folder_of_its_users_own_that_is_short_enough(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: folder)
    found = ray_session.session_folder()
    assert found is not None
    assert len(found) < 40
    assert Path(found).parent.stat().st_mode & 0o77 == 0
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp")
    assert ray_session.session_folder() is None


def test_what_rays_that_were_killed_left_is_removed(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f"session_2026-01-01_00-00-00_1_{pid}" for pid in (2**22 + 1, os.getpid()))
    for each in (dead, alive, tmp_path / "session_latest"):
        (each / "logs").mkdir(parents=True)
    ray_session._sweep(str(tmp_path))
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([alive.name, "session_latest"])


def starting(attempts: list[Exception | None]) -> Callable[..., None]:
    def init(**options: Any) -> None:
        if (error := attempts.pop(0)) is not None:
            raise error

    return init


def test_a_slow_start_of_ray_is_tried_again_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.shutdown", lambda: None)
    slow = RuntimeError("The current node timed out during startup.\nmore")
    monkeypatch.setattr("ray.init", starting([slow, None]))
    ray_session._started()
    monkeypatch.setattr("ray.init", starting([slow, slow]))
    with pytest.raises(RayDidNotStart, match=r"timed out during startup\.; if the machine is very busy"):
        ray_session._started()


def test_which_variable_sent_a_command_to_a_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from search.cluster import jobs

    def refuse(*_: Any) -> None:
        raise BadInput("'./img' must be an absolute path")

    monkeypatch.setattr(jobs, "perform", refuse)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert "which the variable RAY_API_SERVER_ADDRESS names; unset it" in transfer_search("list", code=2)
    assert "variable" not in transfer_search("list", "--address=http://127.0.0.1:9", code=2)


@pytest.mark.parametrize("code", [2, 1])
def test_a_launch_in_the_background_tells_all_that_it_said(folder: Path, code: int) -> None:
    home = Home.of("t")
    home.root.mkdir(parents=True)
    (home.root / "output.log").write_text("error: 2 problems with the data:\n- class a\n- class b\n")
    error = running._ended_at_once(home, code)
    assert str(error) == "2 problems with the data:\n- class a\n- class b"
    assert error.exit_code == code
    assert not home.root.exists()
