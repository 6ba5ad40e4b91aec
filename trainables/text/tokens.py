"""Texts cut into tokens, words that tokens belong to, and tokenizers by the digest of their file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainables.errors import BackboneError, DataError
from trainables.text.preprocessing import Preprocessing

__all__ = ["MISSING", "Tokenizer", "read_tokenizer", "tokenizer_of"]

MISSING = (
    "modality text needs packages that are not installed: `pip install 'transfer-search[text]'`, or at least "
    "`pip install tokenizers`"
)
_MASKS = ("[MASK]", "<mask>", "[UNK]", "<unk>")
_MARKS = ("##", "Ġ", "▁", "Ċ")
"""What tokenizers write before or in place of a space, or before a word's later pieces."""
_CACHED = 65536


class Tokenizer:
    """A tokenizer as its file describes it.

    Attributes:
        text: the file, JSON.
        digest: its hex digest.
    """

    def __init__(self, text: str) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise BackboneError(MISSING) from error
        try:
            self._own: Any = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # of the library, for whatever it stumbles over
            raise BackboneError(f"it is no tokenizer's file: {error}") from error
        self._own.no_padding()
        self._own.no_truncation()
        self.text = text
        self.digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def rows(self, texts: Sequence[str], length: int) -> npt.NDArray[np.int32]:
        """Of each text its tokens' ids, their mask, and the numbers of their words: [N, 3, length].

        A text that is longer loses its end, not the special tokens after it. Special tokens and padding have
        the word -1.
        """
        found = np.zeros((len(texts), 3, length), dtype=np.int32)
        found[:, 2] = -1
        for row, each in zip(found, self._own.encode_batch(list(texts)), strict=True):
            ids = np.array(each.ids, dtype=np.int32)
            words = np.array([-1 if word is None else word for word in each.word_ids], dtype=np.int32)
            kept = _cut(words, length)
            row[0, : len(kept)], row[1, : len(kept)], row[2, : len(kept)] = ids[kept], 1, words[kept]
        return found

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens, for a person."""
        found: str = self._own.decode(list(ids), skip_special_tokens=False)
        return found

    @functools.cached_property
    def mask(self) -> int:
        """The token that stands for a word that is hidden, or for one that is not known."""
        known = (self._own.token_to_id(name) for name in _MASKS)
        return next((each for each in known if each is not None), 0)

    @functools.lru_cache(maxsize=_CACHED)  # noqa: B019  tokenizers live as long as the process
    def word(self, ids: tuple[int, ...]) -> str:
        """The word of some tokens, in lower case."""
        pieces = [str(self._own.id_to_token(each)) for each in ids]
        for mark in _MARKS:
            pieces = [piece.removeprefix(mark) for piece in pieces]
        return "".join(pieces).lower()

    @functools.lru_cache(maxsize=_CACHED)  # noqa: B019
    def pieces(self, word: str) -> tuple[int, ...]:
        """The tokens of a word within a text."""
        return tuple(self._own.encode(f" {word}", add_special_tokens=False).ids)


def _cut(words: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.int64]:
    """Places of the tokens that stay: the first ones, and the special ones at the end."""
    every = np.arange(len(words))
    if len(words) <= length:
        return every
    inner = np.flatnonzero(words >= 0)
    ending = len(words) - 1 - inner[-1] if len(inner) else 0
    return np.concatenate([every[: length - ending], every[len(words) - ending :]])


_KNOWN: dict[str, Tokenizer] = {}


def read_tokenizer(source: Path | str) -> Tokenizer:
    """The tokenizer of a file, or of the text of one; from then on `tokenizer_of` knows it.

    Raises:
        BackboneError: where it is none, or the package that reads it is not installed.
    """
    if isinstance(source, Path):
        return _of_file(source, _stamp(source))
    made = Tokenizer(source)
    return _KNOWN.setdefault(made.digest, made)


@functools.lru_cache(maxsize=8)
def _of_file(path: Path, stamp: tuple[int, int]) -> Tokenizer:
    try:
        return read_tokenizer(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BackboneError) as error:
        if str(error) == MISSING:
            raise
        raise BackboneError(f"{path} cannot be used: {error}") from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise BackboneError(f"{path} cannot be read: {error.strerror or error}") from error
    return found.st_size, found.st_mtime_ns


def tokenizer_of(preprocessing: Preprocessing) -> Tokenizer:
    """The tokenizer that a preprocessing names, once its backbone or its model has been opened.

    Raises:
        DataError: where this process has not met it.
    """
    try:
        return _KNOWN[preprocessing.tokenizer]
    except KeyError as error:
        raise DataError(
            f"the tokenizer {preprocessing.tokenizer} is not at hand; open the model or its backbone first"
        ) from error
