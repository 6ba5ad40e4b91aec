"""The phases of a trial: stretches of epochs that train the same parameters. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.training.hparams import HParams

__all__ = ["Phase", "phases"]


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs that trains the same parameters: `head` alone, or the `trunk` with it."""

    kind: str
    first: int
    epochs: int


def phases(hparams: HParams) -> tuple[Phase, ...]:
    """The phases of a trial; linear probing then fine-tuning (Kumar et al., 2022) has two.

    A head that is solved takes no epochs of fine-tuning, and one of its own where it is all that is trained.
    """
    total = hparams.epochs
    if hparams.strategy == "probe":
        return (Phase("head", 0, total),)
    head = 0
    if hparams.strategy == "lp_ft" and not hparams.head_is_solved:
        head = min(max(1, round(hparams.lp_share * total)), total - 1)
    trunk = Phase("trunk", head, total - head)
    return (Phase("head", 0, head), trunk) if head else (trunk,)
