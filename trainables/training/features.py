"""Features of a frozen trunk: a pure function of example, view, weights and preprocessing, computed once.

A view is one draw of the augmentation policy for every example. Views are numbered, their randomness
depends on the number and the example alone, and each is computed when the first trial asks for it: a
trial pruned after one epoch never pays for the second view.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import timm
import torch
import torchvision
from torch import Tensor, nn

from trainables.files.cache import Cache, digest
from trainables.modality import Examples, Policy
from trainables.seeds import derived_seed, sample_seeds
from trainables.training.ahead import ahead, placed
from trainables.training.inference import engine, fast_passes
from trainables.training.model import TransferModel
from trainables.training.stages import StagedTrunk, stage_width

__all__ = ["FrozenFeatures", "JoinedFeatures", "Views"]

_CODE_VERSION = 3  # raise it when the same key would give other bytes
_CHUNK = 128  # examples of one cache entry: small enough for two workers to share a view
_GPU_CHUNKS = 16  # as many in one entry on a GPU, which would often wait between small ones
_BATCH = {"cpu": 32, "cuda": 256}
"""Examples in a pass; on CPUs the maps of a larger batch fall out of the cache: 1.3 times slower."""
_DRAWN = {"cpu": 32, "cuda": 1024}
"""Examples augmented at a time: an augmentation's kernels are small, and on a GPU their starts count."""


class Views(Protocol):
    """Features of a list of examples, view by view."""

    def view(self, number: int) -> Tensor:
        """Features of one view, [N, F]; not to be written to."""


@dataclass(frozen=True)
class JoinedFeatures:
    """Features of several lists of examples, one after the other: each is kept by itself."""

    parts: Sequence[Views]

    def view(self, number: int) -> Tensor:
        """Features of one view, [N, F]."""
        return torch.cat([part.view(number) for part in self.parts])


@dataclass(frozen=True, kw_only=True)
class FrozenFeatures:
    """The features that a frozen trunk gives for a list of examples, view by view.

    Attributes:
        model: its trunk is in eval mode and does not train.
        trunk_key: text that names the trunk's weights and preprocessing.
        examples: all of the data.
        indices: which of them, int64 [N].
        policy: what a view applies; a policy that is the identity has one view, number 0.
        data_key: fingerprint of the data.
        cache: where views are kept; None computes them anew each time.
        dtype: how they are kept: float16 for training, float32 where a metric is computed; there
            the trunk is passed as it is, elsewhere as fast as this machine can.
        beside: the stages that other heads read; what they read is kept too, since a pass has it all.
        device: where the trunk runs.
        progress: called with (what, done, total) while a view is computed.
        at_once: how many parts of a view are computed at once at most, as `Cache.fetch` has it.
    """

    model: TransferModel
    trunk_key: str
    examples: Examples
    indices: Tensor
    policy: Policy
    data_key: str
    cache: Cache | None
    dtype: torch.dtype
    device: torch.device
    progress: Callable[[str, int, int], None] | None = None
    beside: tuple[tuple[str, ...], ...] = ()
    at_once: int = 1

    def view(self, number: int) -> Tensor:
        """Features of one view, [N, F] in the kept dtype, on the device; not to be written to."""
        number = 0 if self.policy.is_identity else number
        chunks = self.indices.split(_CHUNK * (_GPU_CHUNKS if self.device.type == "cuda" else 1))

        def compute(position: int) -> Tensor:
            began = time.perf_counter()
            found = self._features(chunks[position], number)
            own, seconds = found.pop(self.model.stages), time.perf_counter() - began
            for stages, features in found.items():
                assert self.cache is not None
                self.cache.write(self._key(chunks[position], number, stages), features, seconds)
            return own

        def lock_of(position: int) -> str:
            return self._key(chunks[position], number, self._every[0])

        def show(done: int, total: int) -> None:
            if self.progress:
                self.progress(f"features, view {number}", done, total)

        if self.cache is None:
            features = torch.cat([compute(position) for position in range(len(chunks))])
        else:
            keys = [self._key(chunk, number, self.model.stages) for chunk in chunks]
            features = self.cache.joined(keys, compute, show, lock_of=lock_of, at_once=self.at_once)
        return features.to(self.device)

    @property
    def _every(self) -> list[tuple[str, ...]]:
        """What a pass is read for: the same for every head that is beside another."""
        beside = self.beside if self.cache is not None else ()
        return sorted({self.model.stages, *beside})

    def _key(self, chunk: Tensor, number: int, stages: tuple[str, ...]) -> str:
        # A graph with more outputs may round otherwise.
        passes = {"passes": self._every} if self._is_fast and len(self._every) > 1 else {}
        return digest(
            {
                **({"stages": stages} if stages else {}),
                **passes,
                "code": _CODE_VERSION,
                "libraries": [torch.__version__, torchvision.__version__, timm.__version__],
                "trunk": self.trunk_key,
                "data": self.data_key,
                "images": hashlib.blake2b(chunk.numpy().tobytes(), digest_size=16).hexdigest(),
                "policy": self.policy.key,
                "view": number,
                "dtype": str(self.dtype),
                "engine": engine(self.model.trunk, self.device) if self._is_fast else "torch",
                "arithmetic": _arithmetic(self.device),
            }
        )

    @property
    def _is_fast(self) -> bool:
        return self.dtype != torch.float32

    def _features(self, chunk: Tensor, number: int) -> dict[tuple[str, ...], Tensor]:
        """Features of some examples, by the stages that they are read of."""
        trunk, every = self.model.trunk, tuple(self._every)
        if every != ((),):
            trunk = _staged(trunk, every)
        parts, order = [], self._order(chunk)
        with torch.no_grad():
            for (inputs,) in ahead(self._drawn(chunk[order], number), self.device):
                passes = fast_passes(trunk, tuple(inputs.shape[1:])) if self._is_fast else trunk
                for batch in inputs.split(_BATCH[self.device.type]):
                    taken = self.model.normalised(batch)
                    parts.append(passes(taken).to(self.dtype))
        found = torch.cat(parts).cpu()[order.argsort()]
        if len(every) == 1:
            return {every[0]: found}
        widths = [stage_width(self.model.trunk, stages, tuple(taken.shape[1:])) for stages in every]
        return dict(zip(every, found.split(widths, 1), strict=True))

    def _order(self, chunk: Tensor) -> Tensor:
        """The places of a chunk's examples, those of one length together."""
        lengths = getattr(self.examples, "lengths", None)
        return torch.arange(len(chunk)) if lengths is None else lengths[chunk].argsort(stable=True)

    def _drawn(self, chunk: Tensor, number: int) -> Iterator[tuple[Tensor]]:
        """The view's inputs, some at a time."""
        root = derived_seed("view", number)
        for batch in chunk.split(_DRAWN[self.device.type]):
            seeds = placed(sample_seeds(root, batch), self.device)
            if self._is_fast:
                examples = self.examples.on(self.device, batch)
            else:  # what a metric is computed of has the same examples on every device
                examples = placed(self.examples[batch], self.device)
            yield (self.policy(examples, seeds),)


@functools.lru_cache(maxsize=4)
def _staged(trunk: nn.Module, asked: tuple[tuple[str, ...], ...]) -> StagedTrunk:
    """The same for every trial, so that what is prepared of it once serves all."""
    return StagedTrunk(trunk, asked)


def _arithmetic(device: torch.device) -> str:
    """What the last bits of a sum depend on: the kind of device, and how it splits the work."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
