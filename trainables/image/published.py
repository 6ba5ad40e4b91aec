"""Data sets that are known by name: digits, Fashion-MNIST, and those of torchvision."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.errors import DataError, did_you_mean, enumeration
from trainables.image.formats import read_idx, read_plain_pickle
from trainables.image.sources import Listing, Source, identity, state
from trainables.training.splits import SPLITS, UNSPLIT

__all__ = ["FASHION_FOLDERS", "NAMES", "digits", "fashion_mnist", "torchvision_set"]

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_DIGIT_CLASSES = tuple("0123456789")
_KUZUSHIJI_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

FASHION_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path("/usr/share/dataset-fashion-mnist"),
)
"""Where Debian's package `dataset-fashion-mnist` puts its files, now and formerly."""

Pixels = npt.NDArray[np.uint8]


def digits() -> Source:
    """Scikit-learn's 1,797 digits of 8 x 8 pixels, their values 0..16 stretched to 0..255."""

    def listing() -> Listing:
        from sklearn.datasets import load_digits

        loaded = load_digits()
        grey = np.rint(loaded.images * (255 / 16)).astype(np.uint8)
        return _array_listing(_DIGIT_CLASSES, [("", grey[:, None], loaded.target)])

    return Source(identity=identity("digits", [version("scikit-learn")]), listing=listing)


def _array_listing(classes: Sequence[str], parts: Sequence[tuple[str, Pixels, npt.NDArray[Any]]]) -> Listing:
    """A listing of (split or nothing, pixels [N, C, h, w], labels [N]), one after the other."""
    given = [SPLITS.index(split) if split else UNSPLIT for split, _, _ in parts]
    return Listing(
        classes=tuple(classes),
        labels=np.concatenate([labels for _, _, labels in parts]).astype(np.int64),
        given=np.repeat(given, [len(labels) for _, _, labels in parts]).astype(np.int64),
        names=[f"{split or 'image'}/{i}" for split, _, labels in parts for i in range(len(labels))],
        pixels=parts[0][1] if len(parts) == 1 else np.concatenate([pixels for _, pixels, _ in parts]),
    )


# MNIST and its likes

_IDX_STEMS = (
    ("train", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("test", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def _idx_files(folder: Path) -> list[Path] | None:
    """The four files in the order of `_IDX_STEMS`, or None unless all are there."""
    files = []
    for _, *stems in _IDX_STEMS:
        for stem in stems:
            there = [path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()]
            if not there:
                return None
            files.append(there[0])
    return files


def _idx_set(name: str, classes: Sequence[str], folders: Sequence[Path], fix: str) -> Source:
    found = [(folder, files) for folder in folders if (files := _idx_files(folder))]
    if not found:
        stems = ", ".join(f"{stem}.gz" for _, *both in _IDX_STEMS for stem in both)
        raise DataError(
            f"data.source is {name}, but its files ({stems}, or without .gz) are not in "
            f"{' or '.join(map(str, folders))}; {fix}"
        )
    files = found[0][1]

    def listing() -> Listing:
        parts = []
        for place, (split, *_) in enumerate(_IDX_STEMS):
            images = read_idx(files[2 * place], 3)
            labels = read_idx(files[2 * place + 1], 1)
            if len(images) != len(labels):
                raise DataError(
                    f"{files[2 * place]} holds {len(images)} images, but {files[2 * place + 1]} "
                    f"{len(labels)} labels; fetch both again"
                )
            if not len(images):
                raise DataError(f"{files[2 * place]} holds no images; fetch it again")
            _check_labels(files[2 * place + 1], labels, classes)
            parts.append((split, images[:, None], labels))
        if parts[0][1].shape[1:] != parts[1][1].shape[1:]:
            raise DataError(f"{files[0]} and {files[2]} hold images of different sizes; fetch them again")
        return _array_listing(classes, parts)

    return Source(identity=identity(name, _states(files)), listing=listing)


def _check_labels(path: Path, labels: npt.NDArray[Any], classes: Sequence[str]) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise DataError(
            f"{path} holds labels from {labels.min()} to {labels.max()}, but must hold 0 to "
            f"{len(classes) - 1}, for {len(classes)} classes; fetch the file again"
        )


def _states(paths: Iterable[Path]) -> list[str]:
    return [f"{path}\0{state(path)}" for path in paths]


def fashion_mnist(root: Path | None) -> Source:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from its four IDX files.

    Raises:
        DataError: when they are neither below `root` (where given) nor where Debian puts them.
    """
    folders = (root, root / "FashionMNIST" / "raw", root / "fashion-mnist") if root else FASHION_FOLDERS
    fix = "run `apt-get install dataset-fashion-mnist`, or set data.root to the folder with them"
    return _idx_set("fashion-mnist", FASHION_CLASSES, folders, fix)


# CIFAR


def _cifar(
    name: str,
    root: Path,
    subfolder: str,
    files: Sequence[tuple[str, str]],
    keys: tuple[str, str, str],
) -> Source:
    meta, names_key, labels_key = keys
    folders = [root / subfolder, root]
    found = [folder for folder in folders if (folder / meta).is_file()]
    if not found:
        raise _absent(name, [root / subfolder / meta])
    folder = found[0]
    paths = [folder / file for _, file in files]
    if absent := [path for path in paths if not path.is_file()]:
        raise _absent(name, absent)

    def listing() -> Listing:
        classes = [str(each) for each in _entry(folder / meta, names_key, list)]
        parts = []
        for (split, _), path in zip(files, paths, strict=True):
            pixels, labels = _cifar_batch(path, labels_key)
            _check_labels(path, labels, classes)
            parts.append((split, pixels, labels))
        return _array_listing(classes, parts)

    return Source(identity=identity(name, _states([folder / meta, *paths])), listing=listing)


def _entry(path: Path, key: str, kind: type) -> Any:
    value = read_plain_pickle(path).get(key)
    if not isinstance(value, kind):
        raise DataError(f"{path} has no {kind.__name__} named {key!r}; fetch the file again")
    return value


def _cifar_batch(path: Path, labels_key: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    batch = read_plain_pickle(path)
    data, labels = batch.get("data"), batch.get(labels_key)
    if (
        not isinstance(data, np.ndarray)
        or not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
        or data.shape != (len(labels), 3 * 32 * 32)
    ):
        raise DataError(
            f"{path} must hold `data`, N x 3072 bytes, and `{labels_key}`, N whole numbers, but "
            "does not; fetch the file again"
        )
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


_CIFAR = {
    "CIFAR10": (
        "cifar-10-batches-py",
        [*(("train", f"data_batch_{i}") for i in range(1, 6)), ("test", "test_batch")],
        ("batches.meta", "label_names", "labels"),
    ),
    "CIFAR100": (
        "cifar-100-python",
        [("train", "train"), ("test", "test")],
        ("meta", "fine_label_names", "fine_labels"),
    ),
}
_IDX = {"MNIST": _DIGIT_CLASSES, "FashionMNIST": FASHION_CLASSES, "KMNIST": _KUZUSHIJI_CLASSES}


# The other sets of torchvision


@dataclass(frozen=True, kw_only=True)
class _Set:
    """How one of torchvision's classes is constructed and read.

    Attributes:
        where: the files or folders below the root that it reads; their state is its identity.
        splits: its own split names by ours; the only one is `""` where it brings no split.
        argument: the constructor's argument for them.
        items: the files and labels of an instance; None where `data` and `labels` hold arrays.
        classes: the names, where an instance does not know them.
    """

    where: tuple[str, ...]
    splits: dict[str, Any]
    argument: str = "split"
    items: Callable[[Any], Sequence[tuple[Any, int]]] | None = None
    classes: tuple[str, ...] | None = None


def _loaded(dataset: Any) -> list[tuple[Any, int]]:
    """Files and labels of a set that was given `loader=Path`, and so returns paths for images."""
    return [dataset[i] for i in range(len(dataset))]


_OWN = {"train": "train", "test": "test"}
_THREE = {"train": "train", "validation": "val", "test": "test"}

_SETS = {
    "SVHN": _Set(where=("train_32x32.mat", "test_32x32.mat"), splits=_OWN, classes=_DIGIT_CLASSES),
    "STL10": _Set(where=("stl10_binary",), splits=_OWN),
    "USPS": _Set(
        where=("usps.bz2", "usps.t.bz2"), splits={"train": True, "test": False}, argument="train",
        classes=_DIGIT_CLASSES,
    ),
    "Flowers102": _Set(where=("flowers-102",), splits=_THREE, items=_loaded),
    "OxfordIIITPet": _Set(
        where=("oxford-iiit-pet",), splits={"train": "trainval", "test": "test"},
        items=lambda each: list(zip(each._images, each._labels, strict=True)),
    ),
    "DTD": _Set(where=("dtd",), splits=_THREE, items=_loaded),
    "GTSRB": _Set(
        where=("gtsrb",), splits=_OWN, items=lambda each: list(each._samples),
        classes=tuple(f"{sign:02}" for sign in range(43)),
    ),
    "Food101": _Set(where=("food-101",), splits=_OWN, items=_loaded),
    "FGVCAircraft": _Set(where=("fgvc-aircraft-2013b",), splits=_THREE, items=_loaded),
    "EuroSAT": _Set(where=("eurosat",), splits={"": None}, items=_loaded),
    "SUN397": _Set(where=("SUN397",), splits={"": None}, items=_loaded),
    "Country211": _Set(
        where=("country211",), splits={**_THREE, "validation": "valid"}, items=_loaded
    ),
    "RenderedSST2": _Set(where=("rendered-sst2",), splits=_THREE, items=_loaded),
    "Imagenette": _Set(
        where=("imagenette2",), splits={"train": "train", "validation": "val"}, items=_loaded
    ),
}  # fmt: skip

NAMES = tuple(sorted([*_CIFAR, *_IDX, *_SETS], key=str.lower))
"""The data sets that `torchvision:NAME` knows."""


def torchvision_set(name: str, root: Path | None) -> Source:
    """One of torchvision's classification sets, as it lies on the disk; nothing is downloaded.

    Raises:
        DataError: for an unknown name, no root, or files that are not below the root.
    """
    if name not in NAMES:
        raise DataError(
            f"data.source is torchvision:{name}, but must be torchvision: and one of "
            f"{', '.join(NAMES)}{did_you_mean(name, NAMES)}"
        )
    if root is None:
        raise DataError(
            f"data.source is torchvision:{name}, but data.root is not set; set it to the folder "
            f"that was given to torchvision.datasets.{name} when it downloaded the set"
        )
    if name in _CIFAR:
        return _cifar(f"torchvision:{name}", root, *_CIFAR[name])
    if name in _IDX:
        fix = _download_advice(f"torchvision:{name}")
        return _idx_set(f"torchvision:{name}", _IDX[name], [root / name / "raw", root], fix)
    known = _SETS[name]
    places = [root / place for place in known.where]
    if absent := [place for place in places if not place.exists()]:
        raise _absent(f"torchvision:{name}", absent)
    parts = [version("torchvision"), *_states(_files_below(places))]
    return Source(
        identity=identity(f"torchvision:{name} {root}", parts),
        listing=lambda: _torchvision_listing(name, known, root),
    )


def _absent(name: str, paths: Sequence[Path]) -> DataError:
    return DataError(
        f"data.source is {name}, but there is no {enumeration([str(path) for path in paths])}; "
        f"{_download_advice(name)}"
    )


def _download_advice(name: str) -> str:
    bare = name.removeprefix("torchvision:")
    return (
        "set data.root to the folder that holds it, or fetch it where there is a network: "
        f"torchvision.datasets.{bare}(ROOT, download=True)"
    )


def _files_below(places: Iterable[Path]) -> list[Path]:
    files = []
    for place in places:
        if place.is_file():
            files.append(place)
        for parent, _, names in os.walk(place):
            files += [Path(parent, each) for each in names]
    return sorted(files)


def _torchvision_listing(name: str, known: _Set, root: Path) -> Listing:
    import torchvision.datasets

    constructor = getattr(torchvision.datasets, name)
    made = {}
    for split, theirs in known.splits.items():
        arguments: dict[str, Any] = {known.argument: theirs} if split else {}
        if known.items is _loaded:
            arguments["loader"] = Path
        try:
            made[split] = constructor(root, download=False, **arguments)
        except Exception as exc:  # each set raises its own for what it misses
            raise DataError(
                f"data.source is torchvision:{name}, but torchvision cannot read it from {root}: "
                f"{exc}; {_download_advice(name)}"
            ) from exc
    some = next(iter(made.values()))
    classes = [_class_name(each) for each in known.classes or some.classes]
    if known.items is None:
        arrays = [(split, _channels_first(each.data), _target(each)) for split, each in made.items()]
        return _array_listing(classes, arrays)
    return _file_listing(classes, root, {split: known.items(each) for split, each in made.items()})


def _class_name(name: Any) -> str:
    """A class's name; Imagenette gives a tuple of synonyms."""
    return str(name[0]) if isinstance(name, tuple) else str(name)


def _channels_first(pixels: Any) -> Pixels:
    array = np.asarray(pixels)
    return array[:, None] if array.ndim == 3 else array


def _target(dataset: Any) -> npt.NDArray[np.int64]:
    return np.asarray(getattr(dataset, "labels", getattr(dataset, "targets", None)), dtype=np.int64)


def _file_listing(
    classes: Sequence[str], root: Path, splits: dict[str, Sequence[tuple[Any, int]]]
) -> Listing:
    base = root.resolve()
    rows = sorted(
        (os.path.relpath(path, root), int(label), SPLITS.index(split) if split else UNSPLIT)
        for split, items in splits.items()
        for path, label in items
    )
    escaping = [row[0] for row in rows if not (base / row[0]).resolve().is_relative_to(base)]
    if escaping:
        raise DataError(
            f"files lead out of data.root {root}: {enumeration(escaping)}; put the files themselves below it"
        )
    return Listing(
        classes=tuple(classes),
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        given=np.array([code for _, _, code in rows], dtype=np.int64),
        names=[name for name, _, _ in rows],
        paths=[os.path.join(root, name) for name, _, _ in rows],
    )
