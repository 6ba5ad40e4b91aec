"""Real images and a real backbone, small enough that a trial takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from trainables.files.cache import Cache
from trainables.image import backbones
from trainables.image.backbones import Backbone
from trainables.image.data import DataConfig, ImageData, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.training.loop import Training
from trainables.training.settings import Settings

if TYPE_CHECKING:
    from trainables.image_transfer import ImageTransfer, TrialConfig

SIDE = 32


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data-cache")


@pytest.fixture(scope="session")
def digits(data_cache: Path) -> ImageData:
    """Enough for two chunks of features."""
    config = DataConfig(source="digits", train_limit=150, validation_limit=60, test_limit=20)
    return load(config, cache_dir=data_cache)


@pytest.fixture(scope="session")
def few_digits(data_cache: Path) -> ImageData:
    config = DataConfig(source="digits", train_limit=24, validation_limit=20, test_limit=20)
    return load(config, cache_dir=data_cache)


@pytest.fixture(scope="session")
def small_lite0() -> Backbone:
    torch.set_num_threads(1)
    return backbones.build("efficientnet_lite0", image_size=SIDE)


@pytest.fixture
def begin(few_digits: ImageData, small_lite0: Backbone) -> Callable[..., Training]:
    """Begins a training; knobs by name."""

    def begun(
        *,
        data: ImageData = few_digits,
        backbone: Backbone = small_lite0,
        settings: Settings | None = None,
        cache: Cache | None = None,
        **knobs: Any,
    ) -> Training:
        hparams = HParams(**{"image_size": SIDE, "batch_size": 8, **knobs})
        return Training(hparams, data, backbone, settings=settings or Settings(threads=1), cache=cache)

    return begun


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[TrialConfig], ImageTransfer]]:
    """Makes a trainable as an actor would, without a cluster."""
    from trainables.image_transfer import ImageTransfer  # takes Ray along, which few of these tests need

    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path / "tune"))
    made: list[ImageTransfer] = []

    def trainable(config: TrialConfig) -> ImageTransfer:
        made.append(ImageTransfer(config))
        return made[-1]

    yield trainable
    for each in made:
        each.stop()
