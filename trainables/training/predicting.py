"""Saved models in use, of any modality that can read an example: items in, labels and probabilities out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from trainables.modalities import modality
from trainables.modality import Data, Modality, Predictor
from trainables.training.card import Card, ModelError
from trainables.training.delta import LoadedModel, whole_model

__all__ = ["ItemPredictor", "TensorsExporter", "read_tensors"]

_BATCH = 64
_CARD = "transfer_search.card"
_FILE = "model.safetensors"


class ItemPredictor:
    """Tells the classes of examples as they come.

    Args:
        card: what the model is.
        model: maps inputs [B, ...] to logits [B, C].
        read: makes an example, a tensor, of whatever a person has of one.
        column: of a frame that holds examples.
    """

    def __init__(
        self, card: Card, model: Callable[[Tensor], Tensor], read: Callable[[Any], Tensor], column: str
    ) -> None:
        self.card = card
        self._model, self._read, self._column = model, read, column
        kind: Modality[Any] = modality(card.hparams.modality)
        self._plain = kind.plain(card.preprocessing)

    def logits(self, examples: Tensor) -> Tensor:
        """Logits [B, C] of examples [B, ...]."""
        with torch.no_grad():
            seeds = torch.zeros(len(examples), dtype=torch.int64)
            return self._model(self._plain(examples, seeds))

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row an example: `label`, `probability`, and `probabilities` of all classes in order.

        Args:
            model_input: one example, or a list, an array or the column of a frame of them.
            params: not used; MLflow passes it.

        Raises:
            ValueError: for what is no example.
        """
        rows = [row for batch in self._batches(model_input) for row in self.probabilities(batch)]
        return pd.DataFrame(
            {
                "label": [self.card.classes[int(row.argmax())] for row in rows],
                "probability": [float(row.max()) for row in rows],
                "probabilities": [row.numpy() for row in rows],
            }
        )

    def example(self, item: Any) -> Tensor:
        """An example as a person has it, as a tensor.

        Raises:
            ValueError: for what is none.
        """
        return self._read(item)

    def probabilities(self, examples: list[Tensor]) -> Tensor:
        """Probabilities [B, C] of examples."""
        return self.logits(torch.stack(examples)).float().softmax(1)

    def _batches(self, model_input: Any) -> Iterator[list[Tensor]]:
        examples = [self._read(item) for item in self._items(model_input)]
        for start in range(0, len(examples), _BATCH):
            yield examples[start : start + _BATCH]

    def _items(self, model_input: Any) -> Iterable[Any]:
        if isinstance(model_input, pd.DataFrame):
            if self._column not in model_input:
                raise ValueError(
                    f"the frame has {list(model_input)}, but must have a column `{self._column}`"
                )
            return list(model_input[self._column])
        if isinstance(model_input, str | bytes | Path):
            return [model_input]
        if not isinstance(model_input, Iterable):
            raise ValueError(f"the input is {model_input!r}, but must be a list, an array or a frame")
        return model_input


class TensorsExporter:
    """Writes a model as its tensors, with the card inside; to be read with this package."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def names(self, kind: str) -> Sequence[str]:
        """The one file."""
        return (_FILE,)

    def write(self, kind: str, folder: Path) -> None:
        """Writes the one file into a folder."""
        state = {
            name: tensor.contiguous().clone() for name, tensor in self._loaded.model.state_dict().items()
        }
        text = json.dumps(self._loaded.card.to_dict(), indent=2)
        safetensors.torch.save_file(state, folder / _FILE, metadata={_CARD: text})

    def difference(self, predictor: Predictor, data: Data) -> str:
        """Nothing: a file of tensors is the model that was trained."""
        return ""

    @property
    def needs(self) -> Sequence[str]:
        """None, since it is not served."""
        return ()

    def sample(self, data: Data) -> Mapping[str, bytes | str]:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError("a file of tensors is not served")

    def facts(self, folder: Path) -> Mapping[str, Any]:
        """Nothing that a README would tell of the files."""
        return {}


def read_tensors(path: Path) -> LoadedModel:
    """The model that `TensorsExporter` wrote.

    Raises:
        ModelError: if the file is none, or damaged.
    """
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_CARD, "")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path} carries no card of transfer-search") from error
    return whole_model(Card.from_dict(values), tensors, path)
