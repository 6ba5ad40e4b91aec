"""The trainable itself, which keeps a state each epoch, tells which epochs it ran, and can be held."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from search.home import Home
from trainables import image_transfer

_EPOCHS, _HOLD = "epochs.txt", "hold"
_HELD_AFTER = 2


class Held(image_transfer.ImageTransfer):
    """Stays in epoch 2, all done and saved, while a search is held."""

    def step(self) -> dict[str, Any]:
        image_transfer._STATE_SECONDS = 0.0
        result = super().step()
        home = Path(self._trial["folder"]).parent.parent
        with (home / _EPOCHS).open("a") as file:
            file.write(f"{self._trial['number']} {result['epoch']}\n")
        while result["epoch"] == _HELD_AFTER and (home / _HOLD).exists():
            time.sleep(0.05)
        return result


def hold(home: Home) -> None:
    (home.root / _HOLD).touch()


def let_go(home: Home) -> None:
    (home.root / _HOLD).unlink()


def epochs(home: Home) -> list[tuple[int, int]]:
    """Trial and epoch of every epoch that was run, in order."""
    try:
        lines = (home.root / _EPOCHS).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]
