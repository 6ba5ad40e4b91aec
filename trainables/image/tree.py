"""What lies in a folder of images: files, links, and what is passed over, each named."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainables.image.decode import EXTENSIONS

__all__ = ["Image", "Tree", "Walk", "is_image"]


@dataclass(frozen=True)
class Image:
    """A file that is named like an image.

    Attributes:
        name: its path below the whole source.
        below: its path below the class folder.
        entry: where it is.
    """

    name: str
    below: str
    entry: os.DirEntry[str]


@dataclass
class Walk:
    """The images below one folder, and the names of what was passed over on the way.

    Attributes:
        others: files that are not named like images, by ending.
        outside: links that lead out of the source.
        circular: links to a folder that holds them.
        dead: links to nothing.
        hidden: images and folders whose names begin with a dot.
        loose: images beside class folders.
    """

    images: list[Image] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)
    circular: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)

    @classmethod
    def together(cls, walks: Iterable[Walk]) -> Walk:
        """What was passed over in all of them."""
        passed = cls()
        for walk in walks:
            passed.others += walk.others
            for name in ("outside", "circular", "dead", "hidden", "loose"):
                getattr(passed, name).extend(getattr(walk, name))
        return passed


class Tree:
    """A folder and the rule by which links in it are followed.

    Args:
        base: the folder, resolved.
        anywhere: whether links out of it are followed.

    Attributes:
        outside: links to folders that stand for a class or a split, and lead out; with their targets.
    """

    def __init__(self, base: Path, *, anywhere: bool) -> None:
        self.base = base
        self.outside: dict[str, str] = {}
        self._anywhere = anywhere

    def folders(self, parent: Path) -> list[str]:
        """Names of the folders in `parent`, of links too that are followed."""
        names = []
        with os.scandir(parent) as entries:
            for entry in entries:
                if _is_passed_over(entry.name) or not _is_folder(entry):
                    continue
                if not entry.is_symlink() or self._is_followed(entry):
                    names.append(entry.name)
                elif not self._is_circular(entry):
                    self.outside[self._name(entry)] = os.path.realpath(entry.path)
        return sorted(names)

    def loose_images(self, parent: Path) -> list[str]:
        """Names of the images that lie in `parent` itself."""
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if is_image(entry.name) and _is_regular(entry)]

    def beside(self, roots: Sequence[tuple[str, Path]]) -> Walk:
        """What lies beside class folders and beside splits, where no image is looked for."""
        walk = Walk()
        for parent in {self.base, *(parent for _, parent in roots)}:
            with os.scandir(parent) as entries:
                for entry in entries:
                    if _is_passed_over(entry.name):
                        self._pass_over(entry, walk)
                    elif is_image(entry.name) and _is_regular(entry):
                        walk.loose.append(self._name(entry))
                    elif entry.is_symlink() and _is_folder(entry) and self._is_circular(entry):
                        walk.circular.append(self._name(entry))
                    elif entry.is_symlink() and not os.path.exists(entry.path):
                        walk.dead.append(self._name(entry))
        return walk

    def walk(self, parent: Path) -> Walk:
        """The images at any depth below a class folder; each folder is looked into once."""
        walk, seen = Walk(), set[str]()
        self._descend(str(parent), len(str(parent)) + 1, walk, seen)
        return walk

    def _descend(self, parent: str, cut: int, walk: Walk, seen: set[str]) -> None:
        real = os.path.realpath(parent)
        if real in seen:
            return
        seen.add(real)
        with os.scandir(parent) as entries:
            for entry in entries:
                if _is_passed_over(entry.name):
                    self._pass_over(entry, walk)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    walk.dead.append(self._name(entry))
                elif entry.is_symlink() and not self._is_followed(entry):
                    (walk.circular if self._is_circular(entry) else walk.outside).append(self._name(entry))
                elif _is_folder(entry):
                    self._descend(entry.path, cut, walk, seen)
                elif is_image(entry.name) and _is_regular(entry):
                    walk.images.append(Image(self._name(entry), entry.path[cut:].replace(os.sep, "/"), entry))
                else:
                    walk.others[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1

    def _name(self, entry: os.DirEntry[str]) -> str:
        return entry.path[len(str(self.base)) + 1 :].replace(os.sep, "/")

    def _is_followed(self, link: os.DirEntry[str]) -> bool:
        is_inside = Path(os.path.realpath(link.path)).is_relative_to(self.base)
        return (self._anywhere or is_inside) and not self._is_circular(link)

    @staticmethod
    def _is_circular(link: os.DirEntry[str]) -> bool:
        """Whether a link leads to a folder that holds it."""
        return Path(os.path.realpath(os.path.dirname(link.path))).is_relative_to(os.path.realpath(link.path))

    def _pass_over(self, entry: os.DirEntry[str], walk: Walk) -> None:
        # What macOS leaves beside each file, and folders' own settings, are nothing that a person put there.
        if (
            not entry.name.startswith("._")
            and entry.name != "__MACOSX"
            and (entry.is_dir(follow_symlinks=False) or is_image(entry.name.lstrip(".")))
        ):
            walk.hidden.append(self._name(entry))


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_passed_over(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link that leads to itself does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False
