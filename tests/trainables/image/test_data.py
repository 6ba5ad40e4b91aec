"""Sources, checks, splits and the store, on images that the tests draw."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from trainables.errors import DataError
from trainables.image import store
from trainables.image.data import DataConfig, ImageData, decode, load, to_frame
from trainables.image.decode import read
from trainables.image.formats import read_idx, read_plain_pickle
from trainables.image.published import FASHION_CLASSES, FASHION_FOLDERS, NAMES

HAS_FASHION = any((folder / "t10k-labels-idx1-ubyte.gz").is_file() for folder in FASHION_FOLDERS)


def noise(seed: int, height: int = 12, width: int = 10, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def draw(path: Path, seed: int, **shape: int) -> Path:
    """An image file of its own for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, **shape)).save(path)
    return path


def draw_classes(root: Path, counts: dict[str, int], first: int = 0, **shape: int) -> Path:
    """A folder of class folders."""
    for place, (name, count) in enumerate(counts.items()):
        for i in range(count):
            draw(root / name / f"{i:03}.png", first + 1000 * place + i, **shape)
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images of one shape in two classes."""
    return draw_classes(tmp_path / "images", {"cat": 30, "dog": 10})


def loaded(source: Path | str, cache: Path, **options: Any) -> ImageData:
    return load(DataConfig(source=str(source), **options), cache_dir=cache)


def refusal(source: Path | str, cache: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        loaded(source, cache, **options)
    return caught.value


def names_of(data: ImageData, split: str) -> set[str]:
    return {data.names[i] for i in data.splits[split].tolist()}


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a file was decoded")

    monkeypatch.setattr(store, "read", fail)


# Configuration


def test_config_round_trip(tmp_path: Path) -> None:
    config = DataConfig(source="digits", root=tmp_path, test=0.1, train_limit=100, unreadable="skip")
    text = json.dumps(config.to_dict())
    assert DataConfig.from_dict(json.loads(text)).to_dict() == config.to_dict()


def test_config_tells_all_problems() -> None:
    with pytest.raises(DataError) as caught:
        DataConfig(source="", validation=0, test=1.0, seed=-1, train_limit=0, unreadable="hide")
    assert [problem.split()[0] for problem in caught.value.problems] == [
        f"data.{name}" for name in ("source", "validation", "test", "seed", "unreadable", "train_limit")
    ]
    with pytest.raises(DataError, match=r"something is left to train on"):
        DataConfig(source="digits", validation=0.5, test=0.5)
    with pytest.raises(DataError, match="did you mean validation") as caught:
        DataConfig.from_dict({"validatoin": 0.1})
    assert "data.source is not given" in caught.value.problems[1]


def test_unknown_source(cache: Path, tmp_path: Path) -> None:
    assert "did you mean fashion-mnist" in str(refusal("fashion_mnist", cache))
    assert "does not exist" in str(refusal(tmp_path / "absent", cache))
    (tmp_path / "a.txt").write_text("")
    assert "is a file of another kind" in str(refusal(tmp_path / "a.txt", cache))
    assert "data.root" in str(refusal("digits", cache, root=str(tmp_path / "absent")))


# Published sets


def test_digits(cache: Path) -> None:
    data = loaded("digits", cache)
    assert data.classes == tuple("0123456789")
    assert {split: len(places) for split, places in data.splits.items()} == {
        "train": 1079,
        "validation": 359,
        "test": 359,
    }
    assert torch.cat(list(data.splits.values())).sort().values.tolist() == list(range(1797))
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    frames = data.frames(8, "bilinear")[torch.arange(1797)]
    assert frames.shape == (1797, 3, 8, 8)
    assert (frames.numpy() == expected[:, None]).all()
    assert (data.labels.numpy() == load_digits().target).all()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, sizes: dict[str, int], suffix: str = ".gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pack: Callable[[bytes], bytes] = gzip.compress if suffix else bytes
    for place, (stem, count) in enumerate(sizes.items()):
        pixels = np.stack([noise(place * 10_000 + i, 6, 6, channels=1) for i in range(count)])
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(pixels)))
        (folder / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    return folder


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_layouts(tmp_path: Path, cache: Path, below: str, suffix: str) -> None:
    write_idx(tmp_path / below, {"train": 100, "t10k": 20}, suffix)
    data = loaded("fashion-mnist", cache, root=str(tmp_path))
    assert data.classes == FASHION_CLASSES
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [80, 20, 20]
    assert names_of(data, "test") == {f"test/{i}" for i in range(20)}
    first = data.frames(6, "bilinear")[data.splits["test"][:1]]
    assert (first[0].numpy() == noise(10_000, 6, 6, channels=1)).all()


def test_fashion_mnist_as_installed(cache: Path) -> None:
    if not HAS_FASHION:
        pytest.skip("the package dataset-fashion-mnist is not installed")
    data = loaded("fashion-mnist", cache, train_limit=1000, validation_limit=500, test_limit=500)
    assert {split: len(places) for split, places in data.splits.items()} == {
        "train": 1000,
        "validation": 500,
        "test": 500,
    }
    assert data.report.found == 70_000
    assert set(data.report.counts["train"].values()) == {100}
    assert data.frames(28, "bicubic")[data.splits["train"][:7]].shape == (7, 3, 28, 28)


def test_fashion_mnist_missing(tmp_path: Path, cache: Path) -> None:
    assert "apt-get install dataset-fashion-mnist" in str(refusal("fashion-mnist", cache, root=str(tmp_path)))


def test_idx_reader(tmp_path: Path) -> None:
    path = tmp_path / "x"
    good = idx(noise(0, 5, 4))
    path.write_bytes(good)
    assert (read_idx(path, 3) == noise(0, 5, 4)).all()
    bad = {
        b"": "begins with nothing",
        b"\x89PNG" + good: "begins with 89 50 4e 47",
        good[:-1]: "promises 5 x 4 x 3 = 60 bytes, but holds 59",
        good + b"\0": "but holds more",
        good[:7]: "dimensions",
        idx(noise(0, 5, 4, channels=1)): "has 2 dimensions",
        b"\0\0\x08\x03" + b"\xff" * 12: "promises 4294967295",
        gzip.compress(good)[:-9]: "cannot be read",
        gzip.compress(good)[:20] + b"garbage" * 9: "cannot be read",
    }
    for data, message in bad.items():
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_idx(path, 3)


def test_idx_files_that_do_not_fit(tmp_path: Path, cache: Path) -> None:
    write_idx(tmp_path, {"train": 100, "t10k": 20})
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.full(99, 1, np.uint8)))
    assert "100 images" in str(refusal("fashion-mnist", cache, root=str(tmp_path)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.full(100, 10, np.uint8)))
    assert "must hold 0 to 9" in str(refusal("fashion-mnist", cache, root=str(tmp_path)))


def write_cifar(root: Path, protocol: int = 2) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    meta = {"label_names": [f"kind{i}" for i in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    for place, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.stack([noise(place * 100 + i, 32, 32) for i in range(20)])
        batch = {
            "batch_label": name,
            "labels": [i % 10 for i in range(20)],
            "data": pixels.transpose(0, 3, 1, 2).reshape(20, 3072),
            "filenames": [f"{i}.png" for i in range(20)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar(tmp_path: Path, cache: Path, protocol: int) -> None:
    write_cifar(tmp_path, protocol)
    data = loaded("torchvision:CIFAR10", cache, root=str(tmp_path))
    assert data.classes[3] == "kind3"
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [80, 20, 20]
    first = data.frames(32, "bicubic")[data.splits["test"][:1]][0]
    assert (first.numpy() == noise(500, 32, 32).transpose(2, 0, 1)).all()


# As Python 2 wrote the published files: text for bytes, and a global of the old NumPy.
OLD_CIFAR_ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
    b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
    + bytes(range(256)) * 12
    + b"tb"
)


def test_cifar_as_python_2_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(b"\x80\x02}(U\x06labels]K\x07aU\x04data" + OLD_CIFAR_ARRAY + b"u.")
    batch = read_plain_pickle(path)
    assert batch["labels"] == [7]
    assert (batch["data"] == np.arange(3072).reshape(1, 3072) % 256).all()


class Malicious:
    """Unpickled the usual way, makes a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_malicious_pickle_is_refused(tmp_path: Path, cache: Path) -> None:
    folder = write_cifar(tmp_path)
    trace = tmp_path / "trace"
    for attack in (
        Malicious(os.system, f"touch {trace}"),
        Malicious(exec, f"open({str(trace)!r}, 'w')"),
        Malicious(open, str(trace), "w"),
        Malicious(np.fromfile, str(trace)),
    ):
        payload = pickle.dumps({"labels": attack, "data": attack}, 2)
        if attack.call[0] is open:
            pickle.loads(payload)["data"].close()  # it does what it says
            trace.unlink()
        (folder / "data_batch_3").write_bytes(payload)
        error = refusal("torchvision:CIFAR10", cache, root=str(tmp_path))
        assert "not allowed" in str(error)
        assert "data_batch_3" in str(error)
        assert not trace.exists()


@pytest.mark.parametrize(
    "payload",
    [
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}),
        pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 11]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": ["0", "1"]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})[:-300],
        b"cnumpy.core.multiarray\n_reconstruct\n}U\x01xK\x01sb.",
        b"",
    ],
)
def test_cifar_files_that_are_not_that(tmp_path: Path, cache: Path, payload: bytes) -> None:
    folder = write_cifar(tmp_path)
    (folder / "test_batch").write_bytes(payload)
    assert "test_batch" in str(refusal("torchvision:CIFAR10", cache, root=str(tmp_path)))


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_sets_that_are_not_there(tmp_path: Path, cache: Path, name: str) -> None:
    message = str(refusal(f"torchvision:{name}", cache, root=str(tmp_path)))
    assert f"torchvision.datasets.{name}(ROOT, download=True)" in message
    assert str(tmp_path) in message


def test_torchvision_names(cache: Path, tmp_path: Path) -> None:
    import torchvision.datasets

    assert [name for name in NAMES if not hasattr(torchvision.datasets, name)] == []
    assert "did you mean CIFAR10" in str(refusal("torchvision:cifar-10", cache, root=str(tmp_path)))
    assert "data.root is not set" in str(refusal("torchvision:CIFAR10", cache))


def write_pets(root: Path) -> Path:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        lines = []
        for i in range(20):
            breed = ("Abyssinian", "beagle")[i % 2]
            draw(base / "images" / f"{breed}_{split}{i}.jpg", i + 100 * (split == "test"))
            lines.append(f"{breed}_{split}{i} {i % 2 + 1} {i % 2 + 1} 1")
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines))
    return base


def write_signs(root: Path) -> Path:
    base = root / "gtsrb"
    rows = ["Filename;ClassId"]
    for sign in range(43):
        for i in range(3):
            draw(base / "GTSRB" / "Training" / f"{sign:05}" / f"{i}.ppm", sign * 10 + i)
        draw(base / "GTSRB" / "Final_Test" / "Images" / f"{sign}.ppm", 1000 + sign)
        rows.append(f"{sign}.ppm;{sign}")
    (base / "GT-final_test.csv").write_text("\n".join(rows))
    return base


def write_textures(root: Path) -> Path:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for place, split in enumerate(("train", "val", "test")):
        lines = [f"{name}/{split}{i}.jpg" for name in ("banded", "dotted") for i in range(4)]
        for i, line in enumerate(lines):
            draw(base / "images" / line, place * 100 + i)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(lines))
    return base


def write_satellite(root: Path) -> Path:
    return draw_classes(root / "eurosat" / "2750", {"Forest": 10, "River": 10})


@pytest.mark.parametrize(
    ("name", "write", "classes", "sizes"),
    [
        ("OxfordIIITPet", write_pets, ("Abyssinian", "Beagle"), [16, 4, 20]),
        ("GTSRB", write_signs, tuple(f"{sign:02}" for sign in range(43)), [86, 43, 43]),
        ("DTD", write_textures, ("banded", "dotted"), [8, 8, 8]),
        ("EuroSAT", write_satellite, ("Forest", "River"), [12, 4, 4]),
    ],
)
def test_torchvision_sets_of_files(
    tmp_path: Path,
    cache: Path,
    name: str,
    write: Callable[[Path], Path],
    classes: tuple[str, ...],
    sizes: list[int],
) -> None:
    write(tmp_path)
    data = loaded(f"torchvision:{name}", cache, root=str(tmp_path))
    assert data.classes == classes
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == sizes
    place = int(data.splits["test"][0])
    frame = data.frames(16, "bilinear")[torch.tensor([place])][0]
    assert torch.equal(frame, to_frame(decode(tmp_path / data.names[place]), 16, "bilinear"))
    if name == "DTD":
        assert all("/val" in each for each in names_of(data, "validation"))


# Folders


def test_folder_of_classes(images: Path, cache: Path) -> None:
    data = loaded(images, cache)
    assert data.classes == ("cat", "dog")
    assert data.report.counts == {
        "train": {"cat": 18, "dog": 6},
        "validation": {"cat": 6, "dog": 2},
        "test": {"cat": 6, "dog": 2},
    }
    frames = data.frames(20, "bicubic")
    assert len(frames) == len(data) == 40
    for place, name in enumerate(data.names):
        expected = to_frame(decode(images / name), 20, "bicubic")
        assert torch.equal(frames[torch.tensor([place])][0], expected)
        assert data.classes[data.labels[place]] == name.split("/")[0]


@pytest.mark.parametrize("validation", ["val", "valid", "Validation", None])
def test_folder_of_splits(tmp_path: Path, cache: Path, validation: str | None) -> None:
    root = tmp_path / "images"
    draw_classes(root / "train", {"a": 20, "b": 20})
    draw_classes(root / "test", {"a": 5, "b": 5}, first=100)
    if validation:
        draw_classes(root / validation, {"a": 3, "b": 3}, first=200)
    data = loaded(root, cache, validation=0.25)
    sizes = [len(data.splits[split]) for split in ("train", "validation", "test")]
    assert sizes == ([40, 6, 10] if validation else [30, 10, 10])
    assert all(name.startswith("test/") for name in names_of(data, "test"))
    assert all(name.startswith("train/") for name in names_of(data, "train"))


def test_folders_that_are_refused(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    assert "no class folders" in str(refusal(root, cache))
    draw(root / "a.png", 0)
    assert "1 images but no class folders" in str(refusal(root, cache))
    draw_classes(root, {"cat": 5})
    assert "only the class 'cat'" in str(refusal(root, cache))
    (root / "empty").mkdir()
    (root / "text").mkdir()
    (root / "text" / "a.txt").write_text("")
    problems = refusal(root, cache).problems
    assert len(problems) == 2
    assert "empty holds no images (it is empty)" in problems[0]
    assert "text holds no images (1 x .txt)" in problems[1]


def test_split_folders_that_are_refused(tmp_path: Path, cache: Path) -> None:
    draw_classes(tmp_path / "a" / "test", {"x": 3, "y": 3})
    assert "no train folder" in str(refusal(tmp_path / "a", cache))
    for split in ("train", "val", "valid"):
        draw_classes(tmp_path / "b" / split, {"x": 3, "y": 3})
    assert "val and valid" in str(refusal(tmp_path / "b", cache))
    draw_classes(tmp_path / "c" / "train", {"x": 3, "y": 3})
    draw_classes(tmp_path / "c" / "extra", {"x": 3})
    assert "beside them extra" in str(refusal(tmp_path / "c", cache))
    draw_classes(tmp_path / "d", {"train": 5, "test": 5})
    assert str(refusal(tmp_path / "d", cache)).count("holds no class folders") == 2
    draw_classes(tmp_path / "e" / "train", {"x": 9, "y": 9})
    draw_classes(tmp_path / "e" / "test", {"x": 3, "z": 3}, first=100)
    problems = refusal(tmp_path / "e", cache).problems
    assert "needs at least 2" in problems[0]
    assert "'z'" in problems[0]


def test_a_class_may_be_called_train(tmp_path: Path, cache: Path) -> None:
    root = draw_classes(tmp_path / "images", {"train": 5, "plane": 5})
    assert loaded(root, cache).classes == ("plane", "train")


def test_hidden_and_other_files_are_ignored(images: Path, cache: Path) -> None:
    (images / "cat" / "notes.txt").write_text("mine")
    draw(images / "cat" / ".hidden.png", 5000)
    draw(images / ".thumbnails" / "x.png", 5001)
    draw(images / "loose.png", 5002)
    draw(images / "dog" / "deep" / "er" / "UPPER.PNG", 5003)
    data = loaded(images, cache)
    assert len(data) == 41
    assert "dog/deep/er/UPPER.PNG" in data.names
    text = "\n".join(data.report.lines())
    assert "1 x .txt" in text
    assert "loose.png" in text


def test_links_out_of_the_folder_are_not_followed(images: Path, cache: Path) -> None:
    outside = draw(images.parent / "outside" / "secret.png", 6000)
    (images / "cat" / "out.png").symlink_to(outside)
    (images / "cat" / "outfolder").symlink_to(outside.parent)
    (images / "dog" / "loop").symlink_to(images)
    (images / "dog" / "dead.png").symlink_to(images / "absent.png")
    (images / "dog" / "in.png").symlink_to(images / "dog" / "000.png")
    for own in (images / "own", images / "dog" / "own", images / "dog" / "own.png"):
        own.symlink_to(own.name)  # leads to itself
    data = loaded(images, cache)
    assert len(data) == 41
    assert "dog/in.png" in data.names
    assert "2 links lead out of the folder" in "\n".join(data.report.lines())


# Unreadable files


def spoil(root: Path) -> None:
    whole = draw(root / "cat" / "whole.png", 7000, height=64).read_bytes()
    (root / "cat" / "short.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "zero.png").write_bytes(b"")
    (root / "dog" / "page.jpg").write_bytes(b"<html>")
    (root / "cat" / "whole.png").unlink()


def test_unreadable_files_are_refused_with_their_reasons(images: Path, cache: Path) -> None:
    spoil(images)
    message = str(refusal(images, cache))
    assert "3 of 43 files" in message
    assert "data.unreadable" in message
    assert "cat/zero.png: the file is empty (0 bytes)" in message
    assert "cat/short.png" in message
    assert "dog/page.jpg" in message


def test_unreadable_files_can_be_skipped(images: Path, cache: Path) -> None:
    clean = loaded(images, cache)
    spoil(images)
    data = loaded(images, cache, unreadable="skip")
    assert data.fingerprint == clean.fingerprint
    assert [name for name, _ in data.report.unreadable] == [
        "cat/short.png",
        "cat/zero.png",
        "dog/page.jpg",
    ]
    assert "unreadable, skipped: 3" in data.report.lines()
    frames = data.frames(8, "bilinear")[torch.arange(40)]
    assert torch.equal(frames, clean.frames(8, "bilinear")[torch.arange(40)])


def test_many_unreadable_files_are_counted(tmp_path: Path, cache: Path) -> None:
    root = draw_classes(tmp_path / "images", {"a": 4, "b": 4})
    for i in range(13):
        (root / "a" / f"bad{i:02}.png").write_bytes(b"")
    message = str(refusal(root, cache))
    assert "13 of 21 files" in message
    assert message.count("0 bytes") == 10
    assert "and 3 more" in message


def test_a_bomb_is_an_unreadable_file(images: Path, cache: Path) -> None:
    Image.new("1", (2000, 2000)).save(images / "cat" / "big.png")
    assert "decompression bomb" in str(refusal(images, cache, max_pixels=1_000_000))
    assert len(loaded(images, cache, max_pixels=1_000_000, unreadable="skip")) == 40
    assert len(loaded(images, cache)) == 41


def test_nothing_readable(tmp_path: Path, cache: Path) -> None:
    for name in ("a/x.png", "b/y.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        (tmp_path / "images" / name).write_bytes(b"no")
    assert "2 of 2 files" in str(refusal(tmp_path / "images", cache, unreadable="skip"))


# Manifests


def write_csv(path: Path, rows: Sequence[str], header: str = "path,label") -> Path:
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest(images: Path, cache: Path, kind: str) -> None:
    files = sorted(images.rglob("*.png"))
    random.Random(0).shuffle(files)
    rows = [(file.relative_to(images.parent).as_posix(), file.parent.name) for file in files]
    path = images.parent / f"table.{kind}"
    if kind == "csv":
        write_csv(path, [f'{name},"{label}, NA"' for name, label in rows])
    else:
        columns = {"path": [name for name, _ in rows], "label": [f"{each}, NA" for _, each in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    data = loaded(path, cache)
    assert data.classes == ("cat, NA", "dog, NA")
    assert len(data) == 40
    folder = loaded(images, cache)
    assert torch.equal(data.labels, folder.labels)
    for split in data.splits:
        assert torch.equal(data.splits[split], folder.splits[split])


def test_manifest_with_numbers_and_splits(images: Path, cache: Path) -> None:
    files = sorted(images.rglob("*.png"))
    table = {
        "path": [file.relative_to(images.parent).as_posix() for file in files],
        "label": [int(file.parent.name == "dog") for file in files],
        "split": [("train", "val", "TEST ")[i % 3] for i in range(40)],
        "other": [None] * 40,
    }
    path = images.parent / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    data = loaded(path, cache)
    assert data.classes == ("0", "1")
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [14, 13, 13]


def test_manifest_may_not_escape(images: Path, cache: Path) -> None:
    outside = draw(images.parent / "secret.png", 8000)
    (images / "link.png").symlink_to(outside)
    (images / "linked").symlink_to(images.parent)
    rows = [
        "cat/000.png,a",
        "../secret.png,a",
        f"{images}/cat/001.png,b",
        "cat/../../secret.png,b",
        "link.png,b",
        "linked/secret.png,b",
        "cat/../dog/000.png,b",
    ]
    message = str(refusal(write_csv(images / "table.csv", rows), cache))
    assert [row for row in range(1, 8) if f"(row {row})" in message] == [2, 4, 5, 6]


def test_manifest_problems_come_together(images: Path, cache: Path) -> None:
    rows = ["cat/000.png,,train", "/etc/passwd,b,train", "dog/000.png,b,dev"]
    path = write_csv(images / "table.csv", rows, "path,label,split")
    problems = refusal(path, cache).problems
    assert len(problems) == 3
    assert "row 1" in problems[0]
    assert "/etc/passwd (row 2)" in problems[1]
    assert "dev (row 3)" in problems[2]


def test_manifests_that_are_refused(images: Path, cache: Path) -> None:
    path = images / "table.csv"
    assert "no rows" in str(refusal(write_csv(path, []), cache))
    assert "but not label" in str(refusal(write_csv(path, ["a"], "path"), cache))
    assert "more or fewer cells" in str(refusal(write_csv(path, ["cat/000.png,a,b"]), cache))
    assert "needs at least 3" in str(refusal(write_csv(path, ["cat/000.png,a", "dog/000.png,b"]), cache))
    path.write_bytes(b"path,label\n\xff\xfe,a")
    assert "UTF-8" in str(refusal(path, cache))
    (images / "table.parquet").write_bytes(b"path,label")
    assert "Parquet" in str(refusal(images / "table.parquet", cache))
    rows = [f"{file.relative_to(images)},{file.parent.name}" for file in images.rglob("*.png")]
    message = str(refusal(write_csv(path, [*rows, "cat/absent.png,cat"]), cache))
    assert "cat/absent.png: there is no such file" in message


# Splits


def test_splits_depend_on_pixels_and_seed_alone(images: Path, cache: Path, tmp_path: Path) -> None:
    data = loaded(images, cache)
    copy = tmp_path / "copy"
    files = sorted(images.rglob("*.png"))
    random.Random(1).shuffle(files)
    for file in files:  # another place, another order on the disk, other times
        target = copy / file.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    again = loaded(copy, cache)
    assert again.fingerprint == data.fingerprint
    assert again.names == data.names
    renamed = tmp_path / "renamed"
    for place, file in enumerate(files):
        target = renamed / file.parent.name / f"{place}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    other = loaded(renamed, cache)
    for split in data.splits:
        was = {(images / name).read_bytes() for name in names_of(data, split)}
        assert was == {(renamed / name).read_bytes() for name in names_of(other, split)}
    seeded = loaded(images, cache, seed=1)
    assert names_of(seeded, "test") != names_of(data, "test")
    assert seeded.fingerprint != data.fingerprint


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.3), (0.25, 0.25), (0.2, 0.0), (1 / 3, 0.1)])
def test_split_sizes(cache: Path, validation: float, test: float) -> None:
    data = loaded("digits", cache, validation=validation, test=test)
    assert len(data.splits["validation"]) == round(1797 * validation)
    assert len(data.splits["test"]) == round(1797 * test)
    counts = np.bincount(load_digits().target)
    for split, share in (("validation", validation), ("test", test)):
        drawn = np.array(list(data.report.counts[split].values()))
        assert np.abs(drawn - counts * share).max() <= 1


def test_limits_are_stratified_nested_and_independent(cache: Path) -> None:
    full = loaded("digits", cache)
    some = loaded("digits", cache, train_limit=100, validation_limit=50)
    fewer = loaded("digits", cache, train_limit=37)
    assert [len(some.splits[split]) for split in ("train", "validation", "test")] == [100, 50, 359]
    assert set(some.report.counts["train"].values()) <= {9, 10, 11}
    assert names_of(fewer, "train") < names_of(some, "train") < names_of(full, "train")
    assert names_of(fewer, "validation") == names_of(full, "validation")
    assert names_of(some, "test") == names_of(full, "test")
    assert names_of(loaded("digits", cache, validation_limit=50), "validation") == names_of(
        some, "validation"
    )
    assert some.report.unused == 1797 - len(some)
    assert len({full.fingerprint, some.fingerprint, fewer.fingerprint}) == 3
    assert names_of(loaded("digits", cache, train_limit=100, seed=1), "train") != names_of(some, "train")
    assert len(loaded("digits", cache, train_limit=10**9)) == 1797


def test_limits_below_the_number_of_classes(cache: Path) -> None:
    problems = refusal("digits", cache, train_limit=9, test_limit=3).problems
    assert len(problems) == 2
    assert "data.train_limit is 9, but must be at least 10" in problems[0]


def test_small_classes_are_all_named(tmp_path: Path, cache: Path) -> None:
    root = draw_classes(tmp_path / "images", {"a": 20, "b": 2, "c": 1, "d": 3})
    problems = refusal(root, cache).problems
    assert len(problems) == 2
    assert "class 'b' has 2 different images, but needs at least 3" in problems[0]
    assert "class 'c' has 1 different image, but" in problems[1]
    assert "train, validation and test" in problems[0]
    shutil.rmtree(root / "c")
    data = loaded(root, cache, test=0.0)
    assert data.report.counts["validation"]["b"] == 1
    assert len(data.splits["test"]) == 0


def test_identical_images_share_a_split(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "images"
    for place, name in enumerate(("a", "b")):
        for i in range(30):
            for copy in range(1 + i % 4):
                draw(root / name / f"{i}-{copy}.png", 1000 * place + i)
    Image.fromarray(noise(3)).save(root / "a" / "3-tiff.tiff")  # same pixels, other bytes
    for seed in range(5):
        data = loaded(root, cache, seed=seed)
        split_of: dict[str, str] = {}
        for split in data.splits:
            for name in names_of(data, split):
                key = name.replace(".tiff", ".png").split("-")[0]
                assert split_of.setdefault(key, split) == split
        sizes = [len(places) for places in data.splits.values()]
        assert sum(sizes) == 147
        assert np.abs(np.array(sizes) - [147 * 0.6, 147 * 0.2, 147 * 0.2]).max() <= 5
        assert min(min(of.values()) for of in data.report.counts.values()) > 0
    group = next(each for each in data.report.identical if "a/3-tiff.tiff" in each)
    assert len(group) == 5
    assert data.report.duplicates == ()


def test_large_groups_still_fill_every_split(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "images"
    for place, name in enumerate(("a", "b")):
        for i in range(3):
            for copy in range(6):
                draw(root / name / f"{i}-{copy}.png", 1000 * place + i)
    assert [len(places) for places in loaded(root, cache).splits.values()] == [12, 12, 12]


def test_identical_images_across_given_splits(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "images"
    draw_classes(root / "train", {"a": 10, "b": 10})
    draw_classes(root / "val", {"a": 4, "b": 4}, first=100)
    draw_classes(root / "test", {"a": 4, "b": 4}, first=200)
    draw(root / "train" / "a" / "leak.png", 200)  # is test/a/000.png
    draw(root / "train" / "a" / "leak2.png", 101)  # is val/a/001.png
    draw(root / "val" / "b" / "leak3.png", 1201)  # is test/b/001.png
    data = loaded(root, cache)
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [20, 8, 8]
    assert set(data.report.duplicates) == {
        ("train/a/leak.png", "train", "test/a/000.png", "test"),
        ("train/a/leak2.png", "train", "val/a/001.png", "validation"),
        ("val/b/leak3.png", "validation", "test/b/001.png", "test"),
    }
    assert "train/a/leak.png" in "\n".join(data.report.lines())
    assert not names_of(data, "train") & {"train/a/leak.png", "train/a/leak2.png"}


def test_a_class_whose_every_image_leaks(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "images"
    for split in ("train", "val", "test"):
        draw_classes(root / split, {"a": 4}, first={"train": 0, "val": 100, "test": 200}[split])
        draw_classes(root / split, {"b": 4}, first=500)
    problems = refusal(root, cache).problems
    assert [problem.split(" split")[0] for problem in problems] == ["the train", "the validation"]


def test_conflicting_labels_are_reported(images: Path, cache: Path) -> None:
    shutil.copyfile(images / "cat" / "000.png", images / "dog" / "is_cat.png")
    data = loaded(images, cache)
    assert data.report.conflicts == ((("cat/000.png", "cat"), ("dog/is_cat.png", "dog")),)
    assert "identical images with different labels" in "\n".join(data.report.lines())
    split = [name for name in data.splits if "cat/000.png" in names_of(data, name)]
    assert "dog/is_cat.png" in names_of(data, split[0])


# Fingerprint


def test_fingerprint_changes_with_what_it_names(images: Path, cache: Path) -> None:
    data = loaded(images, cache)
    seen = {data.fingerprint}
    os.utime(images / "cat" / "000.png", ns=(1, 1))
    assert loaded(images, cache).fingerprint in seen
    seen.add(loaded(images, cache, validation=0.3).fingerprint)
    draw(images / "cat" / "000.png", 9000)
    seen.add(loaded(images, cache).fingerprint)
    (images / "cat" / "000.png").rename(images / "dog" / "000x.png")
    seen.add(loaded(images, cache).fingerprint)
    (images / "cat").rename(images / "cow")
    seen.add(loaded(images, cache).fingerprint)
    assert len(seen) == 5


# The store


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of many shapes and kinds."""
    root = tmp_path / "mixed"
    for i in range(24):
        name = ("a", "b")[i % 2]
        path = root / name / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise(i, 20 + i, 60 - i, channels=(3, 1, 4)[i % 3])
        Image.fromarray(pixels).save(path)
    wide = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50
    Image.fromarray(wide).save(root / "a" / "wide.tiff")
    return root


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_stored_frames_equal_computed_ones(mixed: Path, cache: Path, interpolation: str) -> None:
    data = loaded(mixed, cache)
    frames = data.frames(32, interpolation)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    batch = frames[order]
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    for place, frame in zip(order.tolist(), batch, strict=True):
        assert torch.equal(frame, to_frame(decode(mixed / data.names[place]), 32, interpolation))
    report = data.report
    assert report.modes == {"RGB": 8, "L": 8, "RGBA": 8, "I;16": 1}
    assert report.sizes["60x20"] == 1
    assert frames[order[:0]].shape == (0, 3, 32, 32)
    with pytest.raises(IndexError, match="25 frames"):
        frames[torch.tensor([25])]
    with pytest.raises(IndexError):
        frames[torch.tensor([-1])]
    with pytest.raises(ValueError, match="lanczos"):
        data.frames(32, "lanczos")


@pytest.mark.parametrize("size", [6, 12, 40])
def test_uniform_images_are_stored_once(images: Path, cache: Path, size: int) -> None:
    data = loaded(images, cache)
    frames = data.frames(size, "bicubic")[torch.arange(40)]
    kept = {path.name for path in cache.rglob("*.npy")}
    assert kept == {"items.npy", "native.npy"} | ({"frames-6-bicubic.npy"} if size == 6 else set())
    for name, frame in zip(data.names, frames, strict=True):
        assert torch.equal(frame, to_frame(decode(images / name), size, "bicubic"))
    assert data.frames(size, "bicubic")[torch.arange(0)].shape == (0, 3, size, size)


def test_a_second_load_decodes_nothing(mixed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loaded(mixed, cache)
    want = first.frames(16, "bilinear")[torch.arange(25)]
    forbid_decoding(monkeypatch)
    second = loaded(mixed, cache)
    assert second.fingerprint == first.fingerprint
    assert second.report == first.report
    assert torch.equal(second.frames(16, "bilinear")[torch.arange(25)], want)
    with pytest.raises(AssertionError, match="decoded"):
        second.frames(17, "bilinear")


def test_one_pass_can_fill_the_frames_too(mixed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source=str(mixed))
    data = load(config, cache_dir=cache, frames=[(16, "bilinear"), (24, "bicubic")])
    plain = load(config, cache_dir=cache.with_name("other"))
    want = plain.frames(24, "bicubic")[torch.arange(25)]
    forbid_decoding(monkeypatch)
    assert torch.equal(data.frames(24, "bicubic")[torch.arange(25)], want)
    assert data.frames(16, "bilinear")[torch.arange(25)].shape == (25, 3, 16, 16)


def test_changed_files_are_read_again(mixed: Path, cache: Path) -> None:
    old = loaded(mixed, cache)
    draw(mixed / "a" / "00.png", 9000, height=30, width=30)
    new = loaded(mixed, cache)
    assert new.fingerprint != old.fingerprint
    place = new.names.index("a/00.png")
    frame = new.frames(16, "bilinear")[torch.tensor([place])][0]
    assert torch.equal(frame, to_frame(decode(mixed / "a" / "00.png"), 16, "bilinear"))
    with pytest.raises(DataError, match="has changed"):
        old.frames(16, "bilinear")
    (mixed / "a" / "00.png").unlink()
    with pytest.raises(DataError, match="readable before"):
        old.frames(16, "bilinear")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def blank(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def garble(path: Path) -> None:
    path.write_bytes(b"not what it was")


def pickled(path: Path) -> None:
    np.save(path, np.array([Malicious(os.mkdir, str(path.with_suffix(".trace")))], dtype=object))


@pytest.mark.parametrize("harm", [shorten, blank, garble, Path.unlink, pickled])
@pytest.mark.parametrize("kind", ["mixed", "images"])
def test_a_torn_store_is_built_again(
    harm: Callable[[Path], None], kind: str, request: pytest.FixtureRequest, cache: Path
) -> None:
    root = request.getfixturevalue(kind)
    data = loaded(root, cache)
    want = data.frames(8, "bilinear")[torch.arange(len(data))]
    files = [path for path in cache.rglob("*") if path.suffix in (".npy", ".json")]
    assert len(files) == (4 if kind == "mixed" else 6)
    for path in files:
        if harm is pickled and path.suffix == ".json":
            continue
        harm(path)
        again = loaded(root, cache)
        assert again.fingerprint == data.fingerprint
        assert torch.equal(again.frames(8, "bilinear")[torch.arange(len(data))], want)
    assert not list(cache.rglob("*.trace"))
    assert not list(cache.rglob("*.tmp"))


def test_a_foreign_store_is_not_used(mixed: Path, cache: Path) -> None:
    data = loaded(mixed, cache)
    want = data.frames(16, "bilinear")[torch.arange(25)]
    data.frames(16, "bicubic")
    folder = next(cache.rglob("scan.json")).parent
    for ending in ("npy", "json"):
        shutil.copyfile(folder / f"frames-16-bicubic.{ending}", folder / f"frames-16-bilinear.{ending}")
    assert torch.equal(loaded(mixed, cache).frames(16, "bilinear")[torch.arange(25)], want)


def test_the_cache_can_be_deleted_at_any_time(mixed: Path, cache: Path) -> None:
    data = loaded(mixed, cache)
    frames = data.frames(16, "bilinear")
    want = frames[torch.arange(25)]
    shutil.rmtree(cache)
    assert torch.equal(frames[torch.arange(25)], want)
    assert torch.equal(data.frames(16, "bilinear")[torch.arange(25)], want)

    deleted: list[str] = []

    def delete_once(stage: str, done: int, total: int) -> None:
        if not deleted and done > 3:
            deleted.append(stage)
            shutil.rmtree(cache, ignore_errors=True)

    shutil.rmtree(cache)
    again = load(DataConfig(source=str(mixed)), cache_dir=cache, progress=delete_once)
    assert deleted == ["reading images"]
    assert torch.equal(again.frames(16, "bilinear")[torch.arange(25)], want)


def test_loads_at_once_share_the_work(mixed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def counted(path: Path, max_pixels: int) -> Any:
        reads.append(path)
        return read(path, max_pixels)

    monkeypatch.setattr(store, "read", counted)
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(loaded(mixed, cache).fingerprint)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert len(reads) == 25


def test_a_cache_that_cannot_be_written(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cache.dir" in str(refusal(images, tmp_path / "file"))


def test_progress(mixed: Path, cache: Path) -> None:
    told: list[tuple[str, int, int]] = []
    config = DataConfig(source=str(mixed))
    data = load(config, cache_dir=cache, progress=lambda *values: told.append(values))
    assert [done for stage, done, _ in told if stage == "reading images"] == list(range(1, 26))
    data.frames(16, "bilinear")
    assert told[-1] == ("resizing images to 16 pixels", 25, 25)
    told.clear()
    load(config, cache_dir=cache, progress=lambda *values: told.append(values))
    assert told == []


# The report


def test_report_reads_at_a_glance(images: Path, cache: Path) -> None:
    data = loaded(images, cache)
    assert data.report.lines() == [
        f"{images}: 40 images in 2 classes",
        "splits: train 24, validation 8, test 8",
        "train images by class: cat 18, dog 6",
        "WARNING: the commonest class has 3.0 times the images of the rarest; look at macro F1 "
        "besides accuracy, or try class_weights",
        "sizes: 10x12 x 40",
        "pixel formats: RGB (colour) x 40",
    ]
    assert data.report.imbalance == pytest.approx(3)
    assert json.loads(json.dumps(data.report.to_dict()))["found"] == 40


def test_names_that_are_not_utf8(images: Path, cache: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copyfile(images / "cat" / "000.png", images / "cat" / name)
    data = loaded(images, cache)
    assert f"cat/{name}" in data.names
    "\n".join(data.report.lines()).encode("utf-8")
    assert loaded(images, cache).names == data.names
