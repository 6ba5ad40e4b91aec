"""The batches of an epoch: which examples, in which order, and what is done to them before a step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from trainables.modality import Data, Examples, Mixing, Policy
from trainables.seeds import derived_seed, generator, sample_seeds
from trainables.training.ahead import placed
from trainables.training.hparams import HParams

__all__ = ["Batches"]


class Batches:
    """The batches of every epoch, drawn anew from (seed, epoch).

    Args:
        hparams: their size, and the seed.
        data, examples: labels and examples.
        indices: int64 [N], which of them are trained on.
        policy: what they go through.
        mixing: what mixes a batch with itself; None: nothing.
        at_least: how many examples each has; two, where BatchNorm trains: one has no statistics.
        device: where they are put.
    """

    def __init__(
        self,
        hparams: HParams,
        data: Data,
        examples: Examples,
        indices: Tensor,
        *,
        policy: Policy,
        mixing: Mixing | None,
        at_least: int,
        device: torch.device,
    ) -> None:
        self._seed = hparams.seed
        self._data = data
        self._examples = examples
        self._indices = indices
        self._policy = policy
        self._mixing = mixing
        self._device = device
        count = math.ceil(len(indices) / hparams.batch_size)
        self.count = count if at_least == 1 else max(1, min(count, len(indices) // at_least))
        """How many an epoch has, all of nearly one size."""

    def of_features(self, epoch: int, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and classes of each batch, from the features [N, F] of all that is trained on."""
        labels = self._data.labels[self._indices].to(self._device)
        for batch in self._order(epoch).to(self._device).tensor_split(self.count):
            yield features[batch], labels[batch]

    def drawn(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each batch, augmented and mixed."""
        root = derived_seed(self._seed, "augment", epoch)
        mixing = generator(self._seed, "mixing", epoch)
        for batch in self._indices[self._order(epoch)].tensor_split(self.count):
            examples = self._examples.on(self._device, batch)
            inputs = self._policy(examples, placed(sample_seeds(root, batch), self._device))
            targets = placed(self._data.labels[batch], self._device)
            if self._mixing is not None:
                one_hot = functional.one_hot(targets, len(self._data.classes)).float()
                inputs, targets = self._mixing(inputs, one_hot, mixing)
            yield inputs, targets

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self._indices), generator=generator(self._seed, "order", epoch))
