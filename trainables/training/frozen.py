"""The features of a frozen trunk, which a head is trained on, solved for and measured on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainables.files.cache import Cache
from trainables.modality import Backbone, Data, Examples, Policy, Progress
from trainables.training.card import TRAIN
from trainables.training.features import FrozenFeatures, JoinedFeatures, Views
from trainables.training.model import TransferModel, stages_read
from trainables.training.settings import Settings

__all__ = ["FrozenTrunk"]


class FrozenTrunk:
    """What a trial's trunk says of its data as long as nothing in it moves.

    Args:
        backbone: the trunk, as it is.
        data, examples: what it looks at.
        policy: what training examples go through.
        plain: what examples go through where a metric is computed.
        settings: what the search fixes.
        cache: where features are kept; None computes them anew.
        device: where they are computed.
        progress: called with (what, done, total) meanwhile.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: Data,
        examples: Examples,
        *,
        policy: Policy,
        plain: Policy,
        settings: Settings,
        cache: Cache | None,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self._key = f"{backbone.name} {backbone.weights_hash} {backbone.preprocessing}"
        self._beside = tuple(stages_read(backbone, each) for each in settings.features)
        self._data = data
        self._examples = examples
        self._policy = policy
        self._plain = plain
        self._settings = settings
        self._cache = cache
        self._device = device
        self._progress = progress

    def features(
        self, split: str, model: TransferModel, *, clean: bool = False, of: Sequence[str] = ()
    ) -> Views:
        """Features of a split as the head of a model reads them; for a metric in full precision.

        Args:
            split: `train` stands for all that is trained on.
            model: whose trunk is the backbone.
            clean: whether training examples are as they are evaluated, and not as the policy draws them.
            of: other splits in the place of those that are trained on.
        """
        training = split == TRAIN
        policy = self._policy if training and not clean else self._plain
        parts = [
            FrozenFeatures(
                model=model,
                trunk_key=self._key,
                examples=self._examples,
                indices=self._data.splits[each],
                policy=policy,
                data_key=self._data.fingerprint,
                cache=self._cache,
                # Of images that were measured, what they were measured by is there.
                dtype=torch.float16 if each == TRAIN or not policy.is_identity else torch.float32,
                device=self._device,
                progress=self._progress,
                beside=self._beside,
                at_once=self._settings.passes,
            )
            for each in ((of or self._settings.trained_on) if training else (split,))
        ]
        return parts[0] if len(parts) == 1 else JoinedFeatures(parts)

    def views(self, model: TransferModel, of: Sequence[str] = ()) -> list[Callable[[], Tensor]]:
        """What a head is solved for on: the training examples as they are, and every view that is drawn."""
        clean, drawn = self.features(TRAIN, model, clean=True, of=of), self.features(TRAIN, model, of=of)
        count = 0 if self._policy.is_identity else self._settings.views or 1
        return [
            functools.partial(clean.view, 0),
            *(functools.partial(drawn.view, number) for number in range(count)),
        ]
