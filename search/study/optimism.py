"""What the best of many trials is worth: its value without what it owes to having been chosen.

The best of many values on the same images is partly the luckiest. How lucky, the images themselves tell: draw
them anew, choose the best trial on those that were drawn, and look what it has on those that were not.
Tsamardinos, Greasidou and Borboudakis, "Bootstrapping the out-of-sample predictions for efficient and
accurate cross-validation", Machine Learning 107 (2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["corrected_accuracy"]

_DRAWS = 500
_LARGEST = 2**31
"""Trials times images times draws: more images need fewer draws."""


def corrected_accuracy(right: Sequence[Sequence[bool]], seed: int = 0) -> float | None:
    """The accuracy on new images of the trial that was chosen on these; None where too few were drawn.

    Args:
        right: of every trial that could have been chosen, best first, whether it tells each image right.
        seed: of the draws.
    """
    told = np.asarray(right, dtype=np.float32)
    trials, images = told.shape
    draws = max(50, min(_DRAWS, _LARGEST // (trials * images)))
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), draws)
    chosen = (told @ counts.T.astype(np.float32)).argmax(0)  # of equal ones the first, as the search has it
    left_out = counts == 0
    rows = left_out.sum(1) > 0
    if not rows.any():
        return None
    shares = (told[chosen] * left_out).sum(1)[rows] / left_out.sum(1)[rows]
    return float(shares.mean())
