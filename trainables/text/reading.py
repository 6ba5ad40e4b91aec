"""A text as a person has it, made what a model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.text.preprocessing import Preprocessing
from trainables.text.sources import read_text
from trainables.text.tokens import tokenizer_of

__all__ = ["read", "text_of"]

_MOST = 1_000_000


def text_of(item: Any) -> str:
    """The text: of a file's `pathlib.Path`, of bytes in UTF-8, or as it is.

    Raises:
        ValueError: for what is none.
    """
    if isinstance(item, Path):
        item = read_text(item)
    if isinstance(item, bytes):
        try:
            item = item.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"a text is in UTF-8, but these bytes are not: {error}") from error
    if not isinstance(item, str):
        raise ValueError(f"a text is {type(item).__name__}, but must be text, its bytes or a pathlib.Path")
    if not item.strip():
        raise ValueError("the text is empty")
    if len(item) > _MOST:
        raise ValueError(f"the text has {len(item):,} characters, but may have {_MOST:,}")
    return item


def read(item: Any, preprocessing: Preprocessing) -> Tensor:
    """Its tokens, their mask and their words' numbers, int64 [3, L].

    Raises:
        ValueError: for what is no text.
    """
    rows = tokenizer_of(preprocessing).rows([text_of(item)], preprocessing.max_length)
    return torch.from_numpy(rows[0]).long()
