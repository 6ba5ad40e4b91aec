"""What a command on a cluster answers to the program that asked: one JSON document in a line of its own.

People read the lines around it; programs read the documents, and nothing else of what is printed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from search.errors import TransferSearchError

__all__ = ["VERSION", "answer", "for_people", "said"]

VERSION = 1
_KEY = "transfer_search_answer"
_BEGINNING = f'{{"{_KEY}": '


def answer(kind: str, **content: Any) -> str:
    """The line that answers with `content`: `launched`, `exported`, `reported`, `examined` or `failed`."""
    return json.dumps({_KEY: VERSION, "kind": kind, "content": content}) + "\n"


def said(text: str, kind: str) -> dict[str, Any] | None:
    """The content of the last answer of a kind in what a command has printed; None as long as there is none.

    Raises:
        TransferSearchError: if it is of a version that this program does not know.
    """
    found: dict[str, Any] | None = None
    for document in _documents(text):
        if document.get(_KEY) != VERSION:
            raise TransferSearchError(
                f"the cluster answers in version {document.get(_KEY)}, and this program reads version "
                f"{VERSION}; use the same transfer-search here and there"
            )
        if document["kind"] == kind:
            found = document["content"]
    return found


def for_people(text: str) -> str:
    """What a command has printed so far without its answers, not even one that is half there."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n") and _BEGINNING.startswith(lines[-1][: len(_BEGINNING)]):
        lines.pop()
    return "".join(line for line in lines if not line.startswith(_BEGINNING))


def _documents(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines(keepends=True):
        if line.startswith(_BEGINNING) and line.endswith("\n"):
            yield json.loads(line)
