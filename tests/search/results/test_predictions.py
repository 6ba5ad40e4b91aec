"""Many files in, an answer or a reason for each out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from search.errors import BadInput
from search.results.predictions import example_files, predictions
from trainables.image.backbones import build
from trainables.image.classifier import Classifier
from trainables.image.endings import EXTENSIONS
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.card import make_card


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Tells bright from dark, under the card of a real backbone."""
    backbone = build("efficientnet_lite0", image_size=32)
    card = make_card(backbone, HParams(image_size=32), ("dark", "bright"), {"val_accuracy": 1.0})

    def logits(frames: torch.Tensor) -> torch.Tensor:
        light = frames.float().mean((1, 2, 3)) / 32 - 4
        return torch.stack([-light, light], 1)

    return Classifier(logits, card)


def draw(folder: Path, count: int) -> None:
    for place in range(count):
        Image.new("L", (9, 7), 255 * (place % 2)).save(folder / f"{place:04}.png")


def test_a_broken_file_is_a_row_and_the_others_have_their_answers(
    classifier: Classifier, tmp_path: Path
) -> None:
    draw(tmp_path, 150)
    for place in (3, 70, 149):
        (tmp_path / f"{place:04}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    found = list(predictions(classifier, example_files([str(tmp_path)], EXTENSIONS)))
    assert [answer.item.name for answer in found] == [f"{place:04}.png" for place in range(150)]
    broken = [answer for answer in found if answer.error]
    assert [answer.item.name for answer in broken] == ["0003.png", "0070.png", "0149.png"]
    right = [("dark", "bright")[place % 2] for place in range(150)]
    assert all(answer.error or answer.top[0][0] == label for answer, label in zip(found, right, strict=True))


def test_files_are_read_a_batch_at_a_time(classifier: Classifier, tmp_path: Path) -> None:
    draw(tmp_path, 2)
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        while True:
            asked += 1
            yield tmp_path / "0001.png"

    answers = predictions(classifier, endless(), top=2)
    assert [label for label, _ in next(answers).top] == ["bright", "dark"]
    assert asked <= 64


def test_folders_and_globs_name_files_once(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    draw(tmp_path / "below", 3)
    (tmp_path / "below" / "notes.txt").touch()
    words = [str(tmp_path / "below" / "0001.png"), str(tmp_path), str(tmp_path / "*" / "*2.png")]
    assert [path.name for path in example_files(words, EXTENSIONS)] == ["0001.png", "0000.png", "0002.png"]
    with pytest.raises(BadInput, match="no image file"):
        example_files([str(tmp_path / "*.gif")], EXTENSIONS)
