"""Classifies images with the ONNX model beside this file; needs onnxruntime, numpy and Pillow, nothing else.

    python classify.py photo.jpg scan.png          # a line an image; --json for a program

    from classify import Classifier
    Classifier("model.onnx").classify([Path("photo.jpg"), jpeg_bytes, pixels])

An image is a `pathlib.Path`, the bytes of an image file, the same in base64 as text, a Pillow image, or an
array uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. A text is never taken for a path, so that whoever may
only send text opens no file. MLflow loads this file too, by `_load_pyfunc`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

MAX_PIXELS = 100_000_000
"""More pixels than this in one image are taken for a decompression bomb."""

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = npt.NDArray[np.uint8]


class NoImage(ValueError):
    """What was given cannot be read as an image; the message says why."""


class Classifier:
    """The model of a file.

    Args:
        model: `model.onnx`, which carries the names of its classes.

    Attributes:
        classes: their names, in the order of the probabilities.
    """

    def __init__(self, model: str | Path) -> None:
        self._session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        card = json.loads(self._session.get_modelmeta().custom_metadata_map["transfer_search.card"])
        self.classes: list[str] = card["classes"]
        self._least = card.get("calibration", {}).get("conformal", {}).get("threshold")

    def classify(self, images: Iterable[Any]) -> list[dict[str, Any]]:
        """For each image its `label`, `probability`, and `probabilities` by class.

        Where its card has conformal sets, `set` has classes of which one is true as often as it says.

        Raises:
            NoImage: for the first that cannot be read.
        """
        return [self._told(self.probabilities(pixels(image)[None])[0]) for image in images]

    def probabilities(self, batch: Pixels) -> npt.NDArray[np.float32]:
        """Of decoded images of one size, uint8 [B, H, W, 3], float [B, C]."""
        (logits,) = self._session.run(["logits"], {"images": batch})
        powers = np.exp(logits - logits.max(1, keepdims=True))
        shares: npt.NDArray[np.float32] = powers / powers.sum(1, keepdims=True)
        return shares

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """As MLflow calls it: a frame with the column `image`, or images, to a frame of a row an image."""
        import pandas as pd

        if isinstance(model_input, pd.DataFrame):
            if "image" not in model_input:
                raise NoImage(f"the frame has {list(model_input)}, but must have a column `image`")
            model_input = list(model_input["image"])
        elif isinstance(model_input, str | bytes | Path | Image.Image):
            model_input = [model_input]
        rows = self.classify(model_input)
        return pd.DataFrame(
            {
                "label": [row["label"] for row in rows],
                "probability": [row["probability"] for row in rows],
                "probabilities": [list(row["probabilities"].values()) for row in rows],
            }
        )

    def _told(self, shares: npt.NDArray[np.float32]) -> dict[str, Any]:
        best = int(shares.argmax())
        told = {
            "label": self.classes[best],
            "probability": float(shares[best]),
            "probabilities": dict(zip(self.classes, map(float, shares), strict=True)),
        }
        if self._least is not None:
            order = shares.argsort()[::-1]
            told["set"] = [self.classes[i] for i in order if i == best or shares[i] >= self._least]
        return told


def pixels(image: Any) -> Pixels:
    """An image's pixels, upright, in colour and on white: uint8 [H, W, 3].

    Raises:
        NoImage: for anything but a whole image of at most `MAX_PIXELS` pixels.
    """
    try:
        if isinstance(image, str):
            image = base64.b64decode(image, validate=True)
        elif isinstance(image, Path):
            image = image.read_bytes()
        if isinstance(image, bytes):
            return _decoded(image)
        if isinstance(image, Image.Image):
            return _colour(_upright(image))
        return _array(np.asarray(image))
    except NoImage:
        raise
    except binascii.Error as error:
        raise NoImage("a text must be an image file in base64; give a file as a pathlib.Path") from error
    except MemoryError:
        raise
    except Exception as error:  # parsers of bytes that nobody vouches for raise whatever they stumble on
        raise NoImage(f"this cannot be read as an image: {error or type(error).__name__}") from error


def _decoded(content: bytes) -> Pixels:
    Image.init()
    with Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise NoImage(f"{image.width} x {image.height} are more than {MAX_PIXELS:,} pixels")
        image.load()
        return _colour(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be seen."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block only means that no turn is known
        orientation = 1
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _colour(image: Image.Image) -> Pixels:
    """Three channels of eight bits: 16 bits scaled, transparency laid on white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise NoImage(f"32-bit pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return np.array(image.convert("RGB"))


def _array(array: npt.NDArray[Any]) -> Pixels:
    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    fits = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        raise NoImage(
            f"an image is {array.dtype} {list(array.shape)}, but must be uint8 [H, W], [H, W, 3] or "
            "[H, W, 4], a Pillow image, a pathlib.Path, the bytes of an image file, or these in base64"
        )
    return _colour(Image.fromarray(np.ascontiguousarray(flat)))


def _load_pyfunc(path: str) -> Classifier:
    """What `mlflow.pyfunc.load_model` calls with the place of the model."""
    return Classifier(path)


def _lines(classifier: Classifier, files: Iterable[str], as_json: bool) -> Iterator[tuple[bool, str]]:
    for file in files:
        try:
            (row,) = classifier.classify([Path(file)])
        except (NoImage, OSError) as error:
            yield False, json.dumps({"image": file, "error": str(error)}) if as_json else f"{file}: {error}"
            continue
        told = f"{file}: {row['label']} ({row['probability']:.3f})"
        yield True, json.dumps({"image": file, **row}) if as_json else told


def main() -> int:
    """Classifies the files that the command line names; 1 where one of them cannot be read."""
    parser = argparse.ArgumentParser(description="Classify images with the ONNX model beside this file.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--model", default=str(Path(__file__).with_name("model.onnx")))
    given = parser.parse_args()
    code = 0
    for is_read, line in _lines(Classifier(given.model), given.images, given.json):
        print(line, file=sys.stdout if is_read or given.json else sys.stderr)
        code = code if is_read else 1
    return code


if __name__ == "__main__":
    sys.exit(main())
