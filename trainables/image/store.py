"""What one node keeps of a source: what was found in every image, and their pixels on disk.

Everything lies in one folder per source and state of its files. It is written to temporary files
and renamed, checked when it is opened, built under a lock, and made again whenever it is not whole.
Deleting any of it at any time is safe.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from trainables.errors import DataError
from trainables.files.locked import locked, unwritable
from trainables.files.rows import RowWriter, digest_of, kept_rows, touch
from trainables.files.whole import replacing, write_json
from trainables.image.decode import UnreadableImage, read, to_frame
from trainables.image.sources import Listing, Source

__all__ = ["Progress", "Scan", "Store"]

Progress = Callable[[str, int, int], None]
Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")

_VERSION = 1
_ATTEMPTS = 3

_ITEM = np.dtype(
    [
        ("label", "<i8"),
        ("given", "i1"),
        ("is_readable", "?"),
        ("mode", "u1"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("content", "u1", (16,)),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What reading all images of a source once has shown.

    Attributes:
        items: one row of `_ITEM` per image; `content` is the digest of its decoded pixels.
        reasons: why the unreadable ones are that, by position.
        native: the shape [C, h, w] of the native rows, where they were kept.
    """

    classes: tuple[str, ...]
    names: list[str]
    notes: tuple[str, ...]
    modes: list[str]
    items: npt.NDArray[Any]
    reasons: dict[int, str]
    native: tuple[int, ...] | None


class Store:
    """The scan, the native rows and the frames of one source.

    Attributes:
        folder: where all of it lies, named by the source's identity and what decodes it.
    """

    def __init__(
        self, cache_dir: Path, source: Source, max_pixels: int, progress: Progress | None = None
    ) -> None:
        key = f"{_VERSION} {PIL.__version__} {max_pixels} {source.identity}"
        self.folder = cache_dir / "data" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        self._source = source
        self._max_pixels = max_pixels
        self._progress: Progress = progress or (lambda stage, done, total: None)
        self._native: Pixels | None = None
        self._held: Scan | None = None

    def scan(self, frames: Sequence[tuple[int, str]] = ()) -> Scan:
        """What is in every image: from the disk, or by reading all of them now.

        Args:
            frames: sizes and interpolations to fill frame stores for, should they be read now.
        """
        if self._held is None:
            self._held = self._built(self._kept_scan, lambda: self._read_all(frames))
        return self._held

    def rows(self, size: int, interpolation: str) -> tuple[Pixels, bool]:
        """The rows to make frames of: frames [N, 3, S, S], or native ones [N, C, h, w] and True."""
        scan = self.scan()
        if scan.native is not None and max(scan.native[1:]) <= size:
            assert self._native is not None
            return self._native, True
        name, shape = _frames_name(size, interpolation), (len(scan.items), 3, size, size)
        kept = self._built(
            lambda: kept_rows(self.folder, name, shape),
            lambda: self._write_frames(scan, size, interpolation),
        )
        return kept, False

    def image(self, place: int) -> Tensor:
        """An image as its source has it, decoded anew where it is a file: uint8 [3, H, W].

        Raises:
            UnreadableImage: where the file has changed since.
        """
        scan = self.scan()
        if scan.native is not None:
            assert self._native is not None
            return _colour(torch.from_numpy(self._native[place : place + 1].copy()))[0]
        paths = self._source.listing().paths
        assert paths is not None
        return read(Path(paths[place]), self._max_pixels).image

    def _built(self, kept: Callable[[], T | None], build: Callable[[], None]) -> T:
        """What is kept, built under the lock of this source where nothing whole is."""
        for _ in range(_ATTEMPTS):
            if (found := kept()) is not None:
                return found
            try:
                with locked(self.folder, self._wait):
                    if (found := kept()) is not None:
                        return found
                    for leftover in self.folder.glob("*.tmp"):
                        leftover.unlink(missing_ok=True)
                    build()
            except FileNotFoundError as exc:
                if not str(exc.filename or "").startswith(str(self.folder)):
                    raise
            except OSError as exc:
                raise unwritable(self.folder, exc) from exc
        raise DataError(
            f"the cache {self.folder} was deleted {_ATTEMPTS} times while it was written; let it "
            "be until the data is loaded, or set cache.dir to another folder"
        )

    def _wait(self) -> None:
        self._progress("waiting for another process that reads the same images", 0, 1)

    # The scan

    def _kept_scan(self) -> Scan | None:
        """The scan on the disk with its native rows opened, or None unless all of it is whole."""
        try:
            record = json.loads((self.folder / "scan.json").read_bytes())
            data = (self.folder / "items.npy").read_bytes()
        except (OSError, ValueError):
            return None
        if record.get("version") != _VERSION or record.get("items") != digest_of(data):
            return None
        items = np.load(self.folder / "items.npy", allow_pickle=False)
        native = tuple(record["native"]) if record["native"] else None
        if native is not None:
            self._native = kept_rows(self.folder, "native", (len(items), *native))
            if self._native is None:
                return None
        touch(self.folder / "scan.json")
        return Scan(
            classes=tuple(record["classes"]),
            names=record["names"],
            notes=tuple(record["notes"]),
            modes=record["modes"],
            items=items,
            reasons={int(item): reason for item, reason in record["reasons"].items()},
            native=native,
        )

    def _read_all(self, frames: Sequence[tuple[int, str]]) -> None:
        listing = self._source.listing()
        items = np.zeros(len(listing.labels), dtype=_ITEM)
        items["label"], items["given"] = listing.labels, listing.given
        if listing.pixels is not None:
            modes, reasons, native = self._read_array(listing.pixels, items)
        else:
            modes, reasons, native = self._read_files(listing, items, frames)
        with replacing(self.folder / "items.npy") as temporary, temporary.open("wb") as file:
            np.save(file, items, allow_pickle=False)
        record = {
            "version": _VERSION,
            "items": digest_of((self.folder / "items.npy").read_bytes()),
            "classes": listing.classes,
            "names": listing.names,
            "notes": listing.notes,
            "modes": modes,
            "reasons": reasons,
            "native": native,
        }
        write_json(self.folder / "scan.json", record)

    def _read_array(
        self, pixels: Pixels, items: npt.NDArray[Any]
    ) -> tuple[list[str], dict[int, str], tuple[int, ...] | None]:
        items["is_readable"] = True
        items["height"], items["width"] = pixels.shape[2:]
        with ExitStack() as stack:
            writer = stack.enter_context(RowWriter(self.folder, "native", len(pixels)))
            for start in range(0, len(pixels), 1024):
                rows = np.ascontiguousarray(pixels[start : start + 1024])
                writer.write(start, rows)
                for place, row in enumerate(rows, start):
                    items["content"][place] = _content(row)
                self._progress("reading images", min(start + 1024, len(pixels)), len(pixels))
            writer.commit()
        return ["L" if pixels.shape[1] == 1 else "RGB"], {}, pixels.shape[1:]

    def _read_files(
        self, listing: Listing, items: npt.NDArray[Any], frames: Sequence[tuple[int, str]]
    ) -> tuple[list[str], dict[int, str], tuple[int, ...] | None]:
        assert listing.paths is not None
        modes: list[str] = []
        reasons: dict[int, str] = {}
        with ExitStack() as stack:
            native = stack.enter_context(RowWriter(self.folder, "native", len(items)))
            writers = [
                (
                    stack.enter_context(RowWriter(self.folder, _frames_name(*each), len(items))),
                    each,
                )
                for each in frames
            ]
            task = _Reading(listing.paths, self._max_pixels, native, writers)
            for place, found in enumerate(_in_threads(task, len(items))):
                if isinstance(found, str):
                    reasons[place] = found
                else:
                    mode, height, width, content = found
                    if mode not in modes:
                        modes.append(mode)
                    items[place]["is_readable"] = True
                    items[place]["mode"] = modes.index(mode)
                    items[place]["height"], items[place]["width"] = height, width
                    items[place]["content"] = content
                self._report("reading images", place, len(items))
            if len(reasons) == len(items):
                return modes, reasons, None
            for writer, _ in writers:
                writer.commit()
            if native.is_whole:
                native.commit()
            return modes, reasons, native.shape if native.is_whole else None

    # Frames

    def _write_frames(self, scan: Scan, size: int, interpolation: str) -> None:
        total = len(scan.items)
        with RowWriter(self.folder, _frames_name(size, interpolation), total) as writer:
            if scan.native is not None:
                assert self._native is not None
                for start in range(0, total, 64):
                    rows = torch.from_numpy(self._native[start : start + 64].copy())
                    writer.write(start, _colour(to_frame(rows, size, interpolation)).numpy())
                    self._report(f"resizing images to {size} pixels", start, total)
            else:
                paths = self._source.listing().paths
                assert paths is not None
                task = _Framing(paths, self._max_pixels, scan, writer, size, interpolation)
                for place, _ in enumerate(_in_threads(task, total)):
                    self._report(f"resizing images to {size} pixels", place, total)
            writer.commit()

    def _report(self, stage: str, place: int, total: int) -> None:
        """Tells the progress about two hundred times, and at the end."""
        if place + 1 == total or place % max(1, total // 200) == 0:
            self._progress(stage, place + 1, total)


@dataclass(frozen=True, eq=False)
class _Reading:
    """Decodes one file: mode, height, width and content of a readable one, else the reason."""

    paths: Sequence[str]
    max_pixels: int
    native: RowWriter
    frames: Sequence[tuple[RowWriter, tuple[int, str]]]

    def __call__(self, place: int) -> str | tuple[str, int, int, npt.NDArray[np.uint8]]:
        try:
            decoded = read(Path(self.paths[place]), self.max_pixels)
        except UnreadableImage as exc:
            return exc.reason
        pixels = decoded.image.numpy()
        self.native.offer(place, pixels)
        for writer, (size, interpolation) in self.frames:
            writer.write(place, to_frame(decoded.image, size, interpolation).numpy()[None])
        return decoded.mode, *pixels.shape[1:], _content(pixels)


@dataclass(frozen=True, eq=False)
class _Framing:
    """Writes the frame of one readable file."""

    paths: Sequence[str]
    max_pixels: int
    scan: Scan
    writer: RowWriter
    size: int
    interpolation: str

    def __call__(self, place: int) -> None:
        item = self.scan.items[place]
        if not item["is_readable"]:
            return
        try:
            image = read(Path(self.paths[place]), self.max_pixels).image
        except UnreadableImage as exc:
            raise DataError(f"{exc}; it was readable before: load the data again") from exc
        if (_content(image.numpy()) != item["content"]).any():
            raise DataError(f"{self.paths[place]} has changed while the data was in use; load the data again")
        self.writer.write(place, to_frame(image, self.size, self.interpolation).numpy()[None])


def _in_threads(task: Callable[[int], T], total: int) -> Iterator[T]:
    """The results in order; Pillow decodes outside the interpreter's lock, so threads do."""
    workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for place in range(total):
                waiting.append(pool.submit(task, place))
                if len(waiting) >= 8 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()


def _content(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """The digest of decoded pixels [C, h, w]; grey has the same in one channel and in three."""
    if len(pixels) == 3 and (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all():
        pixels = pixels[:1]
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def _colour(frames: Tensor) -> Tensor:
    """uint8 [B, 1 or 3, S, S] -> contiguous [B, 3, S, S]."""
    return frames.expand(-1, 3, -1, -1).contiguous()


def _frames_name(size: int, interpolation: str) -> str:
    return f"frames-{size}-{interpolation}"
