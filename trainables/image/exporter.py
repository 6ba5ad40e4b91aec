"""An image model's way into files, and what is compared when they are read back."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainables.image.classifier import Classifier, of_model
from trainables.image.data import ImageData
from trainables.image.graphs import FILES, HELPERS, WholeModel, opset, write_graph, write_helper
from trainables.training.delta import LoadedModel

__all__ = ["ImageExporter"]

_DECODED = 48  # images that are compared as their files hold them
_TOLERANCE = 0.01  # of a probability


class ImageExporter:
    """Writes a model as graphs, traced once for all formats, and as tensors."""

    needs = ("numpy", "onnxruntime", "pillow")

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._whole = WholeModel(loaded)

    def names(self, kind: str) -> Sequence[str]:
        """The model's file, and what helps to use it."""
        return [FILES[kind], *([HELPERS[kind]] if kind in HELPERS else [])]

    def write(self, kind: str, folder: Path) -> None:
        """Writes the files of a format into a folder."""
        write_graph(kind, self._whole, folder / FILES[kind])
        write_helper(kind, folder)

    def difference(self, predictor: Classifier, data: ImageData) -> str:
        """How far a graph that is given images at their own sizes is from the trained model, in words.

        Raises:
            ValueError: if it is so far that a label may change.
        """
        if predictor.raw is None:
            return ""
        trained = of_model(self._loaded)
        chosen = data.splits["validation"][:_DECODED].tolist()
        largest = 0.0
        for index in chosen:
            image = data.image(index)
            expected = trained.probabilities([trained.resized(image)])[0]
            with torch.no_grad():
                found = predictor.raw(image.permute(1, 2, 0).unsqueeze(0)).float().softmax(1)[0]
            difference = float((found - expected).abs().max())
            largest = max(largest, difference)
            if difference > _TOLERANCE:
                raise ValueError(
                    f"the exported graph tells {data.names[index]!r} ({image.shape[2]} x {image.shape[1]} "
                    f"pixels) otherwise than the trained model: a probability differs by {difference:.3f}"
                )
        return f"{len(chosen)} images at their own sizes: probabilities differ by at most {largest:.1g}"

    def sample(self, data: ImageData) -> Mapping[str, bytes | str]:
        """A validation image as a PNG."""
        image = data.image(int(data.splits["validation"][0]))
        output = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(output, "PNG")
        return {"image": output.getvalue()}

    def facts(self, folder: Path) -> Mapping[str, Any]:
        """The version of ONNX's operators, where there is such a file."""
        return {"opset": opset(folder / FILES["onnx"]) if (folder / FILES["onnx"]).exists() else None}
