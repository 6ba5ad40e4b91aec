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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError

from search.console import progress_bar
from search.errors import BadInput, ExportMismatch, TrackingError, TransferSearchError
from search.results.calibrating import calibrated_model
from search.results.evaluation import validation_logits
from search.results.readme import readme
from search.results.rows import FinalistRow, TrialRow, chosen, model_folder, model_told
from search.run.planning import load_data
from search.run.premises import data_change
from search.search import Search
from search.tracking.artifacts import store_files
from trainables.errors import DataError
from trainables.modalities import modality
from trainables.modality import Data, Exporter, Modality, Predictor
from trainables.training.card import ModelError
from trainables.training.delta import LoadedModel, load_delta

__all__ = ["ExportedModel", "export_trial", "open_export", "opened_model", "replaceable", "stored_export"]

CARD_FILE = "model.json"
README_FILE = "README.md"
_WHERE = (
    "if the data of the launch is elsewhere, say where with --set data.source=DIR; where it is gone, "
    "--unchecked writes the model without checking it"
)
_TOLERANCE = 1e-3  # of an accuracy


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A trial's model with what an export of it needs.

    Attributes:
        row: its trial's.
        loaded: the model.
        data: that it is checked on; None: it is not.
        premises: what the search was launched on, as far as that was written down.
    """

    row: TrialRow
    loaded: LoadedModel
    data: Data | None
    premises: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the data that it was trained on."""
        return self.data.fingerprint if self.data else str(self.premises.get("data", "unknown"))

    @property
    def images(self) -> Mapping[str, int]:
        """How many images each split of that had, where that is known."""
        if self.data is None:
            return dict(self.premises.get("images", {}))
        return {split: len(indices) for split, indices in self.data.splits.items()}

    @property
    def modality(self) -> Modality[Any]:
        """What it tells apart."""
        return modality(self.loaded.card.hparams.modality)


def opened_model(
    search: Search, trial: int | None = None, finalist: int | None = None, *, unchecked: bool = False
) -> ExportedModel:
    """The model of a trial (None: the best, the winner, or its refit), or of a finalist's first run.

    Its probabilities are calibrated, where there is data to do it by.

    Args:
        search: whose model it is.
        trial, finalist: which one.
        unchecked: whether to do without the data.

    Raises:
        BadInput: if there is no such trial or model, or the data is not what the search was launched on.
    """
    spec, row = search.spec, chosen(search, trial, finalist)
    try:
        loaded = load_delta(model_folder(search, row))
    except ModelError as error:
        raise BadInput(f"the model of trial {row.trial} cannot be opened: {error}") from error
    premises = search.study.premises or {}
    if unchecked:
        return ExportedModel(row=row, loaded=loaded, data=None, premises=premises)
    try:
        data = load_data(spec)
    except DataError as error:
        raise BadInput(f"{error}\n{_WHERE}") from error
    if change := data_change(premises, data):
        told = f"the model of trial {row.trial} cannot be checked, since the data has changed ({change})"
        raise BadInput(f"{told}\n{_WHERE}")
    loaded = calibrated_model(search, row, loaded, data)
    return ExportedModel(row=row, loaded=loaded, data=data, premises=premises)


def export_trial(
    search: Search,
    to: Path,
    *,
    trial: int | None = None,
    finalist: int | None = None,
    formats: Sequence[str],
    unchecked: bool = False,
    console: Console,
) -> Iterator[str]:
    """Writes the model of a trial (None: the best, or the winner) to the folder `to`, whole or not at all.

    Yields what it did, in lines. A winner among finalists is its run on the first fresh seed; one that was
    refitted is its refit.

    Raises:
        BadInput: if there is no such trial or model, or the folder is not an export's.
        ExportMismatch: if a file does not reproduce the recorded metric; nothing is written then.
        TransferSearchError: if the disk does not take it.
    """
    replaceable(to)
    model = opened_model(search, trial, finalist, unchecked=unchecked)
    unknown = sorted(set(formats) - set(model.modality.export_files))
    if unknown:
        raise BadInput(
            f"a model of {model.modality.name} cannot be exported as {', '.join(unknown)}; give --format "
            f"{' or '.join(model.modality.export_files)}"
        )
    exporter = model.modality.exporter(model.loaded)
    with _replaced(to) as written:
        names = [CARD_FILE, README_FILE]
        (written / CARD_FILE).write_text(_card_text(model.loaded), encoding="utf-8")
        checks = []
        with progress_bar(console) as progress:
            for step, kind in enumerate(formats):
                progress("export", step, len(formats))
                exporter.write(kind, written)
                names += exporter.names(kind)
                checks.append(_checked(model, kind, exporter, written))
                yield checks[-1]
            progress("export", len(formats), len(formats))
        text = readme(
            search,
            model.row,
            model.loaded.card,
            fingerprint=model.fingerprint,
            images=model.images,
            formats=formats,
            checks=checks,
            facts=exporter.facts(written),
        )
        (written / README_FILE).write_text(text, encoding="utf-8")
    if told := model.loaded.card.calibration:
        yield (
            f"probabilities: temperature {told['temperature']:.3f}; expected calibration error "
            f"{told['error_before']:.4f} before, {told['error_after']:.4f} after ({told['measured_on']})"
        )
    yield f"{model_told(model.row)} is exported to {to}: {', '.join(names)}"


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
    place = f"{row.model_of}-{row.finalist_run if isinstance(row, FinalistRow) else row.trial}"
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


def _checked(model: ExportedModel, kind: str, exporter: Exporter, folder: Path) -> str:
    """Measures a file on the validation split; says so, or raises `ExportMismatch`."""
    predictor = model.modality.read_export(kind, folder / model.modality.export_files[kind])
    if model.data is None:
        return f"{kind}: read back, and not checked on {model.modality.item}s"
    accuracy, recorded = (
        _accuracy(predictor, model.modality, model.data),
        predictor.card.metric["val_accuracy"],
    )
    # Other kernels round otherwise: one image in a thousand may fall on the other side.
    if abs(accuracy - recorded) > _TOLERANCE:
        raise ExportMismatch(
            f"the {kind} export has validation accuracy {accuracy:.4f}, but {recorded:.4f} was recorded: "
            "it is not the model that was trained; nothing was written. Did the data change?"
        )
    seen = f" on {model.modality.item}s that it was trained on" if predictor.card.has_seen_validation else ""
    told = f"{kind}: validation accuracy {accuracy:.4f}{seen}, as recorded ({recorded:.4f})"
    try:
        more = exporter.difference(predictor, model.data)
    except ValueError as error:
        raise ExportMismatch(f"{error}; nothing was written") from error
    return f"{told}; {more}" if more else told


def _accuracy(predictor: Predictor, kind: Modality[Any], data: Data) -> float:
    labels = data.labels[data.splits["validation"]]
    accuracy: float = kind.scores(validation_logits(predictor, data), labels).accuracy
    return accuracy


def open_export(folder: Path) -> Predictor:
    """What uses the model in a folder that `export_trial` wrote, from that folder alone.

    Raises:
        BadInput: if the folder holds no export, or a damaged one.
    """
    kind = _modality_of(folder)
    for form, name in kind.export_files.items():
        if (folder / name).is_file():
            try:
                return kind.read_export(form, folder / name)
            except Exception as error:  # readers of files that nobody vouches for raise whatever they meet
                raise BadInput(f"{folder / name} is no usable export: {error}") from error
    raise BadInput(f"{folder} holds no model ({', '.join(kind.export_files.values())}); export one first")


def _modality_of(folder: Path) -> Modality[Any]:
    """What an export tells apart, by its card; images where there is none, or one made before."""
    try:
        name = json.loads((folder / CARD_FILE).read_text(encoding="utf-8")).get("modality", "image")
    except (OSError, ValueError, AttributeError):
        name = "image"
    try:
        return modality(str(name))
    except ValueError as error:
        raise BadInput(f"the model in {folder} cannot be used: {error}") from error
