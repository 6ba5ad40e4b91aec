"""A whole model as one file: weights, preprocessing and class names, to be used without this package.

`pt2` and `onnx` are graphs that take decoded pixels of any size, uint8 [B, H, W, 3], and resize, crop and
normalise them inside. `safetensors` holds the tensors alone. Each carries the model's card.
"""

from __future__ import annotations

import json
import logging
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

from trainables.image import standalone
from trainables.image.classifier import Classifier, of_crops, of_model
from trainables.image.modality import FILES
from trainables.image.resizing import Resizing
from trainables.training.card import Card, ModelError
from trainables.training.delta import LoadedModel, whole_model

__all__ = ["FILES", "WholeModel", "opset", "read_graph", "write_graph", "write_helper"]

HELPERS: Mapping[str, str] = {"onnx": "classify.py", "safetensors": "load_safetensors.py"}
"""What lies beside a format's file, for whoever has nothing else."""

_CARD = "transfer_search.card"
_INPUT = "transfer_search.input"
_STAGES = "transfer_search.stages"
_PIXELS = "uint8 [B, H, W, 3]"
_LONGEST = 65536


class WholeModel(nn.Module):
    """What a graph holds: decoded pixels of any size, uint8 [B, H, W, 3], to logits [B, C]."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.loaded = loaded
        how = loaded.card.preprocessing
        self.resizing = Resizing(how.frame_size, how.image_size, how.interpolation)
        self.model = loaded.model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.resizing(images))
        return logits

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph, open in the number of images and their sizes; traced once, which takes seconds."""
        return torch.export.export(self.eval(), _example(), dynamic_shapes=_sizes(), strict=False)


def write_graph(kind: str, whole: WholeModel, path: Path) -> None:
    """Writes a model in the format `kind`, a key of `FILES`."""
    _WRITERS[kind](whole, path)


def read_graph(kind: str, path: Path) -> Classifier:
    """The classifier of a file that `write_graph` wrote, now or in an earlier version.

    Raises:
        ModelError: if the file is none, or damaged.
    """
    return _READERS[kind](path)


def write_helper(kind: str, folder: Path) -> str | None:
    """Puts what lies beside a format's file into a folder; returns its name, or None where there is none."""
    name = HELPERS.get(kind)
    if name is not None:
        with resources.as_file(resources.files(standalone) / name) as source:
            shutil.copyfile(source, folder / name)
    return name


def opset(path: Path) -> int:
    """The version of ONNX's operators that a file needs."""
    import onnx

    found = onnx.load(path, load_external_data=False).opset_import
    return max(int(each.version) for each in found if each.domain in ("", "ai.onnx"))


def _example() -> tuple[Tensor]:
    return (torch.zeros(2, 61, 47, 3, dtype=torch.uint8),)


def _sizes() -> tuple[dict[int, Any]]:
    names = ("batch", "height", "width")
    return ({place: torch.export.Dim(name, min=1, max=_LONGEST) for place, name in enumerate(names)},)


def _write_pt2(whole: WholeModel, path: Path) -> None:
    with warnings.catch_warnings():
        # Weights that are views of one storage are stored once, which torch warns of.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        files = {_CARD: _text(whole.loaded.card), _INPUT: _PIXELS}
        torch.export.save(whole.program, path, extra_files=files)


def _read_pt2(path: Path) -> Classifier:
    extra = {_CARD: "", _INPUT: ""}
    logger = logging.getLogger("torch.export.pt2_archive")
    level = logger.level
    logger.setLevel(logging.ERROR)  # files of earlier versions do not have the second, which is told
    try:
        program = torch.export.load(path, extra_files=extra)
    finally:
        logger.setLevel(level)
    return _of_graph(program.module(), _card(extra[_CARD], path), extra[_INPUT] == _PIXELS)


def _write_onnx(whole: WholeModel, path: Path) -> None:
    import onnx

    torch.onnx.export(
        whole.program,
        _example(),
        path,
        dynamo=True,
        dynamic_shapes=_sizes(),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {_CARD: _text(whole.loaded.card), _INPUT: _PIXELS})
    onnx.save(model, path)


def _read_onnx(path: Path) -> Classifier:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map

    def logits(inputs: Tensor) -> Tensor:
        (output,) = session.run(None, {"images": inputs.contiguous().numpy()})
        return torch.from_numpy(output)

    return _of_graph(logits, _card(told.get(_CARD, ""), path), told.get(_INPUT) == _PIXELS)


def _of_graph(logits: Callable[[Tensor], Tensor], card: Card, takes_pixels: bool) -> Classifier:
    """The classifier of a graph of pixels, or of one that earlier versions wrote, of uint8 [B, 3, s, s]."""
    if not takes_pixels:
        return of_crops(logits, card)
    # A frame is resized already, so that the graph leaves its pixels as they are.
    return Classifier(lambda frames: logits(frames.permute(0, 2, 3, 1)), card, raw=logits)


def _write_safetensors(whole: WholeModel, path: Path) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in whole.model.state_dict().items()}
    told = {_CARD: _text(whole.loaded.card), _STAGES: json.dumps(whole.loaded.model.stages)}
    safetensors.torch.save_file(state, path, metadata=told)


def _read_safetensors(path: Path) -> Classifier:
    with safe_open(path, framework="pt") as file:
        card = _card((file.metadata() or {}).get(_CARD, ""), path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return of_model(whole_model(card, tensors, path))


def _text(card: Card) -> str:
    return json.dumps(card.to_dict(), indent=2)


def _card(text: str, path: Path) -> Card:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path} carries no card of transfer-search") from error
    return Card.from_dict(values)


_WRITERS: Mapping[str, Callable[[WholeModel, Path], None]] = {
    "pt2": _write_pt2,
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
}
_READERS: Mapping[str, Callable[[Path], Classifier]] = {
    "pt2": _read_pt2,
    "safetensors": _read_safetensors,
    "onnx": _read_onnx,
}
