"""Directories of class folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from trainables.errors import DataError, enumeration, printable
from trainables.image.decode import EXTENSIONS
from trainables.image.sources import Listing, Source, identity, state
from trainables.image.tree import Image, Tree, Walk
from trainables.training.labels import class_names, likely_split, named_split, numbered_labels
from trainables.training.splits import SPLITS, UNSPLIT

__all__ = ["folder"]

_ALLOWED = (
    "give a folder with one folder of images for each class, or with train, validation and "
    "test folders that hold these class folders"
)
_FOLLOW = "set data.links: anywhere (--set data.links=anywhere) to follow links out of the folder"
_PHOTOS = frozenset(".heic .heif .cr2 .cr3 .nef .arw .dng .raf .orf .psd .svg .jxl".split())
"""Endings of pictures that are not read here."""


def folder(root: Path, *, links: str = "inside") -> Source:
    """A directory of class folders, or of train, validation and test folders of class folders.

    Args:
        root: the directory.
        links: which symbolic links are followed: those that stay `inside` it, or to `anywhere`.

    Raises:
        DataError: when it holds no class folders, or not what its layout promises.
    """
    tree = Tree(root.resolve(), anywhere=links == "anywhere")
    roots, problems = _class_roots(tree)
    if problems:
        raise DataError(problems)
    found: list[tuple[str, str, Image]] = []
    walks: dict[tuple[str, str], Walk] = {}
    for split, parent in roots:
        for name in tree.folders(parent):
            walk = walks[split, name] = tree.walk(parent / name)
            if not walk.images:
                problems.append(_empty_class(parent / name, walk))
            found.extend((split, name, image) for image in walk.images)
    problems += _linked_folders(tree)
    beside = tree.beside(roots)
    problems += [
        f"{tree.base / name} is a link to nothing; put back what it leads to, or remove the link to draw the "
        f"{named_split(name)} split from the others"
        for name in sorted(beside.dead)
        if named_split(name)
    ]
    if problems:
        raise DataError(problems)
    found.sort(key=lambda each: each[2].name)
    classes, label, alike = class_names([name for _, name, _ in found])
    code = {**{name: place for place, name in enumerate(SPLITS)}, "": UNSPLIT}
    notes = (*alike, *_notes(walks, beside))
    listing = Listing(
        classes=classes,
        labels=numbered_labels(label, [name for _, name, _ in found]),
        given=np.array([code[split] for split, _, _ in found], dtype=np.int64),
        names=[image.name for _, _, image in found],
        paths=[image.entry.path for _, _, image in found],
        notes=notes,
    )
    told = (f"{image.name}\0{state(image.entry)}" for _, _, image in found)
    return Source(identity=identity(f"folder {tree.base}", [*told, *notes]), listing=lambda: listing)


def _class_roots(tree: Tree) -> tuple[list[tuple[str, Path]], list[str]]:
    """The folders whose subfolders are classes, each with its split (empty: none), and problems."""
    base, names = tree.base, tree.folders(tree.base)
    if not names:
        loose = len(tree.loose_images(base))
        held = f"{loose} images but no class folders" if loose else "no class folders"
        return [], [*_linked_folders(tree)] or [f"data.source is {base}, which holds {held}; {_ALLOWED}"]
    splits = [name for name in names if named_split(name)]
    others = [name for name in names if not named_split(name)]
    if not splits or (others and not any(tree.folders(base / name) for name in splits)):
        return [("", base)], []
    problems = []
    if others:
        problems.append(
            f"data.source is {base}, which holds {enumeration(splits)} and beside them "
            f"{enumeration(others)}; is it split or not? {_renaming(splits, others)}"
        )
    meanings = Counter(named_split(name) for name in splits)
    for split, count in meanings.items():
        if count > 1:
            several = [name for name in splits if named_split(name) == split]
            problems.append(
                f"{base} holds {' and '.join(several)}, which all mean the {split} split; keep one"
            )
    if "train" not in meanings:
        problems.append(
            f"{base} holds {enumeration(splits)} but no train folder; {_ALLOWED}; "
            "only validation and test may be left out"
        )
    problems += [_classless(tree, name) for name in splits if not tree.folders(base / name)]
    return [(str(named_split(name)), base / name) for name in splits], [*problems, *_linked_folders(tree)]


def _renaming(splits: Sequence[str], others: Sequence[str]) -> str:
    meant = {name: split for name in others if (split := likely_split(name))}
    told = "".join(f"call {name} {split} if it is that split; " for name, split in meant.items())
    return (
        f"Splits are called train, validation (or val, valid) and test: {told}move "
        f"{enumeration(others)} away if the data is split, rename {enumeration(splits)} if these are classes"
    )


def _classless(tree: Tree, name: str) -> str:
    path = tree.base / name
    loose = len(tree.loose_images(path))
    if loose and named_split(name) != "train":
        return (
            f"{path} holds no class folders; the labels of its {loose} images are not known, as in a "
            f"competition's test set: give the train folder alone as data.source, or move {name} away"
        )
    return f"{path} holds no class folders; {_ALLOWED}"


def _linked_folders(tree: Tree) -> Iterator[str]:
    """Classes and splits that would vanish, since they are links that are not followed."""
    if tree.outside:
        told = [f"{name} -> {target}" for name, target in sorted(tree.outside.items())]
        yield (
            f"{tree.base} holds {len(told)} links to folders elsewhere: {enumeration(told)}; {_FOLLOW}, copy "
            "the images in with `cp -rL`, or remove the links"
        )


def _empty_class(path: Path, walk: Walk) -> str:
    held = [f"{count} x {ending}" for ending, count in sorted(walk.others.items())]
    if walk.outside:
        held.append(f"links that lead out of the folder: {enumeration(sorted(walk.outside))}")
    if walk.dead:
        held.append(f"links to nothing: {enumeration(sorted(walk.dead))}")
    fix = f"put files ending in {' '.join(sorted(EXTENSIONS))} into it, or remove it"
    if walk.outside:
        fix = f"{_FOLLOW}, or copy the images in with `cp -rL`"
    elif _PHOTOS & walk.others.keys():
        fix = "convert its pictures to JPEG or PNG, which are read here"
    told = "; ".join(held) or "it is empty"
    return f"class folder {printable(str(path))} holds no images ({told}); {fix}"


def _notes(walks: Mapping[tuple[str, str], Walk], beside: Walk) -> Iterator[str]:
    yield from _nested(walks)
    passed = Walk.together([*walks.values(), beside])
    if passed.loose:
        yield (
            f"{len(passed.loose)} images lie beside the class folders, ignored: "
            f"{enumeration(sorted(passed.loose))}"
        )
    if passed.outside:
        yield (
            f"{len(passed.outside)} links lead out of the folder and are not followed: "
            f"{enumeration(sorted(passed.outside))}; set data.links: anywhere to follow them"
        )
    if passed.circular:
        yield f"links to folders that hold them are not followed: {enumeration(sorted(passed.circular))}"
    if passed.dead:
        yield f"links to nothing are left out: {enumeration(sorted(passed.dead))}"
    if passed.hidden:
        yield (
            f"{len(passed.hidden)} hidden files and folders are ignored: {enumeration(sorted(passed.hidden))}"
        )
    photos = {ending: count for ending, count in passed.others.items() if ending in _PHOTOS}
    if photos:
        yield f"WARNING: pictures that are not read here: {_tally(photos)}; convert them to JPEG or PNG"
    if others := passed.others - Counter(photos):
        yield f"files that are no images are ignored: {_tally(others)}"


def _tally(endings: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {ending}" for ending, count in sorted(endings.items()))


def _nested(walks: Mapping[tuple[str, str], Walk]) -> Iterator[str]:
    """A warning where the folders that were taken for classes all hold the same folders of images."""
    inner = []
    for walk in walks.values():
        depths = {len(PurePosixPath(image.below).parts) for image in walk.images}
        if 1 in depths:
            return  # some images lie in the class folder itself
        inner.append({PurePosixPath(image.below).parts[-2] for image in walk.images})
    if len(inner) > 1 and len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        taken = sorted({name for _, name in walks})
        yield (
            f"WARNING: each of the classes {enumeration(taken)} holds the same folders "
            f"({enumeration(sorted(inner[0]))}) and no image of its own; if those are the classes, give the "
            "folder that holds them as data.source, or arrange them as train/CLASS and test/CLASS"
        )
