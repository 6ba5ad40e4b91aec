"""The whole model of a trial as files that need no search: weights, preprocessing, class names.

An export's folder holds `model.json` (the card), a README, one file a format, and what uses them without
this package. Each format is checked: read back from the disk, it must give the trial's recorded validation
accuracy, and on images as they are decoded from their files what the trained model gives.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from search.console import progress_bar
from search.errors import BadInput, ExportMismatch, TrackingError, TransferSearchError
from search.results.readme import readme
from search.results.rows import FinalistRow, TrialRow, chosen, model_folder
from search.run.planning import cache_root
from search.search import Search
from search.tracking.artifacts import store_files
from trainables.image.classifier import Classifier, of_model
from trainables.image.data import DataConfig, ImageData, load
from trainables.image.graphs import FILES, WholeModel, read_graph, write_graph, write_helper
from trainables.training.metrics import scores
from trainables.training.model import LoadedModel, ModelError, load_delta

__all__ = ["ExportedModel", "export_trial", "open_export", "opened_model", "replaceable", "stored_export"]

CARD_FILE = "model.json"
README_FILE = "README.md"
_BATCH = 64
_DECODED = 48  # images that are compared as their files hold them
_TOLERANCE = 1e-3  # of a probability, and of an accuracy


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A trial's model with what an export of it needs: its row, and the data that it is checked on."""

    row: TrialRow
    loaded: LoadedModel
    data: ImageData


def opened_model(search: Search, trial: int | None = None, finalist: int | None = None) -> ExportedModel:
    """The model of a trial (None: the best, or the winner), or of a finalist's best fresh run.

    Raises:
        BadInput: if there is no such trial or model.
    """
    spec, row = search.spec, chosen(search, trial, finalist)
    try:
        loaded = load_delta(model_folder(search, row))
    except ModelError as error:
        raise BadInput(f"the model of trial {row.trial} cannot be opened: {error}") from error
    data = load(DataConfig.from_dict(spec.data.config), cache_dir=cache_root(spec))
    return ExportedModel(row=row, loaded=loaded, data=data)


def export_trial(
    search: Search,
    to: Path,
    *,
    trial: int | None = None,
    finalist: int | None = None,
    formats: Sequence[str],
    console: Console,
) -> Iterator[str]:
    """Writes the model of a trial (None: the best, or the winner) to the folder `to`, whole or not at all.

    Yields what it did, in lines. A winner among finalists is its run on the first fresh seed.

    Raises:
        BadInput: if there is no such trial or model, or the folder is not an export's.
        ExportMismatch: if a file does not reproduce the recorded metric; nothing is written then.
        TransferSearchError: if the disk does not take it.
    """
    replaceable(to)
    model = opened_model(search, trial, finalist)
    whole = WholeModel(model.loaded)
    with _replaced(to) as written:
        names = [CARD_FILE, README_FILE]
        (written / CARD_FILE).write_text(_card_text(model.loaded), encoding="utf-8")
        checks = []
        with progress_bar(console) as progress:
            for step, kind in enumerate(formats):
                progress("export", step, len(formats))
                write_graph(kind, whole, written / FILES[kind])
                helper = write_helper(kind, written)
                names += [FILES[kind], *([helper] if helper else [])]
                checks.append(_checked(model, kind, read_graph(kind, written / FILES[kind])))
                yield checks[-1]
            progress("export", len(formats), len(formats))
        text = readme(search, model.row, model.loaded.card, model.data, formats, checks, written)
        (written / README_FILE).write_text(text, encoding="utf-8")
    yield f"trial {model.row.trial} is exported to {to}: {', '.join(names)}"


def _card_text(loaded: LoadedModel) -> str:
    return json.dumps(loaded.card.to_dict(), indent=2) + "\n"


@contextmanager
def _replaced(to: Path) -> Iterator[Path]:
    """A folder that takes the place of `to` when the block ends without an error."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".export-") as temporary:
            written = Path(temporary) / "export"
            written.mkdir()
            yield written
            written.chmod(0o755)
            for file in written.iterdir():
                file.chmod(0o644)  # as readable as any file that is made here, whoever wrote it
            if to.exists():
                os.replace(to, Path(temporary) / "before")
            os.replace(written, to)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _unwritten(to, error) from error


def _unwritten(to: Path, error: Exception) -> Exception:
    """What to raise where a folder was not written: the disk's reason, or the error itself."""
    reason = error.strerror if isinstance(error, OSError) else None
    if reason is None and ("No space left" in str(error) or shutil.disk_usage(to.parent).free < 2**20):
        reason = "no space left on the disk"
    if reason is None:
        return error
    return TransferSearchError(f"cannot write {to}: {reason}; make room, or give another folder with --to")


def replaceable(to: Path) -> None:
    """Checks that `to` is free, or holds an export that another may replace.

    Raises:
        BadInput: if it holds anything else.
    """
    if to.exists() and not to.is_dir():
        raise BadInput(f"{to} is a file, but an export is a folder; give another place with --to")
    if to.is_dir() and any(to.iterdir()) and not (to / CARD_FILE).exists():
        raise BadInput(f"{to} is not empty and holds no export; give another folder with --to")


def stored_export(
    search: Search, *, trial: int | None, finalist: int | None, formats: Sequence[str], console: Console
) -> dict[str, Any]:
    """Exports a trial into MLflow, as artifacts of the search's run; returns what `fetch_files` takes."""
    row = chosen(search, trial, finalist)
    place = f"finalist-{row.finalist_run}" if isinstance(row, FinalistRow) else f"trial-{row.trial}"
    run = search.study.parent_run
    if run is None:
        raise TrackingError(f"MLflow has no run of {search.name!r} to keep the files; resume the search")
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        to = Path(folder) / "export"
        *said, _ = export_trial(search, to, trial=trial, finalist=finalist, formats=formats, console=console)
        for line in said:
            console.print(line, markup=False, highlight=False)
        stored = store_files(search.spec, run, to, f"exports/{place}")
    return {"trial": row.trial, **stored}


# Checks


def _checked(model: ExportedModel, kind: str, classifier: Classifier) -> str:
    """Measures a file on the validation images; says so, or raises `ExportMismatch`."""
    accuracy, recorded = _accuracy(classifier, model.data), classifier.card.metric["val_accuracy"]
    # Other kernels round otherwise: one image in a thousand may fall on the other side.
    if abs(accuracy - recorded) > _TOLERANCE:
        raise ExportMismatch(
            f"the {kind} export has validation accuracy {accuracy:.4f}, but {recorded:.4f} was recorded: "
            "it is not the model that was trained; nothing was written. Did the data change?"
        )
    told = f"{kind}: validation accuracy {accuracy:.4f}, as recorded ({recorded:.4f})"
    if classifier.raw is None:
        return told
    count, largest = _decoded_difference(model, classifier)
    return f"{told}; {count} images at their own sizes: probabilities differ by at most {largest:.1g}"


def _accuracy(classifier: Classifier, data: ImageData) -> float:
    preprocessing = classifier.card.preprocessing
    frames = data.frames(preprocessing.frame_size, preprocessing.interpolation)
    indices = data.splits["validation"]
    with torch.no_grad():
        parts = [classifier.logits(frames[batch]) for batch in indices.split(_BATCH)]
    return scores(torch.cat(parts), data.labels[indices]).accuracy


def _decoded_difference(model: ExportedModel, classifier: Classifier) -> tuple[int, float]:
    """How many images were given to a graph at their own size, and how far it is from the trained model.

    Raises:
        ExportMismatch: if it is so far that a label may change.
    """
    assert classifier.raw is not None
    trained = of_model(model.loaded)
    chosen_images = model.data.splits["validation"][:_DECODED].tolist()
    largest = 0.0
    for index in chosen_images:
        image = model.data.image(index)
        expected = trained.probabilities([trained.resized(image)])[0]
        with torch.no_grad():
            found = classifier.raw(image.permute(1, 2, 0).unsqueeze(0)).float().softmax(1)[0]
        difference = float((found - expected).abs().max())
        largest = max(largest, difference)
        if difference > 10 * _TOLERANCE:
            raise ExportMismatch(
                f"the exported graph tells {model.data.names[index]!r} ({image.shape[2]} x {image.shape[1]} "
                f"pixels) otherwise than the trained model: a probability differs by {difference:.3f}; "
                "nothing was written"
            )
    return len(chosen_images), largest


def open_export(folder: Path) -> Classifier:
    """The classifier in a folder that `export_trial` wrote, from that folder alone.

    Raises:
        BadInput: if the folder holds no export, or a damaged one.
    """
    for kind, name in FILES.items():
        if (folder / name).is_file():
            try:
                return read_graph(kind, folder / name)
            except Exception as error:  # readers of files that nobody vouches for raise whatever they meet
                raise BadInput(f"{folder / name} is no usable export: {error}") from error
    raise BadInput(f"{folder} holds no model ({', '.join(FILES.values())}); export one first")
