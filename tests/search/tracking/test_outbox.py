"""The outbox keeps what it was given, and reads whatever a crash or a disk made of it."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from search.masking import MaskingFilter, masked
from search.tracking.events import Epoch
from search.tracking.outbox import Outbox


def event(number: int, epoch: int) -> Epoch:
    return Epoch(trial=number, epoch=epoch, metrics={"val_loss": epoch / 10})


@pytest.mark.parametrize(
    "torn",
    [
        b'{"event": "epoch", "tri',
        b"\xff\xfe{\x00",
        b"\x00\x00\x00",
        b"[1, 2]\n",
        b'{"trial": 9}\n',
        b'{"event": "epoch", "trial": 3}\n',
        b'{"event": "end", "trial": 3, "at": 1, "ending": "LATE", "best": null, "reason": ""}\n',
        b'{"event": "close", "state": "FINISHED"}\n',
    ],
)
def test_damaged_lines_are_left_out_and_what_comes_after_is_read(tmp_path: Path, torn: bytes) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(event(3, 1))
    with (tmp_path / "00003.jsonl").open("ab") as file:
        file.write(torn)
    outbox.add(event(3, 2))
    events, damaged = outbox.events(3)
    assert events == [event(3, 1), event(3, 2)]
    assert damaged == 1
    assert outbox.numbers() == [3]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(event(0, 1))
    before = (tmp_path / "00000.jsonl").read_bytes()
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 10:
            return write(handle, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: full(handle, data[:20]))
        with pytest.raises(OSError, match="No space"):
            outbox.add(event(0, 2))
    assert (tmp_path / "00000.jsonl").read_bytes() == before
    outbox.add(event(0, 2))
    assert outbox.events(0) == ([event(0, 1), event(0, 2)], 0)


def test_a_refusal_is_named_until_its_trial_is_acknowledged(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(event(7, 1))
    outbox.refuse(7, "RESOURCE_DOES_NOT_EXIST: no run")
    assert outbox.refusals() == {7: "RESOURCE_DOES_NOT_EXIST: no run"}
    outbox.acknowledge(7)
    assert (outbox.refusals(), outbox.numbers()) == ({}, [])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "API request to http://me:pw@host:5000/api failed",
            "API request to http://***@host:5000/api failed",
        ),
        ("postgresql+psycopg://u:p%40ss@db/x", "postgresql+psycopg://***@db/x"),
        ("s3://bucket/a?endpoint=h&secret_key=abc&x=1", "s3://bucket/a?endpoint=h&secret_key=***&x=1"),
        ("password=hunter2 host=db", "password=*** host=db"),
        ("{'token': 'abc'}", "{'token': '***'}"),
        ("mail me@example.org about http://host/a@b", "mail me@example.org about http://host/a@b"),
    ],
)
def test_what_is_secret_in_a_foreign_text_is_masked(said: str, shown: str) -> None:
    assert masked(said) == shown


def test_what_is_logged_is_masked_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(MaskingFilter())
    try:
        raise OSError("http://me:pw@host is away")
    except OSError:
        logging.getLogger("somebody").exception("asked %s", "http://me:pw@host")
    assert "me:pw" not in caplog.text
    assert "http://***@host is away" in caplog.text
