"""The whole model of a trial as files that need no search: weights, preprocessing, class names.

An export's folder holds `model.json` (the card) and one file a format. Each carries the card inside
too, and is checked: read back from the disk, it must give the trial's recorded validation accuracy
before the command says that it is done.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor

from search.console import progress_bar
from search.errors import BadInput, ExportMismatch, TrackingError
from search.home import Home
from search.results.rows import chosen, model_folder, opened
from search.run.planning import cache_root
from search.spec.search_spec import read_spec
from search.tracking.runs import register, store_files
from trainables.image.augment import center_crop
from trainables.image.data import ImageData, load
from trainables.serving import Classifier
from trainables.training.metrics import scores
from trainables.training.model import Card, LoadedModel, ModelError, load_delta, whole_model

__all__ = ["export_trial", "open_export", "register_model", "replaceable", "stored_export"]

CARD_FILE = "model.json"
_FILES = {"pt2": "model.pt2", "safetensors": "model.safetensors", "onnx": "model.onnx"}
_CARD = "transfer_search.card"
_BATCH = 64


def export_trial(
    home: Home, to: Path, *, trial: int | None, formats: Sequence[str], console: Console
) -> Iterator[str]:
    """Writes the model of a trial (None: the best, or the winner) to the folder `to`.

    Yields what it did, in lines. A winner among finalists is its fresh run with the best validation value.

    Raises:
        BadInput: if there is no such trial or model, or a format's packages are not installed.
        ExportMismatch: if a file does not reproduce the recorded metric; nothing is written then.
    """
    spec = read_spec(home.spec)
    row = chosen(home, trial)
    try:
        loaded = load_delta(model_folder(home, row))
    except ModelError as error:
        raise BadInput(f"the model of trial {row['trial']} cannot be opened: {error}") from error
    replaceable(to)
    data = load(spec.data.config, cache_dir=cache_root(spec))
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".export-") as temporary:
        written = Path(temporary) / "export"
        written.mkdir()
        (written / CARD_FILE).write_text(_text(loaded.card) + "\n", encoding="utf-8")
        with progress_bar(console) as progress:
            for step, kind in enumerate(formats):
                progress("export", step, len(formats))
                _WRITERS[kind](loaded, written / _FILES[kind])
                yield _checked(data, kind, _READERS[kind](written / _FILES[kind]))
            progress("export", len(formats), len(formats))
        if to.exists():
            shutil.rmtree(to)
        os.replace(written, to)
    names = ", ".join([CARD_FILE, *(_FILES[kind] for kind in formats)])
    yield f"trial {row['trial']} is exported to {to}: {names}"


def replaceable(to: Path) -> None:
    """Checks that `to` is free, or holds an export that another may replace.

    Raises:
        BadInput: if it holds anything else.
    """
    if to.exists() and any(to.iterdir() if to.is_dir() else [to]) and not (to / CARD_FILE).exists():
        raise BadInput(f"{to} is not empty and holds no export; give another folder with --to")


def stored_export(
    home: Home, *, trial: int | None, formats: Sequence[str], console: Console
) -> dict[str, Any]:
    """Exports a trial into MLflow, as artifacts of the search's run; returns what `fetch_files` takes."""
    spec, study = opened(home)
    row = chosen(home, trial)
    run = row.get("finalist_run")
    place = f"trial-{row['trial']}" if run is None else f"finalist-{run}"
    if study.parent_run is None:
        raise TrackingError(f"MLflow has no run of {home.name!r} to keep the files; resume the search")
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        to = Path(folder) / "export"
        *said, _ = export_trial(home, to, trial=trial, formats=formats, console=console)
        for line in said:
            console.print(line, markup=False, highlight=False)
        stored = store_files(spec, study.parent_run, to, f"exports/{place}")
    return {"trial": row["trial"], **stored}


def _checked(data: ImageData, kind: str, classifier: Classifier) -> str:
    """Measures a program on the validation images; says so, or raises `ExportMismatch`."""
    card, preprocessing = classifier.card, classifier.card.preprocessing
    frames = data.frames(preprocessing.frame_size, preprocessing.interpolation)
    indices = data.splits["validation"]
    parts = []
    with torch.no_grad():
        for batch in indices.split(_BATCH):
            parts.append(classifier.logits(center_crop(frames[batch], preprocessing.image_size)))
    accuracy = scores(torch.cat(parts), data.labels[indices]).accuracy
    recorded = card.metric["val_accuracy"]
    # Other kernels round otherwise: one image in a thousand may fall on the other side.
    if abs(accuracy - recorded) > 1e-3:
        raise ExportMismatch(
            f"the {kind} export has validation accuracy {accuracy:.4f}, but {recorded:.4f} was recorded: "
            "it is not the model that was trained; nothing was written. Did the data change?"
        )
    return f"{kind}: validation accuracy {accuracy:.4f}, as recorded ({recorded:.4f})"


def open_export(folder: Path) -> Classifier:
    """The classifier in a folder that `export_trial` wrote, from that folder alone.

    Raises:
        BadInput: if the folder holds no export, or a damaged one.
    """
    for kind, name in _FILES.items():
        if (folder / name).is_file():
            try:
                return _READERS[kind](folder / name)
            except (ModelError, SafetensorError, OSError, RuntimeError, ValueError) as error:
                raise BadInput(f"{folder / name} is no usable export: {error}") from error
    raise BadInput(f"{folder} holds no model ({', '.join(_FILES.values())}); export one first")


def register_model(home: Home, trial: int | None, name: str, alias: str | None) -> str:
    """Registers the trial's model in MLflow; returns the version.

    Raises:
        BadInput: if MLflow has no model of the trial.
    """
    row = chosen(home, trial)
    if row["model_uri"] is None:
        raise BadInput(
            f"MLflow has no model of trial {row['trial']}; send it with "
            f"`transfer-search doctor {home.name} --repair`"
        )
    return register(read_spec(home.spec), row["model_uri"], name, alias)


def _example(card: Card) -> Tensor:
    side = card.preprocessing.image_size
    return torch.zeros(2, 3, side, side, dtype=torch.uint8)


def _write_pt2(loaded: LoadedModel, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.export.export(
        loaded.model, (_example(loaded.card),), dynamic_shapes=({0: batch},), strict=False
    )
    with warnings.catch_warnings():
        # Weights that are views of one storage are stored once, which torch warns of.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, path, extra_files={_CARD: _text(loaded.card)})


def _read_pt2(path: Path) -> Classifier:
    extra = {_CARD: ""}
    program = torch.export.load(path, extra_files=extra)
    return Classifier(program.module(), _card(extra[_CARD], path))


def _write_safetensors(loaded: LoadedModel, path: Path) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in loaded.model.state_dict().items()}
    safetensors.torch.save_file(state, path, metadata={_CARD: _text(loaded.card)})


def _read_safetensors(path: Path) -> Classifier:
    with safe_open(path, framework="pt") as file:
        card = _card((file.metadata() or {}).get(_CARD, ""), path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    return Classifier(whole_model(card, tensors, path).model, card)


def _write_onnx(loaded: LoadedModel, path: Path) -> None:
    onnx = _needed("onnx")
    _needed("onnxscript")
    batch = torch.export.Dim("batch", min=1, max=65536)
    torch.onnx.export(
        loaded.model,
        (_example(loaded.card),),
        path,
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {_CARD: _text(loaded.card)})
    onnx.save(model, path)


def _read_onnx(path: Path) -> Classifier:
    session = _needed("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    card = _card(session.get_modelmeta().custom_metadata_map.get(_CARD, ""), path)

    def logits(inputs: Tensor) -> Tensor:
        (output,) = session.run(None, {"images": inputs.numpy()})
        return torch.from_numpy(output)

    return Classifier(logits, card)


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise BadInput("ONNX needs its packages: pip install 'transfer-search[onnx]'") from error


def _text(card: Card) -> str:
    return json.dumps(card.to_dict(), indent=2)


def _card(text: str, path: Path) -> Card:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path} carries no card of transfer-search") from error
    return Card.from_dict(values)


_WRITERS: Mapping[str, Callable[[LoadedModel, Path], None]] = {
    "pt2": _write_pt2,
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
}
_READERS: Mapping[str, Callable[[Path], Classifier]] = {
    "pt2": _read_pt2,
    "safetensors": _read_safetensors,
    "onnx": _read_onnx,
}
