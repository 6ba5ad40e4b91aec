"""A trainable that trains nothing: it follows the script that a test wrote beside the trials."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from ray import tune

from trainables.files.trial_folder import read_epochs, write_epochs
from trainables.record import EPOCHS, METRICS, STATE_FILE


class Toy(tune.Trainable):  # type: ignore[misc]
    """Does in each trial what `script.json` in the home says for its number, else just reports.

    It writes down its epochs and then its state before it reports, as a real trial does.

    `nan`, `raise`, `raise once`, `memory`, `memory below SHARE` (of a GPU), `mention memory`, `kill once`,
    `hang`: at epoch 2. `sleep`: half a second an epoch. `raise at once`: in the first.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial = new_config
        self._folder = Path(new_config["folder"])
        self._epoch: int | None = None
        return True

    def step(self) -> dict[str, Any]:
        self._folder.mkdir(parents=True, exist_ok=True)
        state = self._folder / STATE_FILE
        if self._epoch is None:
            self._epoch = int(state.read_text()) if state.exists() else 0
        self._epoch += 1
        value = self._trial["hparams"]["lr"] + self._epoch / 1000
        if self._epoch == 2:
            value = self._act(value)
        if self._script() == "sleep":
            time.sleep(0.5)
        if self._script() == "raise at once":
            raise ValueError(f"trial {self._trial['number']} cannot be: a test asked for this")
        metrics = {name: value for name in METRICS}
        epochs = {**read_epochs(self._folder), self._epoch: metrics}
        write_epochs(self._folder, epochs, self._trial["hparams"])
        state.write_text(str(self._epoch))
        return {
            **metrics,
            "epoch": self._epoch,
            "best": {"epoch": self._epoch, **metrics},
            EPOCHS: [{"epoch": epoch, **known} for epoch, known in sorted(epochs.items())],
        }

    def _script(self) -> str:
        path = self._folder.parent.parent / "script.json"
        script = json.loads(path.read_text()) if path.exists() else {}
        return str(script.get(str(self._trial["number"]), script.get("all", "")))

    def _share(self) -> float:
        share: float = self.trial_resources.required_resources.get("GPU", 0.0)
        return share

    def _act(self, value: float) -> float:
        action = self._script()
        first = not (self._folder / "acted").exists()
        (self._folder / "acted").touch()
        if action == "hang":
            time.sleep(3600)
        if action == "nan":
            return float("nan")
        if action == "raise" or (action == "raise once" and first):
            raise ValueError("a test asked for this")
        if action == "mention memory":
            raise RuntimeError("torch.OutOfMemoryError: CUDA out of memory")
        if action == "memory" or (action.startswith("memory below") and self._share() < float(action[13:])):
            import torch  # not above: most trials need none of it, and it takes seconds

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if action == "kill once" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
