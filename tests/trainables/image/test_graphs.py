"""Exported graphs, and the file beside them that needs nothing of this package."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trainables.image.backbones import Backbone
from trainables.image.classifier import of_model
from trainables.image.decode import UnreadableImage, decode
from trainables.image.graphs import FILES, WholeModel, read_graph, write_graph, write_helper
from trainables.image.hparams import ImageHParams as HParams
from trainables.image.standalone import classify
from trainables.training.card import make_card
from trainables.training.delta import LoadedModel
from trainables.training.model import TransferModel, build_model

CLASSES = ("zero", "one, or two", "Grünes Quadrat")


@pytest.fixture(scope="module")
def loaded(small_lite0: Backbone) -> LoadedModel:
    """A network of one convolution, read on a grid and traced in a second, under the card of a real one."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    head = nn.Sequential(nn.Linear(8 * 9 + 8, len(CLASSES)))
    model = TransferModel(trunk.eval(), head, small_lite0.preprocessing, ("1:3",)).eval()
    hparams = HParams(image_size=32)
    return LoadedModel(model, make_card(small_lite0, hparams, CLASSES, {"val_accuracy": 0.5}))


@pytest.fixture(scope="module")
def folder(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export")
    whole = WholeModel(loaded)
    for kind in ("onnx", "pt2"):
        write_graph(kind, whole, place / FILES[kind])
    assert write_helper("onnx", place) == "classify.py"
    return place


def mixed(folder: Path) -> list[Path]:
    """Files of every kind that a decoder treats in its own way."""
    noise = np.random.default_rng(0)
    photo = Image.fromarray(noise.integers(0, 256, (50, 61, 3), dtype=np.uint8))
    turned = photo.getexif()
    turned[0x0112] = 6
    wide = Image.fromarray(noise.integers(0, 65536, (40, 33), dtype=np.uint16))
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "photo.jpg": (photo, {}),
        "turned.jpg": (photo, {"exif": turned}),
        "grey.png": (photo.convert("L"), {}),
        "palette.gif": (photo.convert("P"), {}),
        "alpha.png": (Image.merge("RGBA", (*photo.split(), photo.convert("L"))), {}),
        "transparent.png": (photo.convert("P"), {"transparency": 3}),
        "wide.png": (wide, {}),
        "odd.bmp": (photo.resize((1, 7)), {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "one.tiff": (photo.convert("1"), {}),
        "photo.webp": (photo, {}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return [folder / name for name in files]


def test_a_file_has_the_same_pixels_without_this_package(tmp_path: Path) -> None:
    for path in mixed(tmp_path):
        assert torch.equal(torch.from_numpy(classify.pixels(path)).permute(2, 0, 1), decode(path)), path.name


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_graph_resizes_itself(loaded: LoadedModel, folder: Path, kind: str) -> None:
    trained, graph = of_model(loaded), read_graph(kind, folder / FILES[kind])
    assert graph.card == loaded.card
    assert graph.raw is not None
    for count, height, width in ((1, 50, 61), (3, 9, 200), (64, 33, 32)):
        images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
        expected = trained.probabilities(list(trained.resized(images)))
        found = graph.raw(images.permute(0, 2, 3, 1)).softmax(1)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(graph.probabilities(list(trained.resized(images))), expected)


def test_files_are_classified_alike_with_and_without_this_package(
    loaded: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    paths = mixed(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(paths[0].read_bytes()[:300])
    command = [sys.executable, str(folder / "classify.py"), "--json", *map(str, paths)]
    told = subprocess.run([*command, str(tmp_path / "broken.jpg")], capture_output=True, text=True)
    *rows, broken = [json.loads(line) for line in told.stdout.splitlines()]
    assert told.returncode == 1
    assert "cannot be read" in broken["error"]
    expected = of_model(loaded).predict(paths)
    assert [row["label"] for row in rows] == list(expected["label"])
    found = np.array([list(row["probabilities"].values()) for row in rows])
    np.testing.assert_allclose(found, np.stack(expected["probabilities"]), atol=1e-3)


def test_a_text_is_an_image_in_base64_and_never_a_path(folder: Path, tmp_path: Path) -> None:
    classifier = classify.Classifier(folder / "model.onnx")
    output = io.BytesIO()
    Image.new("RGB", (20, 30), "red").save(output, "JPEG")
    text = base64.b64encode(output.getvalue()).decode()
    assert classifier.predict([text])["label"][0] in CLASSES
    path = tmp_path / "red.jpg"
    path.write_bytes(output.getvalue())
    for refused in (str(path), "/etc/passwd", "/etc/nosuch", "AAAA", text[: len(text) // 8 * 4]):
        with pytest.raises(classify.NoImage):
            classifier.predict([refused])


def test_safetensors_are_built_again_by_the_loader_beside_them(small_lite0: Backbone, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    expected = []
    heads = {
        "mlp": {"head": "mlp"},
        "stages": {"features": "stages", "solver": "ridge"},
        "grid": {"features": "grid"},
    }
    for name, knobs in heads.items():
        hparams = HParams(image_size=32, **knobs)
        model = build_model(small_lite0, hparams, 3).eval()
        if name != "mlp":
            width = model.head.get_submodule("output").in_features
            model.head.get_submodule("standard").set(torch.rand(width), 0.5 + torch.rand(width))
        built = LoadedModel(model, make_card(small_lite0, hparams, CLASSES, {"val_accuracy": 0.5}))
        write_graph("safetensors", WholeModel(built), tmp_path / f"{name}.safetensors")
        expected.append(of_model(built).predict([tmp_path / "image.png"])["probabilities"][0])
    write_helper("safetensors", tmp_path)
    script = (
        "from PIL import Image; from load_safetensors import load\n"
        f"for name in {list(heads)}:\n"
        "    model = load(f'{name}.safetensors')\n"
        "    image = model.prepare(Image.open('image.png').convert('RGB'))\n"
        "    print(model(image.unsqueeze(0)).softmax(1)[0].tolist())"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    found = [json.loads(line) for line in told.stdout.splitlines()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bytes_that_are_no_image_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(UnreadableImage):
        of_model(loaded).predict(["/etc/passwd"])
