from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from trainables.image.backbones import Backbone
from trainables.image.data import DataConfig, ImageData, UnreadableImage, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.record import MODEL_FOLDER
from trainables.serving import Classifier, _load_pyfunc
from trainables.training.card import ModelError
from trainables.training.loop import Training
from trainables.training.settings import Settings


class Trained:
    """A trial on image files, and the model that it left."""

    def __init__(self, root: Path, backbone: Backbone) -> None:
        draw(root / "images")
        config = DataConfig(source=str(root / "images"), validation=0.5, test=0.0)
        self.data: ImageData = load(config, cache_dir=root / "cache")
        hparams = HParams(image_size=32, max_epochs=1, batch_size=16)
        training = Training(hparams, self.data, backbone, settings=Settings(threads=1))
        training.run_epoch()
        training.save_model(root)
        self.folder = root / MODEL_FOLDER
        self.logits = training.logits("validation")
        self.paths = [root / "images" / self.data.names[i] for i in self.data.splits["validation"]]
        self.labels = [self.data.classes[i] for i in self.logits.argmax(1)]


def draw(folder: Path) -> None:
    """Digits as RGB files of several sizes."""
    source = load_digits()
    for place in range(150):
        path = folder / str(source.target[place]) / f"{place:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((source.images[place] * 15).astype(np.uint8))
        grey.resize((40 + place % 7, 44), Image.Resampling.BICUBIC).convert("RGB").save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_lite0: Backbone) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"), small_lite0)


@pytest.fixture(scope="module")
def classifier(trained: Trained) -> Classifier:
    return _load_pyfunc(str(trained.folder))


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    "form",
    [
        lambda paths: paths,
        lambda paths: [base64.b64encode(path.read_bytes()).decode() for path in paths],
        lambda paths: [path.read_bytes() for path in paths],
        lambda paths: [pixels(path) for path in paths],
        lambda paths: pd.Series(paths),
        lambda paths: [Image.open(path) for path in paths],
        lambda paths: pd.DataFrame({"number": 1, "image": [path.read_bytes() for path in paths]}),
        lambda paths: (pixels(path) if n % 2 else path for n, path in enumerate(paths)),
    ],
    ids=["paths", "base64", "bytes", "arrays", "series", "pictures", "frame", "mixed"],
)
def test_images_in_every_form_get_the_labels_of_the_training(
    trained: Trained, classifier: Classifier, form: Any
) -> None:
    found = classifier.predict(form(trained.paths))
    assert len(trained.paths) > 64  # more than a batch
    assert len(set(trained.labels)) > 2
    assert list(found.columns) == ["label", "probability", "probabilities"]
    assert list(found["label"]) == trained.labels
    probabilities = np.stack(found["probabilities"])
    expected = trained.logits.softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(found["probability"], probabilities.max(1))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


def test_a_stack_of_arrays_is_as_many_images(classifier: Classifier) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    found = classifier.predict(images)
    assert len(found) == 3
    one = classifier.predict(images[1:2])
    assert one["label"][0] == found["label"][1]


def test_one_image_may_come_alone(trained: Trained, classifier: Classifier) -> None:
    path = trained.paths[0]
    for alone in (path, Image.open(path), path.read_bytes()):
        assert list(classifier.predict(alone)["label"]) == trained.labels[:1]


@pytest.mark.parametrize("empty", [[], np.empty((0, 8, 8, 3), np.uint8), pd.DataFrame({"image": []})])
def test_nothing_in_is_nothing_out(classifier: Classifier, empty: Any) -> None:
    found = classifier.predict(empty)
    assert len(found) == 0
    assert list(found.columns) == ["label", "probability", "probabilities"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"float32 \[8, 8, 3\], but must be uint8 \[H, W\]"),
        (np.zeros((2, 8, 8, 2), np.uint8), r"uint8 \[8, 8, 2\], but must be"),
        (["/etc/passwd"], "a text must be an image file in base64"),
        (np.zeros((2, 0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\], but must be"),
        (pd.DataFrame({"picture": ["a.png"]}), "must have a column `image`"),
        ([None], "but must be uint8"),
        (3, "must be"),
        (None, "must be"),
    ],
)
def test_what_is_no_image_is_refused_in_words(classifier: Classifier, wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier.predict(wrong)


def test_a_file_that_is_no_image_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    for wrong in ([b"not an image"], [tmp_path / "a.png"], [tmp_path / "missing.png"]):
        with pytest.raises(UnreadableImage):
            classifier.predict(wrong)


def test_a_model_that_was_tampered_with_is_not_loaded(trained: Trained, tmp_path: Path) -> None:
    card = json.loads((trained.folder / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**card, "classes": card["classes"][:-1]}))
    delta = (trained.folder / "delta.safetensors").read_bytes()
    (tmp_path / "delta.safetensors").write_bytes(delta)
    with pytest.raises(ModelError):
        _load_pyfunc(str(tmp_path))


def test_a_classifier_predicts_without_gradients(classifier: Classifier) -> None:
    seen: list[bool] = []

    def logits(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return torch.zeros(len(inputs), len(classifier.card.classes))

    Classifier(logits, classifier.card).predict(np.zeros((70, 9, 9, 3), np.uint8))
    assert seen == [False, False]
