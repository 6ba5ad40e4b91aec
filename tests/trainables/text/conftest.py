"""What the tests of texts share; without the extra `text` they are skipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")

from tests.trainables.text.tiny import sentences, write_encoder, write_table
from trainables.modality import Backbone
from trainables.text.data import TextData
from trainables.text.modality import TEXT


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def knobs(encoder: Path) -> Mapping[str, Any]:
    """What asks for it."""
    return {"backbone": "transformer", "weights": str(encoder), "max_length": 24, "pooling": "mean"}


@pytest.fixture(scope="session")
def backbone(knobs: Mapping[str, Any]) -> Backbone:
    return TEXT.backbone(knobs)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    """A hundred texts of two classes."""
    folder = tmp_path_factory.mktemp("texts")
    table = write_table(folder / "texts.jsonl", sentences(50))
    return TEXT.load({"source": str(table)}, cache_dir=folder)  # type: ignore[return-value]
