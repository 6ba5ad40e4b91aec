"""Labelled images for a trial: where they come from, checked, split, and decoded once per node.

DataError(ValueError)       data that cannot be used
└── UnreadableImage         one file that cannot be decoded
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainables.errors import DataError, did_you_mean, printable
from trainables.files.remote import is_uri
from trainables.image import published
from trainables.image.data_config import ALLOWED_SOURCES, DataConfig
from trainables.image.decode import UnreadableImage, decode, to_frame
from trainables.image.fetched import fetched
from trainables.image.folders import folder
from trainables.image.inventory import DataReport, reported
from trainables.image.manifests import image_folder, manifest
from trainables.image.preprocessing import Preprocessing
from trainables.image.sources import Source
from trainables.image.store import Progress, Scan, Store
from trainables.image.tables import SUFFIXES
from trainables.image.unpacked import unpacked
from trainables.training.ahead import placed
from trainables.training.grouping import group_names, joined, numbered
from trainables.training.splits import SPLITS, UNSPLIT, Assignment, assign, limited

__all__ = [
    "SPLITS",
    "DataConfig",
    "DataError",
    "DataReport",
    "Frames",
    "ImageData",
    "UnreadableImage",
    "decode",
    "load",
    "to_frame",
]

_SHOWN = 10
_READERS = 4
"""Threads that copy frames for a GPU."""


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_READERS, thread_name_prefix="frames")


class Frames:
    """All images of an `ImageData` as frames of one size, mapped from the node's disk.

    Attributes:
        size: side of a frame in pixels.
        interpolation: how images were resized.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.uint8],
        places: npt.NDArray[np.int64],
        size: int,
        interpolation: str,
        is_native: bool,
    ) -> None:
        self.size, self.interpolation = size, interpolation
        self._rows, self._places, self._is_native = rows, places, is_native

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The frames at int64 indices [B] as contiguous uint8 [B, 3, size, size].

        Raises:
            IndexError: for an index below 0 or not below the length.
        """
        return self._framed(self._taken(indices))

    def on(self, device: torch.device, indices: Tensor) -> Tensor:
        """The frames at `indices` on `device`: small images go to a GPU as they are and are enlarged there.

        A GPU may round a grey level differently, so that what is measured is read with `[...]`.
        """
        if device.type == "cpu":
            return self[indices]
        return self._framed(placed(self._taken(indices, is_pinned=device.type == "cuda"), device))

    def _taken(self, indices: Tensor, is_pinned: bool = False) -> Tensor:
        """The rows at `indices` as they are kept, in memory that a GPU reads by itself if asked for."""
        wanted = indices.detach().cpu().numpy()
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(
                f"indices from {wanted.min()} to {wanted.max()} were asked for, but there are "
                f"{len(self)} frames"
            )
        taken = torch.empty((len(wanted), *self._rows.shape[1:]), dtype=torch.uint8, pin_memory=is_pinned)
        places, out = self._places[wanted], taken.numpy()

        def take(part: slice) -> None:  # in mode `raise` numpy would fill a buffer and copy that
            np.take(self._rows, places[part], axis=0, out=out[part], mode="clip")

        if is_pinned:  # a GPU takes more images a second than a core copies
            bounds = np.linspace(0, len(places), _READERS + 1).astype(int)
            list(_readers().map(take, map(slice, bounds[:-1], bounds[1:])))
        else:
            take(slice(None))
        return taken

    def _framed(self, rows: Tensor) -> Tensor:
        """Rows as they are kept as frames."""
        if not self._is_native:
            return rows
        if not len(rows):
            return rows.new_empty(0, 3, self.size, self.size)
        frames = to_frame(rows, self.size, self.interpolation)
        return frames.expand(-1, 3, -1, -1).contiguous()


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """Labelled images, split and ready to be trained on.

    Attributes:
        classes: the names of the labels.
        labels: int64 [N].
        splits: ascending int64 indices of `train`, `validation` and `test`; every one is in one.
        fingerprint: hex; changes if and only if pixels, labels, classes or splits change.
        names: what to call each image to a person: a path below the source, or its place in it.
        report: what was found.
        orientation_matters: as `DataConfig` has it.
        groups: int64 [N], which images belong together; None where nothing says so.
    """

    classes: tuple[str, ...]
    labels: Tensor
    splits: dict[str, Tensor]
    fingerprint: str
    names: tuple[str, ...]
    report: DataReport
    orientation_matters: bool = False
    groups: Tensor | None = None
    _places: npt.NDArray[np.int64] = field(repr=False)
    _store: Store = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """An image at its own size, decoded anew where it is a file: uint8 [3, H, W].

        Raises:
            UnreadableImage: when its file has changed since it was loaded.
        """
        return self._store.image(int(self._places[index]))

    def examples(self, preprocessing: Preprocessing) -> Frames:
        """The frames that a preprocessing crops its inputs from."""
        return self.frames(preprocessing.frame_size, preprocessing.interpolation)

    def frames(self, size: int, interpolation: str) -> Frames:
        """Every image as a frame; resized and stored now where this node has not done so before.

        Raises:
            DataError: when a file has changed since it was loaded, or the cache cannot be written.
            ValueError: for an interpolation other than `bilinear` and `bicubic`, or a size below 1.
        """
        to_frame(torch.zeros(3, 1, 1, dtype=torch.uint8), size, interpolation)  # checks both
        rows, is_native = self._store.rows(size, interpolation)
        return Frames(rows, self._places, size, interpolation, is_native)


def load(
    config: DataConfig,
    *,
    cache_dir: Path,
    progress: Progress | None = None,
    frames: Sequence[tuple[int, str]] = (),
) -> ImageData:
    """The images that `config` names, checked and split.

    The first call on a node reads every image; what it finds is kept below `cache_dir`/data, and a
    later call decodes nothing unless files have changed.

    Args:
        progress: told (stage, done, total) while that takes time.
        frames: (size, interpolation) of frames that will be asked for: a first call then stores
            them in the same pass over the files.

    Raises:
        DataError: naming everything that keeps the data from being used.
    """
    cache_dir = Path(cache_dir).expanduser().absolute()
    source = _found(config, cache_dir, progress)
    store = Store(cache_dir, source, config.max_pixels, progress)
    scan = store.scan(frames)
    readable = np.flatnonzero(scan.items["is_readable"])
    items = scan.items[readable]
    labels = items["label"].astype(np.int64)
    ids = np.ascontiguousarray(items["content"]).view("<u8")[:, 0].astype(np.uint64)
    groups = np.unique(np.ascontiguousarray(items["content"]).view("V16")[:, 0], return_inverse=True)[
        1
    ].astype(np.int64)
    owners = None
    if config.group is not None and len(readable):
        owners = group_names(config.group, [scan.names[place] for place in readable], source.columns)
    kin = None if owners is None else joined(groups, numbered(owners))
    problems = _scan_problems(config, scan)
    assigned: Assignment | None = None
    if len(scan.classes) > 1 and len(readable):
        assigned = assign(
            labels=labels,
            groups=groups,
            ids=ids,
            given=items["given"].astype(np.int64),
            classes=scan.classes,
            shares={"validation": config.validation, "test": config.test},
            seed=config.seed,
            kin=kin,
        )
        problems += assigned.problems
        problems += _limit_problems(config, assigned.codes, scan.classes)
    if problems or assigned is None:
        raise DataError(problems)
    codes = np.full(len(labels), UNSPLIT, dtype=np.int64)
    for code, split in enumerate(SPLITS):
        own = np.flatnonzero(assigned.codes == code)
        limit = getattr(config, f"{split}_limit")
        codes[limited(own, labels=labels[own], ids=ids[own], limit=limit, seed=config.seed)] = code
    used = np.flatnonzero(codes != UNSPLIT)
    return ImageData(
        classes=scan.classes,
        labels=torch.from_numpy(labels[used]),
        splits={
            split: torch.from_numpy(np.flatnonzero(codes[used] == code)) for code, split in enumerate(SPLITS)
        },
        fingerprint=_fingerprint(scan.classes, codes[used], labels[used], items["content"][used]),
        names=tuple(scan.names[place] for place in readable[used]),
        report=reported(config.source, scan, readable, groups, assigned, codes, owners),
        groups=None if kin is None else torch.from_numpy(kin[used]),
        orientation_matters=config.orientation_matters,
        _places=readable[used],
        _store=store,
    )


def _found(config: DataConfig, cache_dir: Path, progress: Progress | None) -> Source:
    """The source that the configuration names."""
    root = None if config.root is None else Path(config.root).expanduser().absolute()
    text = str(config.source)
    if root is not None and not root.is_dir():
        raise DataError(f"data.root is {root}, which is no folder; give one that exists, or leave it out")
    if text == "digits":
        return published.digits()
    if text == "fashion-mnist":
        return published.fashion_mnist(root)
    if text.startswith("torchvision:"):
        return published.torchvision_set(text.removeprefix("torchvision:"), root)
    if is_uri(text):
        return fetched(text, cache_dir, progress)
    path = Path(root or "", Path(text).expanduser()).absolute()
    if path.is_dir():
        return image_folder(path, links=config.links) or folder(path, links=config.links)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        whole = unpacked(path, cache_dir, progress) if path.suffix.lower() == ".parquet" else None
        return whole or manifest(path, root=root, links=config.links)
    what = "is a file of another kind" if path.is_file() else "does not exist"
    raise DataError(
        f"data.source is {text}, but {path} {what}; give {ALLOWED_SOURCES}"
        f"{did_you_mean(text, ('digits', 'fashion-mnist'))}"
    )


def _scan_problems(config: DataConfig, scan: Scan) -> list[str]:
    """What is wrong before anything is split."""
    problems = []
    count = len(scan.reasons)
    if count and (config.unreadable == "refuse" or count == len(scan.items)):
        shown = "".join(
            f"\n    {printable(scan.names[item])}: {reason}"
            for item, reason in list(scan.reasons.items())[:_SHOWN]
        )
        more = f"\n    and {count - _SHOWN} more" if count > _SHOWN else ""
        problems.append(
            f"{count} of {len(scan.items)} files in {config.source} cannot be read as images; "
            f"replace or remove them, or set data.unreadable to skip:{shown}{more}"
        )
    if not len(scan.items):
        problems.append(f"data.source {config.source} holds no images; give one that does")
    if len(scan.classes) == 1:
        problems.append(
            f"data.source {config.source} holds only the class {scan.classes[0]!r}, but needs at "
            "least two; add a class, or check that you gave the folder above the class folders"
        )
    return problems


def _limit_problems(config: DataConfig, codes: npt.NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    problems = []
    for code, split in enumerate(SPLITS):
        limit = getattr(config, f"{split}_limit")
        if limit is not None and (codes == code).any() and limit < len(classes):
            problems.append(
                f"data.{split}_limit is {limit}, but must be at least {len(classes)}, one image "
                "for each class"
            )
    return problems


def _fingerprint(
    classes: Sequence[str],
    codes: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    contents: npt.NDArray[np.uint8],
) -> str:
    digest = hashlib.blake2b(json.dumps(list(classes)).encode(), digest_size=16)
    digest.update(codes.astype("<i8").tobytes())
    digest.update(labels.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(contents).tobytes())
    return digest.hexdigest()
