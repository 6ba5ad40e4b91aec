"""A registered model, served as MLflow serves it where only its own requirements are installed."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.bare import bare_python
from search.tracking.registry import served_model
from trainables.image.graphs import FILES, WholeModel, write_graph, write_helper
from trainables.image.hparams import ImageHParams
from trainables.image.preprocessing import Preprocessing
from trainables.modality import Backbone
from trainables.training.card import make_card
from trainables.training.delta import LoadedModel
from trainables.training.model import TransferModel

CLASSES = ("red", "one, or two", "Grünes Quadrat")
NEEDS = ("numpy", "onnxruntime", "pillow")
STARTS_WITHIN = 120.0


def picture(kind: str = "JPEG") -> bytes:
    output = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    Image.fromarray(noise).save(output, kind)
    return output.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is registered of a network of one convolution."""
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    head = nn.Sequential(nn.Linear(32, len(CLASSES)))
    preprocessing = Preprocessing(
        image_size=32, frame_size=36, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )
    backbone = Backbone("toy", "none", trunk, 32, ((),), preprocessing, "0")
    model = TransferModel(trunk.eval(), head, preprocessing).eval()
    card = make_card(
        backbone, ImageHParams(backbone="toy", weights="none", image_size=32), CLASSES, {"val_accuracy": 0.5}
    )
    write_graph("onnx", WholeModel(LoadedModel(model, card)), folder / FILES["onnx"])
    write_helper("onnx", folder)
    served_model(
        folder / FILES["onnx"], folder / "classify.py", {"image": picture("PNG")}, NEEDS, folder / "model"
    )
    return folder / "model"


@pytest.fixture(scope="module")
def address(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `mlflow models serve` answers, run by a Python that has the model's requirements alone."""
    required = re.findall(r"^([\w.-]+)==", (served / "requirements.txt").read_text(), re.MULTILINE)
    assert "transfer-search" not in required
    folder = tmp_path_factory.mktemp("bare")
    bare = bare_python(folder / "venv", *required)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = (
        "models",
        "serve",
        "-m",
        str(served),
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "--env-manager",
        "local",
    )
    environment = {
        "PATH": f"{bare.parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    log = folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [str(bare), "-m", "mlflow", *words],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as server,
    ):
        try:
            until = time.monotonic() + STARTS_WITHIN
            while not _is_up(port):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.3)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(server.pid, signal.SIGTERM)  # one of its processes answers


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def posted(address: str, *images: str) -> tuple[int, Any]:
    """The status and the answer for images as text."""
    body = json.dumps({"dataframe_records": [{"image": image} for image in images]}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_it_answers_images_and_refuses_everything_else_alike(address: str) -> None:
    whole = base64.b64encode(picture()).decode()
    status, answer = posted(address, whole, whole)
    assert status == 200
    assert [row["label"] in CLASSES for row in answer["predictions"]] == [True, True]
    assert sum(answer["predictions"][0]["probabilities"]) == pytest.approx(1)
    truncated = base64.b64encode(picture()[:600]).decode()
    codes = {text: posted(address, text)[0] for text in (truncated, "/etc/passwd", "/etc/nosuch")}
    assert set(codes.values()) == {400}
    there, not_there = (posted(address, text)[1] for text in ("/etc/passwd", "/etc/nosuch"))
    assert _without_places(there) == _without_places(not_there)


def _without_places(answer: str) -> str:
    return re.sub(r"/etc/\w+|0x[0-9a-f]+", "", answer)


def test_mlflow_evaluates_it(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)  # what another test may have set would win
    frame = pd.DataFrame({"image": [picture(), picture("PNG")] * 3, "truth": [*CLASSES, *CLASSES]})
    model = mlflow.pyfunc.load_model(str(served))
    with mlflow.start_run():
        found = mlflow.models.evaluate(
            lambda images: model.predict(images)["label"], frame, targets="truth", model_type="classifier"
        )
    right = np.mean(model.predict(frame[["image"]])["label"] == frame["truth"])
    assert found.metrics["accuracy_score"] == pytest.approx(right)
