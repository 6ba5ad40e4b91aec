"""Seeds: every random number of a trial follows from its root seed and a name, never from placement."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["derived_seed", "generator", "sample_seeds"]


def derived_seed(*names: str | int) -> int:
    """A seed of 63 bits for whatever `names` names, e.g. `derived_seed(trial_seed, "epoch", 3)`."""
    text = "/".join(map(str, names)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(*names: str | int) -> Generator:
    """A CPU generator seeded by `derived_seed`."""
    import torch  # not above: the study needs seeds, and no torch

    return torch.Generator().manual_seed(derived_seed(*names))


def sample_seeds(root: int, indices: Tensor) -> Tensor:
    """One seed an image, int64 [B], from a root and the images' own numbers, int64 [B].

    Multiplying by an odd constant keeps distinct images distinct modulo 2^64; whoever draws from these
    seeds mixes their bits again.
    """
    return (indices * -7046029254386353131) ^ root
