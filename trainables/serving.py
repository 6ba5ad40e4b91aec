"""A saved model in use: image files, bytes or arrays in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from trainables.image.augment import center_crop
from trainables.image.decode import decode, to_frame
from trainables.training.model import Card, load_delta

__all__ = ["Classifier"]

_BATCH = 64


class Classifier:
    """Classifies images as they come.

    Args:
        logits: the model: uint8 [B, 3, s, s] to logits [B, C].
        card: what the model is; its preprocessing is applied here.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor], card: Card) -> None:
        self.card = card
        self.logits = logits

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row an image: `label`, `probability`, and `probabilities` of all classes in order.

        Args:
            model_input: an array uint8 [N, H, W, 3]; or a list, a Series, or the column `image` of a
                frame, of paths, encoded bytes, or arrays uint8 [H, W, 3].
            params: not used; MLflow passes it.

        Raises:
            ValueError: for what is no image.
        """
        parts = []
        batch: list[Tensor] = []
        for item in _items(model_input):
            batch.append(self._input(item))
            if len(batch) == _BATCH:
                parts.append(self._probabilities(batch))
                batch = []
        if batch:
            parts.append(self._probabilities(batch))
        if not parts:
            return pd.DataFrame({"label": [], "probability": [], "probabilities": []})
        probabilities = torch.cat(parts).numpy()
        best = probabilities.argmax(1)
        return pd.DataFrame(
            {
                "label": [self.card.classes[index] for index in best],
                "probability": probabilities.max(1),
                "probabilities": list(probabilities),
            }
        )

    def _input(self, item: Any) -> Tensor:
        preprocessing = self.card.preprocessing
        image = _image(item)
        frame = to_frame(image, preprocessing.frame_size, preprocessing.interpolation)
        return center_crop(frame.unsqueeze(0), preprocessing.image_size)[0]

    def _probabilities(self, batch: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return self.logits(torch.stack(batch)).float().softmax(1)


def _items(model_input: Any) -> Iterable[Any]:
    if isinstance(model_input, pd.DataFrame):
        if "image" not in model_input:
            raise ValueError(f"the frame has {list(model_input)}, but must have a column `image`")
        return list(model_input["image"])
    if isinstance(model_input, str | bytes | Path):
        return [model_input]
    if not isinstance(model_input, Iterable):
        raise ValueError(f"the input is {model_input!r}, but must be a list, an array or a frame of images")
    return model_input


def _image(item: Any) -> Tensor:
    """A decoded image, uint8 [3, H, W]."""
    if isinstance(item, str):
        item = Path(item)
    if isinstance(item, Path | bytes):
        return decode(item)
    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(
            f"an image is {array.dtype} {list(array.shape)}, but must be uint8 [H, W, 3], "
            "a path or encoded bytes"
        )
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def _load_pyfunc(path: str) -> Classifier:
    """What `mlflow.pyfunc.load_model` calls with the folder of the delta."""
    loaded = load_delta(Path(path))
    return Classifier(loaded.model, loaded.card)
