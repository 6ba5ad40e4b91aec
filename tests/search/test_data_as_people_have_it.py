"""Folders with every hard kind of image, and the CIFAR-10 example, through the whole command line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.spec.search_spec import read_spec
from tests.search.commands import rows, transfer_search

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("shared_ray")


def picture(kind: str, seed: int) -> Image.Image:
    """A noisy picture, reddish or bluish."""
    noise = np.random.default_rng(seed).integers(0, 120, (40, 52, 3), dtype=np.uint8)
    noise[..., 0 if kind == "red" else 2] += 120
    return Image.fromarray(noise)


def write_hard_images(root: Path) -> list[Path]:
    """One of each hard kind among ordinary images of two classes; returns the hard ones."""
    for kind in ("red", "blue"):
        (root / kind).mkdir(parents=True)
        for seed in range(12):
            picture(kind, seed).save(root / kind / f"{seed}.png")
    red, base = root / "red", picture("red", 100)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = np.random.default_rng(0).integers(0, 65535, (30, 30), dtype=np.uint16)
    hard = {
        "grey.png": lambda path: base.convert("L").save(path),
        "clear.png": lambda path: base.convert("RGBA").save(path),
        "palette.gif": lambda path: base.convert("P").save(path),
        "print.jpg": lambda path: picture("red", 101).convert("CMYK").save(path),
        "deep.png": lambda path: Image.fromarray(deep).save(path),
        "turned.jpg": lambda path: picture("red", 102).save(path, exif=turned),
        "moving.gif": lambda path: base.save(
            path, save_all=True, append_images=[picture("blue", s).convert("P") for s in range(3)]
        ),
        "tiny.png": lambda path: Image.new("RGB", (1, 1), (200, 10, 10)).save(path),
        "huge.png": lambda path: Image.new("RGB", (3000, 2000), (210, 20, 20)).save(path),
        "long.png": lambda path: Image.new("RGB", (900, 6), (190, 30, 30)).save(path),
    }
    for name, write in hard.items():
        write(red / name)
    return [red / name for name in hard]


@pytest.mark.long
def test_a_folder_of_hard_images_trains_exports_and_predicts(folder: Path) -> None:
    hard = write_hard_images(folder / "images")
    (folder / "images" / "blue" / "empty.png").touch()
    torn = (folder / "images" / "blue" / "0.png").read_bytes()
    (folder / "images" / "blue" / "torn.png").write_bytes(torn[: len(torn) // 2])
    example = ROOT / "examples" / "image_folder.yaml"
    settings = (
        "data.source=images",
        "data.image_size=32",
        "data.splits={validation: 0.3, test: 0.2}",
        "search.trials=2",
        "search.max_epochs=2",
        "space.strategy=probe",
        "space.freeze=0.5",
        "space.trunk_lr=3e-4",
    )
    words = ["launch", example, "--name", "hard", *(f"--set={each}" for each in settings)]
    refused = transfer_search(*words, "--set=data.unreadable=refuse", code=2)
    assert "empty.png" in refused
    assert "torn.png" in refused
    printed = transfer_search(*words)
    assert "empty.png" in printed
    assert "torn.png" in printed
    assert "36 images" in printed
    transfer_search("export", "hard", "--to", "out", "--format", "safetensors")
    found = rows("predict", "out", *hard)
    assert len(found) == len(hard)
    assert sum(row["label"] == "red" for row in found) >= 5


def write_cifar10(root: Path) -> None:
    """CIFAR-10 in its on-disk format: each class a colour of its own, so that there is something to learn."""
    place = root / "cifar-10-batches-py"
    place.mkdir(parents=True)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    chance = np.random.default_rng(0)
    colours = chance.integers(40, 216, (10, 3))
    for batch in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = np.arange(30) % 10
        noise = chance.integers(-39, 40, (30, 3, 32, 32))
        pixels = (colours[labels][:, :, None, None] + noise).astype(np.uint8).reshape(30, -1)
        content = {"data": pixels, "labels": labels.tolist(), "batch_label": batch}
        (place / batch).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"label_names": names, "num_vis": 3072}
    (place / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


@pytest.mark.long
def test_the_cifar10_example_runs_on_its_own_format(folder: Path) -> None:
    write_cifar10(folder / "data")
    example = ROOT / "examples" / "cifar10_vgg16.yaml"
    settings = (
        "data.image_size=32",
        "resources={cpu: 1, gpu: 0}",
        "search.trials=3",
        "search.max_epochs=2",
        "search.pruner=none",
        "space.weights=none",
        "space.batch_size=32",
        "space.freeze=0.9",
        "data.limit={train: 40, validation: 20, test: 20}",
    )
    words = ["launch", example, *(f"--set={each}" for each in settings)]
    transfer_search(*words)
    listed = rows("trials", "cifar10-vgg16")
    assert {row["state"] for row in listed} == {"COMPLETE"}
    assert listed[0]["params"]["backbone"] == "vgg16"
    assert "all agree" in transfer_search("doctor", "cifar10-vgg16")


def test_the_cifar10_example_says_what_is_missing(folder: Path) -> None:
    spec = read_spec(ROOT / "examples" / "cifar10_vgg16.yaml")
    assert spec.domain("backbone").value == "vgg16"  # type: ignore[union-attr]
    refused = transfer_search("launch", ROOT / "examples" / "cifar10_vgg16.yaml", code=2)
    assert str(folder / "data") in refused
    assert "vgg16" in refused
