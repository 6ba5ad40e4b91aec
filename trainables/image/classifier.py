"""A saved model in use: images in, labels and probabilities out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from trainables.image.decode import UnreadableImage, decode, pixels, to_frame
from trainables.image.transforms import center_crop
from trainables.training.card import Card
from trainables.training.delta import LoadedModel

__all__ = ["Classifier", "of_crops", "of_model"]

_BATCH = 64


class Classifier:
    """Classifies images as they come.

    Args:
        logits: the model: frames uint8 [B, 3, S, S] to logits [B, C], where S is the frame size of the card.
        card: what the model is; images are resized as its preprocessing says.
        raw: the same for decoded pixels of any size, uint8 [B, H, W, 3]; None where it cannot resize.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        card: Card,
        raw: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.card = card
        self.logits = logits
        self.raw = raw

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row an image: `label`, `probability`, and `probabilities` of all classes in order.

        Args:
            model_input: an array uint8 [N, H, W, 3]; or one image, or a list, a Series, or the column
                `image` of a frame, of images. An image is a `pathlib.Path`, encoded bytes, the same in
                base64 as text, a Pillow image, or an array uint8 [H, W], [H, W, 1], [H, W, 3] or
                [H, W, 4]. A text is never a path: it may come from anybody.
            params: not used; MLflow passes it.

        Raises:
            ValueError: for what is no image.
        """
        parts = []
        batch: list[Tensor] = []
        for item in _items(model_input):
            batch.append(self.frame(item))
            if len(batch) == _BATCH:
                parts.append(self.probabilities(batch))
                batch = []
        if batch:
            parts.append(self.probabilities(batch))
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

    def frame(self, item: Any) -> Tensor:
        """An image as the frame that `probabilities` takes, uint8 [3, S, S].

        Raises:
            ValueError: for what is no image.
        """
        return self.resized(_image(item))

    def example(self, item: Any) -> Tensor:
        """The same; what every modality calls it."""
        return self.frame(item)

    def resized(self, image: Tensor) -> Tensor:
        """The frame of a decoded image, uint8 [3, H, W] -> [3, S, S]."""
        preprocessing = self.card.preprocessing
        return to_frame(image, preprocessing.frame_size, preprocessing.interpolation)

    def probabilities(self, frames: list[Tensor]) -> Tensor:
        """Probabilities [B, C] of frames, each uint8 [3, S, S]."""
        with torch.no_grad():
            return self.logits(torch.stack(frames)).float().softmax(1)


def of_model(loaded: LoadedModel) -> Classifier:
    """The classifier of a model in memory."""
    return of_crops(loaded.model, loaded.card)


def of_crops(logits: Callable[[Tensor], Tensor], card: Card) -> Classifier:
    """The classifier of what takes the network's own input: uint8 [B, 3, s, s] to logits [B, C]."""
    return Classifier(lambda frames: logits(center_crop(frames, card.preprocessing.image_size)), card)


def _items(model_input: Any) -> Iterable[Any]:
    if isinstance(model_input, pd.DataFrame):
        if "image" not in model_input:
            raise ValueError(f"the frame has {list(model_input)}, but must have a column `image`")
        return list(model_input["image"])
    if isinstance(model_input, str | bytes | Path | Image.Image):
        return [model_input]
    if not isinstance(model_input, Iterable):
        raise ValueError(f"the input is {model_input!r}, but must be a list, an array or a frame of images")
    return model_input


def _image(item: Any) -> Tensor:
    """A decoded image, uint8 [3, H, W]."""
    if isinstance(item, str):
        try:
            item = base64.b64decode(item, validate=True)
        except binascii.Error as error:
            raise UnreadableImage(
                "a text must be an image file in base64; a file is given as a pathlib.Path"
            ) from error
    if isinstance(item, Path | bytes):
        return decode(item)
    if isinstance(item, Image.Image):
        return pixels(item)
    array = np.asarray(item)
    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    fits = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        raise ValueError(
            f"an image is {array.dtype} {list(array.shape)}, but must be uint8 [H, W], [H, W, 3] or "
            "[H, W, 4], a Pillow image, a pathlib.Path, encoded bytes, or these in base64"
        )
    return pixels(Image.fromarray(np.ascontiguousarray(flat)))
