"""Makes `before.tar.xz`: two searches, their MLflow store and an export, as commit 0e82393 wrote them.

It is run with that commit's packages, which have other module names than today's:

    git worktree add --detach ../before 0e82393
    cd ../before && PYTHONPATH=. python ../transfer-search/tests/data/make_before.py before.tar.xz

The searches are of a backbone with random weights of a known seed, so that nothing needs to be fetched:

- `finished`: three trials; the winner's model is exported, as safetensors and pt2.
- `interrupted`: four trials, stopped in order while two of them had run two of four epochs.

`expected.json` holds what that commit said of them, `root` the folder that is in the files' absolute paths.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

SPEC = """
name: finished
data:
  source: digits
  image_size: 32
  limit: {train: 120, validation: 60, test: 20}
  orientation_matters: true
search: {trials: 3, max_epochs: 2, pruner: none, seed: 0}
space:
  backbone: timm/test_efficientnet
  weights: none
  strategy: probe
  policy: [none, classic]
  lr: {low: 1.0e-3, high: 1.0e-1, log: true}
"""

INTERRUPTED = """
import sys
from pathlib import Path
from ray import cloudpickle
from search.home import Home
from tests.search import held, test_checkpoints
cloudpickle.register_pickle_by_value(held)
test_checkpoints.run(Home(Path(sys.argv[1])))
"""


def make(root: Path) -> dict[str, Any]:
    from search.home import Home
    from search.spec import read_spec
    from tests.search import held
    from tests.search.commands import rows, transfer_search

    (root / "spec.yaml").write_text(SPEC)
    transfer_search("launch", "spec.yaml")
    transfer_search("export", "finished", "--to", "export", "--format", "safetensors", "--format", "pt2")
    images = [pictures(root / f"{number}.png", number) for number in range(4)]

    overrides = ["search.trials=4", "search.max_epochs=4"]
    spec = read_spec(root / "spec.yaml", overrides, name="interrupted")
    home = Home.of(spec.name)
    home.make()
    home.spec.write_text(spec.to_yaml())
    held.hold(home)
    command = [sys.executable, "-c", INTERRUPTED, str(home.root)]
    driver = subprocess.Popen(command)
    while not {(0, 2), (1, 2)} <= set(held.epochs(home)):
        if driver.poll() is not None:  # Ray, whose start gives up after 30 s
            driver = subprocess.Popen(command)
        time.sleep(0.1)
    time.sleep(1)
    driver.send_signal(signal.SIGTERM)
    held.let_go(home)
    driver.wait()

    return {
        "root": str(root),
        "finished": rows("trials", "finished"),
        "interrupted": rows("trials", "interrupted"),
        "best": rows("best", "finished"),
        "predicted": rows("predict", "export", *images),
        "by_mlflow": by_mlflow(rows("best", "finished")["model_uri"], root, images),
    }


def by_mlflow(uri: str, root: Path, images: list[str]) -> list[dict[str, Any]]:
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    found = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"image": images}))
    return [
        {"label": row["label"], "probability": float(row["probability"])} for row in found.to_dict("records")
    ]


def pictures(path: Path, number: int) -> str:
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels = load_digits().images[number] * 15.9
    Image.fromarray(pixels.astype("uint8")).resize((32, 32)).convert("RGB").save(path)
    return path.name


def main() -> None:
    to = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ |= {"PYTHONPATH": os.getcwd(), "XDG_CACHE_HOME": str(root / "cache"), "COLUMNS": "200"}
        sys.path.insert(0, os.getcwd())
        os.chdir(root)
        (root / "expected.json").write_text(json.dumps(make(root), indent=1))
        with tarfile.open(to, "w:xz", preset=9) as archive:
            for path in sorted(root.rglob("*")):
                inside = path.relative_to(root)
                if path.is_file() and inside.parts[0] != "cache" and "ray" not in inside.parts:
                    archive.add(path, arcname=str(inside))


if __name__ == "__main__":
    main()
