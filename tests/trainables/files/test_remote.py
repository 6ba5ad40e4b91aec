"""Files at addresses: a server that speaks S3, and a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.buckets import Bucket
from trainables.files.claim import Claim
from trainables.files.remote import Remote, RemoteError, below
from trainables.record import STATE_FILE


@pytest.fixture(params=["s3", "file", "path"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address where nothing is yet."""
    there = tmp_path / "there it is"
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        return bucket.uri("prefix")
    return there.as_uri() if request.param == "file" else str(there)


def test_files_go_there_and_come_back_whole(uri: str, tmp_path: Path) -> None:
    remote = Remote(uri)
    remote.check()
    assert remote.entries() == []
    assert remote.read("owner") is None
    (tmp_path / "state.pt").write_bytes(b"state" * 1000)
    remote.send(tmp_path / "state.pt", "model/state.pt")
    remote.write("owner", b"me")
    remote.write("owner", b"you")
    assert [(entry.name, entry.size) for entry in remote.entries()] == [
        ("model/state.pt", 5000),
        ("owner", 3),
    ]
    assert remote.read("owner") == b"you"
    remote.fetch("model/state.pt", tmp_path / "back" / "state.pt")
    assert (tmp_path / "back" / "state.pt").read_bytes() == b"state" * 1000
    with pytest.raises(RemoteError, match="cannot be read"):
        remote.fetch("nothing", tmp_path / "back" / "nothing")
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["state.pt"]
    inner = Remote(below(uri, "model"))
    assert [entry.name for entry in inner.entries()] == ["state.pt"]
    inner.remove()
    inner.remove()
    assert [entry.name for entry in remote.entries()] == ["owner"]


@pytest.mark.parametrize("key", ["../../escape", "/escape", "a/../../../escape", "a//escape", "./escape"])
def test_a_name_that_leads_out_of_a_folder_is_refused(bucket: Bucket, key: str) -> None:
    bucket.put(f"prefix/{key}", b"")
    with pytest.raises(RemoteError, match="could lead out of a folder"):
        Remote(bucket.uri("prefix")).entries()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("hdfs://host/folder", "is no address of files; give s3://"),
        ("folder", "is no address of files"),
        ("s3://", "names no folder or bucket"),
        ("s3://bucket/x?regon=here", "regon"),
        ("/proc/nowhere", "cannot be written"),
    ],
)
def test_an_address_that_cannot_be_used_is_told(uri: str, says: str) -> None:
    with pytest.raises(RemoteError, match=says):
        Remote(uri).check()


def test_a_bucket_that_is_not_there_is_told(bucket: Bucket) -> None:
    missing = bucket.uri("prefix").replace("bucket-", "nobodys-bucket-")
    with pytest.raises(
        RemoteError, match=r"does not exist; see that the address is right.*AWS_ACCESS_KEY_ID"
    ):
        Remote(missing).check()


def test_half_a_file_on_a_disk_is_none(tmp_path: Path) -> None:
    remote = Remote(str(tmp_path / "there"))
    remote.write("owner", b"me")
    (tmp_path / "there" / "state.pt.0123.tmp").write_bytes(b"half")
    assert [entry.name for entry in remote.entries()] == ["owner"]


def test_a_claim_begins_with_what_is_there_and_sends_what_changed(uri: str, tmp_path: Path) -> None:
    first = Claim(tmp_path / "unused", uri)
    (first.folder / "model").mkdir()
    (first.folder / "model" / "card").write_text("one")
    (first.folder / STATE_FILE).write_text("state")
    first.check()
    first.share()
    told = {entry.name: entry.mtime_ns for entry in Remote(uri).entries()}
    assert sorted(told) == ["model/card", "owner", STATE_FILE]

    second = Claim(tmp_path / "unused", uri)
    assert (second.folder / STATE_FILE).read_text() == "state"
    with pytest.raises(RuntimeError, match="another process goes on with this trial"):
        first.check()
    second.check()
    Remote(uri).write("model/card", b"of nobody")
    (second.folder / STATE_FILE).write_text("later")
    second.share()
    assert Remote(uri).read(STATE_FILE) == b"later"
    assert Remote(uri).read("model/card") == b"of nobody"  # it had not changed here
    for claim in (first, second):
        claim.release()
        assert not claim.folder.exists()
    assert not (tmp_path / "unused").exists()
