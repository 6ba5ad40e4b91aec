"""Data sets at addresses, fetched into a node's cache: a server that speaks S3, and a disk."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.buckets import Bucket
from trainables.errors import DataError
from trainables.files.cache import FETCHED, Cache
from trainables.image.data import DataConfig, ImageData, load

CLASSES, IMAGES = ("cat", "dog"), 8


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of class folders of different images, and a manifest of some of them beside these."""
    root, random = tmp_path / "photos", np.random.default_rng(0)
    rows = []
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for number in range(IMAGES):
            pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"a photo {number}.png")
            rows.append(f"./{label}/a photo {number}.png,{label}")
    (root / "some.csv").write_text("path,label\n" + "\n".join(rows[::2]) + "\n")
    return root


@pytest.fixture(params=["s3", "file"])
def uri(request: pytest.FixtureRequest, photos: Path) -> str:
    """The address of a copy of the photos."""
    if request.param == "file":
        return photos.as_uri()
    return sent(photos, request.getfixturevalue("bucket"))


def sent(photos: Path, bucket: Bucket) -> str:
    for path in photos.rglob("*.*"):
        bucket.put(f"photos/{path.relative_to(photos).as_posix()}", path.read_bytes())
    return bucket.uri("photos")


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., ImageData]:
    """Loads a source on the node of that name."""

    def loaded(name: str, source: str | Path, told: list[tuple[str, int, int]] | None = None) -> ImageData:
        def progress(stage: str, done: int, total: int) -> None:
            if told is not None:
                told.append((stage, done, total))

        return load(DataConfig(source=str(source)), cache_dir=tmp_path / name, progress=progress)

    return loaded


def fetched_files(told: list[tuple[str, int, int]]) -> int:
    return sum(stage == "fetching files" for stage, _, _ in told)


def test_each_node_fetches_a_folder_once(
    uri: str, photos: Path, node: Callable[..., ImageData], tmp_path: Path
) -> None:
    expected = node("disk", photos)
    for name in ("one", "two"):
        first: list[tuple[str, int, int]] = []
        data = node(name, uri, first)
        assert fetched_files(first) == len(CLASSES) * IMAGES + 1
        assert (data.fingerprint, data.names) == (expected.fingerprint, expected.names)
        again: list[tuple[str, int, int]] = []
        assert node(name, uri, again).fingerprint == expected.fingerprint
        assert again == []  # nor was anything decoded
    cache = Cache(tmp_path / "one")
    size = sum(path.stat().st_size for path in photos.rglob("*.*"))
    assert [size for path, size, _ in cache.entries() if path.parent.name == FETCHED] == [size]
    cache.sweep(0)
    assert cache.entries() == []
    some = torch.arange(4)
    assert torch.equal(data.frames(16, "bilinear")[some], expected.frames(16, "bilinear")[some])


def test_a_manifest_brings_what_it_names(uri: str, photos: Path, node: Callable[..., ImageData]) -> None:
    parts = uri.split("?")
    there = "?".join([f"{parts[0]}/some.csv", *parts[1:]])
    told: list[tuple[str, int, int]] = []
    data = node("one", there, told)
    assert data.fingerprint == node("disk", photos / "some.csv").fingerprint
    assert fetched_files(told) == len(CLASSES) * IMAGES // 2 + 1
    with pytest.raises(DataError, match=r"there is no all\.csv at"):
        node("one", there.replace("some.csv", "all.csv"))


def test_a_source_that_changed_is_fetched_anew(
    bucket: Bucket, photos: Path, node: Callable[..., ImageData]
) -> None:
    uri = sent(photos, bucket)
    before = node("one", uri)
    Image.fromarray(np.full((20, 24, 3), 7, dtype=np.uint8)).save(photos / "cat" / "new.png")
    sent(photos, bucket)
    after = node("one", uri)
    assert after.fingerprint != before.fingerprint
    assert after.fingerprint == node("disk", photos).fingerprint == node("two", uri).fingerprint


def test_what_was_fetched_may_vanish(
    uri: str, photos: Path, node: Callable[..., ImageData], tmp_path: Path
) -> None:
    data = node("one", uri)
    expected = node("disk", photos).frames(16, "bilinear")[torch.arange(16)]
    shutil.rmtree(tmp_path / "one" / FETCHED)
    (tmp_path / "one" / "data").joinpath(data._store.folder.name, "native.json").unlink()
    data._store._held = None
    assert torch.equal(data.frames(16, "bilinear")[torch.arange(16)], expected)
    (lost,) = (tmp_path / "one" / FETCHED).rglob("cat/a photo 3.png")
    lost.write_bytes(b"torn")
    told: list[tuple[str, int, int]] = []
    node("one", uri, told)
    assert fetched_files(told) == 1


def test_one_of_several_processes_fetches(
    bucket: Bucket, photos: Path, node: Callable[..., ImageData]
) -> None:
    uri = sent(photos, bucket)
    told: list[list[tuple[str, int, int]]] = [[], [], []]
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda mine: found.append(node("one", uri, mine).fingerprint), args=(mine,))
        for mine in told
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(fetched_files, told)) == len(CLASSES) * IMAGES + 1
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_name_that_leads_out_is_refused(
    bucket: Bucket, photos: Path, node: Callable[..., ImageData], tmp_path: Path
) -> None:
    uri = sent(photos, bucket)
    bucket.put("photos/cat/../../../../escape.png", b"")
    with pytest.raises(DataError, match="could lead out of a folder"):
        node("one", uri)
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("uri", ["s3://", "hdfs://host/photos", "file:///nowhere/at/all"])
def test_an_address_without_data_is_told(uri: str, node: Callable[..., ImageData]) -> None:
    with pytest.raises(DataError, match=r"data\.source"):
        node("one", uri)
