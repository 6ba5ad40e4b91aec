"""A whole model as one file: weights, tokenizer and class names, to be used without this package.

`pt2` and `onnx` are graphs that take tokens and their mask, int64 [B, 2, L], of any number and length.
`safetensors` holds the tensors alone. Each carries the model's card and the tokenizer's file.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import onnxruntime
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from trainables.text import standalone
from trainables.text.layouts import TOKENIZER
from trainables.text.networks import TextTrunk
from trainables.text.reading import read
from trainables.text.tokens import read_tokenizer, tokenizer_of
from trainables.training.card import Card, ModelError
from trainables.training.delta import LoadedModel, whole_model
from trainables.training.predicting import ItemPredictor

__all__ = ["HELPER", "WholeModel", "opset", "predictor_of", "read_graph", "write_graph"]

HELPER = "classify.py"
"""What lies beside an ONNX file, for whoever has nothing else."""

_CARD = "transfer_search.card"
_TOKENIZER = "transfer_search.tokenizer"
_LONGEST = 65536


class WholeModel(nn.Module):
    """What a graph holds: tokens and their mask, int64 [B, 2, L], to logits [B, C]."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.loaded = loaded
        self.model = loaded.model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens)
        return logits

    @property
    def told(self) -> dict[str, str]:
        """What a file says of itself."""
        card = self.loaded.card
        return {
            _CARD: json.dumps(card.to_dict(), indent=2),
            _TOKENIZER: tokenizer_of(card.preprocessing).text,
        }

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph, open in the number of texts and their length; traced once, which takes seconds."""
        return torch.export.export(self.eval(), self.example, dynamic_shapes=self.sizes, strict=False)

    @property
    def example(self) -> tuple[Tensor]:
        """Tokens to trace it with."""
        return (torch.ones(3, 2, min(7, self._longest), dtype=torch.int64),)

    @property
    def sizes(self) -> tuple[dict[int, Any]]:
        """What is open in it."""
        count = torch.export.Dim("batch", min=1, max=_LONGEST)
        return ({0: count, 2: torch.export.Dim("length", min=2, max=self._longest)},)

    @property
    def _longest(self) -> int:
        return int(self.loaded.card.preprocessing.max_length)


def write_graph(kind: str, whole: WholeModel, folder: Path, name: str) -> None:
    """Writes a model in a format into a folder, and what lies beside it."""
    _WRITERS[kind](whole, folder / name)
    if kind == "onnx":
        with resources.as_file(resources.files(standalone) / HELPER) as source:
            shutil.copyfile(source, folder / HELPER)
    else:
        (folder / TOKENIZER).write_text(whole.told[_TOKENIZER], encoding="utf-8")


def read_graph(kind: str, path: Path) -> ItemPredictor:
    """What uses a file that `write_graph` wrote.

    Raises:
        ModelError: if the file is none, or damaged.
    """
    return _READERS[kind](path)


def predictor_of(card: Card, logits: Callable[[Tensor], Tensor]) -> ItemPredictor:
    """What tells the classes of texts."""
    return ItemPredictor(card, logits, lambda item: read(item, card.preprocessing), "text")


def opset(path: Path) -> int:
    """The version of ONNX's operators that a file needs."""
    import onnx

    found = onnx.load(path, load_external_data=False).opset_import
    return max(int(each.version) for each in found if each.domain in ("", "ai.onnx"))


def _write_pt2(whole: WholeModel, path: Path) -> None:
    with warnings.catch_warnings():
        # Weights that are views of one storage are stored once, which torch warns of.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(whole.program, path, extra_files=whole.told)


def _read_pt2(path: Path) -> ItemPredictor:
    extra = {_CARD: "", _TOKENIZER: ""}
    program = torch.export.load(path, extra_files=extra)
    return _of_graph(program.module(), extra, path)


def _write_onnx(whole: WholeModel, path: Path) -> None:
    import onnx

    torch.onnx.export(
        whole.program,
        whole.example,
        path,
        dynamo=True,
        dynamic_shapes=whole.sizes,
        input_names=["tokens"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, whole.told)
    onnx.save(model, path)


def _read_onnx(path: Path) -> ItemPredictor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def logits(inputs: Tensor) -> Tensor:
        (output,) = session.run(None, {"tokens": inputs.contiguous().numpy()})
        return torch.from_numpy(output)

    return _of_graph(logits, session.get_modelmeta().custom_metadata_map, path)


def _of_graph(logits: Callable[[Tensor], Tensor], told: Mapping[str, str], path: Path) -> ItemPredictor:
    return predictor_of(_card(told, path), lambda inputs: logits(TextTrunk.trimmed(inputs)))


def _write_safetensors(whole: WholeModel, path: Path) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in whole.model.state_dict().items()}
    safetensors.torch.save_file(state, path, metadata=whole.told)


def _read_safetensors(path: Path) -> ItemPredictor:
    with safe_open(path, framework="pt") as file:
        card = _card(file.metadata() or {}, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return predictor_of(card, whole_model(card, tensors, path).model)


def _card(told: Mapping[str, str], path: Path) -> Card:
    """The card of a file, whose tokenizer is known from then on."""
    try:
        values = json.loads(told.get(_CARD, ""))
    except ValueError as error:
        raise ModelError(f"{path} carries no card of transfer-search") from error
    card = Card.from_dict(values)
    tokenizer = read_tokenizer(told.get(_TOKENIZER, ""))
    if tokenizer.digest != card.preprocessing.tokenizer:
        raise ModelError(f"{path} carries another tokenizer than the one that the model was trained with")
    return card


_WRITERS: Mapping[str, Callable[[WholeModel, Path], None]] = {
    "pt2": _write_pt2,
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
}
_READERS: Mapping[str, Callable[[Path], ItemPredictor]] = {
    "pt2": _read_pt2,
    "safetensors": _read_safetensors,
    "onnx": _read_onnx,
}
