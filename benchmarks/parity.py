"""Whether an export says elsewhere what `predict` says here, over files of every kind.

    python benchmarks/parity.py [--files 300] [--size 224] [--backbones NAME...]

For each backbone a model (the registry's weights for EfficientNet-Lite0, drawn ones for the others) is
exported as `onnx` and `pt2`. `classify.py` then reads the files in a virtual environment that holds
onnxruntime, numpy and Pillow and what they require, nothing else; the `pt2` graph takes their pixels in one
that holds torch alone, an image at a time and in batches of 3 and 64 of one size. Both environments are made
of links to the packages of this one.

Prints one JSON line a backbone: how many labels differ, the largest difference of a probability, by way.
Exits with 1 where a label differs, or a probability by more than 1e-3.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare import bare_python
from PIL import Image
from torch import Tensor, nn

from trainables.image.classifier import Classifier, of_model
from trainables.image.graphs import FILES, WholeModel, write_graph, write_helper
from trainables.image.hparams import ImageHParams
from trainables.image.standalone import classify
from trainables.modalities import modality
from trainables.training.card import make_card
from trainables.training.delta import LoadedModel
from trainables.training.model import build_model

CLASSES = tuple(f"class {number}" for number in range(10))
BACKBONES = ("efficientnet_lite0", "resnet18", "timm/vit_tiny_patch16_224")
TOLERANCE = 1e-3
BATCHES = (1, 3, 64)

TORCH_ALONE = """
import sys, torch
try:
    import trainables
except ImportError:
    pass
else:
    sys.exit("this environment is not bare")
model = torch.export.load(sys.argv[1]).module()
with torch.no_grad():
    torch.save([model(batch).float().softmax(1) for batch in torch.load(sys.argv[2])], sys.argv[3])
"""


def drawn_files(folder: Path, count: int) -> list[Path]:
    """Image files of mixed kinds, sizes and shapes: smooth colours with some noise, as photographs have."""
    noise = np.random.default_rng(0)
    files = []
    for number in range(count):
        width, height = (int(side) for side in noise.integers(17, 420, 2))
        coarse = Image.fromarray(noise.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = noise.integers(-12, 13, (height, width, 3), dtype=np.int16)
        photo = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        suffix, image, options = _kind(photo, number)
        files.append(folder / f"{number:03d}{suffix}")
        image.save(files[-1], **options)
    return files


def _kind(photo: Image.Image, number: int) -> tuple[str, Image.Image, dict[str, Any]]:
    turned = photo.getexif()
    turned[0x0112] = 1 + number % 8
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        (".jpg", photo, {"quality": 90}),
        (".png", photo, {}),
        (".jpg", photo, {"exif": turned}),
        (".png", photo.convert("L"), {}),
        (".jpg", photo.convert("L"), {}),
        (".png", photo.convert("P"), {}),
        (".png", Image.merge("RGBA", (*photo.split(), photo.convert("L"))), {}),
        (".gif", photo.convert("P"), {}),
        (".webp", photo, {}),
        (".jpg", photo.convert("CMYK"), {}),
    ]
    return kinds[number % len(kinds)]


def drawn_model(backbone: str, size: int, files: Sequence[Path]) -> LoadedModel:
    """A model whose logits on the files have mean zero and deviation three: it says every class, surely."""
    kind: Any = modality("image")
    weights = "pretrained" if backbone == "efficientnet_lite0" else "none"
    hparams = ImageHParams(backbone=backbone, weights=weights, image_size=size)
    built = kind.backbone({"backbone": backbone, "weights": weights, "image_size": size})
    model = build_model(built, hparams, len(CLASSES)).eval()
    loaded = LoadedModel(model, make_card(built, hparams, CLASSES, {"val_accuracy": 0.0}))
    classifier = of_model(loaded)
    with torch.no_grad():
        logits = torch.cat([classifier.logits(classifier.frame(file).unsqueeze(0)) for file in files[:64]])
        output = next(layer for layer in reversed(list(model.head)) if isinstance(layer, nn.Linear))
        scale = 3 / logits.std(0)
        output.weight.mul_(scale.unsqueeze(1))
        output.bias.sub_(logits.mean(0)).mul_(scale)
    return loaded


def measured(backbone: str, size: int, files: Sequence[Path], folder: Path, pythons: dict[str, Path]) -> Any:
    """Exports a model and compares what is said of the files."""
    loaded = drawn_model(backbone, size, files)
    whole = WholeModel(loaded)
    for kind in ("onnx", "pt2"):
        write_graph(kind, whole, folder / FILES[kind])
    write_helper("onnx", folder)
    here = of_model(loaded)
    expected = np.stack(here.predict(list(files))["probabilities"])
    ways = {"classify.py": _classified(folder, files, pythons["onnx"])}
    pixels = [torch.from_numpy(classify.pixels(file)).unsqueeze(0) for file in files]
    batches = [torch.randint(0, 256, (count, size + 31, size + 7, 3), dtype=torch.uint8) for count in BATCHES]
    told = _in_torch_alone(folder, [*pixels, *batches], pythons["pt2"])
    ways["pt2"] = np.concatenate(told[: len(pixels)])
    line: dict[str, Any] = {"benchmark": "parity", "backbone": backbone, "size": size, "files": len(files)}
    for way, found in ways.items():
        line[way] = {
            "labels_that_differ": int((found.argmax(1) != expected.argmax(1)).sum()),
            "largest_difference": float(np.abs(found - expected).max()),
        }
    line["batches"] = _batches(folder, here, batches, told[len(pixels) :])
    line["labels_said"] = len(set(expected.argmax(1).tolist()))
    return line


def _classified(folder: Path, files: Sequence[Path], python: Path) -> Any:
    """The probabilities that `classify.py` gives, in its own environment."""
    command = [str(python), "-I", str(folder / "classify.py"), "--json", *map(str, files)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return np.array([list(json.loads(line)["probabilities"].values()) for line in told.stdout.splitlines()])


def _in_torch_alone(folder: Path, batches: Sequence[Tensor], python: Path) -> list[Any]:
    """The probabilities that the `pt2` graph gives of batches of pixels, where there is torch alone."""
    torch.save(list(batches), folder / "pixels.pt")
    command = [str(python), "-I", "-W", "ignore", "-c", TORCH_ALONE]
    places = [str(folder / name) for name in (FILES["pt2"], "pixels.pt", "told.pt")]
    subprocess.run([*command, *places], check=True)
    return [each.numpy() for each in torch.load(folder / "told.pt")]


def _batches(
    folder: Path, here: Classifier, batches: Sequence[Tensor], told: Sequence[Any]
) -> dict[str, float]:
    """By batch size, how far images of one size are from what they are one by one, in either graph."""
    graph, largest = classify.Classifier(folder / FILES["onnx"]), {}
    for images, found in zip(batches, told, strict=True):
        expected = here.probabilities([here.resized(image.permute(2, 0, 1)) for image in images]).numpy()
        onnx = graph.probabilities(images.numpy())
        largest[str(len(images))] = float(max(np.abs(found - expected).max(), np.abs(onnx - expected).max()))
    return largest


def main() -> int:
    """Draws the files, measures each backbone and prints its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    asked = parser.parse_args()
    code = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        files = drawn_files(folder / "files", asked.files)
        pythons = {
            "onnx": bare_python(folder / "onnx", "onnxruntime", "numpy", "pillow"),
            "pt2": bare_python(folder / "pt2", "torch"),
        }
        for number, backbone in enumerate(asked.backbones):
            place = folder / f"export-{number}"
            place.mkdir()
            line = measured(backbone, asked.size, files, place, pythons)
            print(json.dumps(line), flush=True)
            ways = [line["classify.py"], line["pt2"]]
            worst = max(*(way["largest_difference"] for way in ways), *line["batches"].values())
            if worst > TOLERANCE or any(way["labels_that_differ"] for way in ways):
                code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
