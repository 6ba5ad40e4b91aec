"""What the doctor says of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.run import machine
from search.run.machine import checks
from tests.search.commands import rows, transfer_search


def wrong(searches: Path) -> dict[str, str]:
    return {each.subject: each.wrong for each in checks(searches) if each.wrong}


def test_a_sound_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert wrong(folder / "searches") == {}
    printed = transfer_search("doctor")
    assert "versions: ok, " in printed
    assert "Ray's token: ok, none yet" in printed
    told = rows("doctor")
    assert told["searches"] == {}
    assert {each["subject"] for each in told["machine"]} >= {"versions", "GPU", "ports", "searches"}


def test_what_is_wrong_with_a_machine_is_named_with_its_cure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("abc")
    (folder / ".ray" / "auth_token").chmod(0o644)
    monkeypatch.setattr(
        machine, "requires", lambda name: ["numpy<1", "not-there>=1", "extra-one; extra == 'x'"]
    )
    monkeypatch.setattr(machine, "_LEAST_BYTES", 2**60)
    (folder / "searches").write_text("a file")
    found = wrong(folder / "searches")
    assert "numpy is" in found["versions"]
    assert "but must be <1" in found["versions"]
    assert "not-there is not installed" in found["versions"]
    assert "extra-one" not in found["versions"]
    assert f"chmod 600 {folder}/.ray/auth_token" in found["Ray's token"]
    assert "cannot be written" in found["searches"]
    assert "make room" in found["temporary files"]
