"""An exported model's answers for many files or lines: a few in memory at a time, a broken one is a row
too."""

from __future__ import annotations

import glob
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from search.errors import BadInput
from trainables.modality import Predictor
from trainables.training.calibration import classes_in

__all__ = ["Prediction", "example_files", "lines_of", "predictions"]

_BATCH = 64
_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of an example.

    Attributes:
        item: the file, or the text of a line.
        top: the likeliest classes with their probabilities, the best first; empty where it cannot be read.
        error: why it cannot be read; empty where it can.
        within: the classes of which one is true as often as the model's card says; None where it has no sets.
    """

    item: Path | str
    top: tuple[tuple[str, float], ...]
    error: str = ""
    within: tuple[str, ...] | None = None


def example_files(given: Sequence[str], suffixes: Collection[str], what: str = "image") -> list[Path]:
    """The files that paths, folders (with what is below them) and globs name, each once, in order.

    Args:
        given: what to look for.
        suffixes: how the names of those files of a folder end that count.
        what: one of them holds.

    Raises:
        BadInput: for what names no file.
    """
    found: dict[Path, None] = {}
    nothing = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            mine = [each for each in sorted(path.rglob("*")) if each.suffix.lower() in suffixes]
        elif path.exists():
            mine = [path]
        else:
            mine = [each for each in map(Path, sorted(glob.glob(text, recursive=True))) if each.is_file()]
        if not mine:
            nothing.append(text)
        found |= dict.fromkeys(mine)
    if nothing:
        raise BadInput(
            f"there is no {what} file {', '.join(nothing)}; give paths of {what} files, folders or globs"
        )
    return list(found)


def lines_of(given: Sequence[str]) -> list[str]:
    """The lines of files that are not blank; of `-` those of the standard input.

    Raises:
        BadInput: for a file that cannot be read as text.
    """
    lines = []
    for name in given:
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{name} cannot be read as lines of text in UTF-8: {error}") from error
        lines += [line for line in text.split("\n") if line.strip()]
    return lines


def predictions(
    classifier: Predictor, items: Iterable[Path | str], top: int | None = 1
) -> Iterator[Prediction]:
    """The answers in the order of the items.

    Args:
        classifier: of an export.
        items: files, or texts that hold an example each; as many as there are: a batch is read at a time.
        top: how many classes each; None: all.
    """
    waiting = iter(items)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as pool:
        while batch := list(islice(waiting, _BATCH)):
            frames = list(pool.map(lambda item: _frame(classifier, item), batch))
            readable = [frame for frame in frames if isinstance(frame, Tensor)]
            shares = iter(classifier.probabilities(readable)) if readable else iter(())
            for item, frame in zip(batch, frames, strict=True):
                if isinstance(frame, str):
                    yield Prediction(item=item, top=(), error=frame)
                else:
                    own = next(shares)
                    yield Prediction(
                        item=item, top=_best(classifier, own, top), within=_within(classifier, own)
                    )


def _frame(classifier: Predictor, item: Path | str) -> Tensor | str:
    try:
        return classifier.example(item)
    except ValueError as error:
        return str(getattr(error, "reason", error))


def _within(classifier: Predictor, shares: Tensor) -> tuple[str, ...] | None:
    conformal = classifier.card.calibration.get("conformal")
    if conformal is None:
        return None
    inside = classes_in(shares[None], conformal["threshold"])[0]
    return tuple(classifier.card.classes[place] for place in shares.argsort(descending=True) if inside[place])


def _best(classifier: Predictor, shares: Tensor, top: int | None) -> tuple[tuple[str, float], ...]:
    count = len(classifier.card.classes)
    values, places = shares.topk(min(top or count, count))
    names = classifier.card.classes
    return tuple(
        (names[place], float(value)) for place, value in zip(places.tolist(), values.tolist(), strict=True)
    )
