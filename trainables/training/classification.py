"""What modalities whose examples each have one class have in common, for them to inherit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from trainables.modality import Exporter, Mixing, Policy, Predictor
    from trainables.training.card import Card
    from trainables.training.delta import LoadedModel
    from trainables.training.metrics import Scores

__all__ = ["Classification"]


class Classification:
    """Loss and scores; and for a modality that has a `read`, a predictor, and exports as tensors.

    Attributes:
        suffixes: how the names of files end that hold an example each.
        item: what one example is called, in the column of a frame too.
    """

    suffixes: Collection[str] = ()
    item = "example"
    portfolio: Path | None = None
    export_files: Mapping[str, str] = {"safetensors": "model.safetensors"}

    # The imports stand within, since a spec is read without torch.

    def loss(
        self, logits: Tensor, targets: Tensor, *, weights: Tensor | None, label_smoothing: float
    ) -> Tensor:
        """Cross-entropy of logits [B, C] and classes int64 [B], or distributions float [B, C]."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets, weight=weights, label_smoothing=label_smoothing)

    def scores(self, logits: Tensor, labels: Tensor) -> Scores:
        """`training.metrics.scores`."""
        from trainables.training.metrics import scores

        return scores(logits, labels)

    def read(self, item: Any, preprocessing: Any) -> Tensor:
        """The example, a tensor [...], of what a person has of one: a file's `pathlib.Path`, or an array.

        Raises:
            ValueError: for what is none.
        """
        raise NotImplementedError

    def predictor(self, loaded: LoadedModel) -> Predictor:
        """What tells the classes of what `read` takes."""
        from trainables.training.predicting import ItemPredictor

        card = loaded.card
        return ItemPredictor(card, loaded.model, lambda item: self.read(item, card.preprocessing), self.item)

    def exporter(self, loaded: LoadedModel) -> Exporter:
        """Writes tensors."""
        from trainables.training.predicting import TensorsExporter

        return TensorsExporter(loaded)

    def read_export(self, kind: str, path: Path) -> Predictor:
        """Reads tensors."""
        from trainables.training.predicting import read_tensors

        return self.predictor(read_tensors(path))

    def licence(self, card: Card) -> str:
        """Nothing is known."""
        return "not stated"

    def mixing(self, hparams: Any, classes: int) -> Mixing | None:
        """Nothing is mixed."""
        return None

    def preview(self, policy: Policy, examples: Tensor) -> bytes | None:
        """There is nothing to look at."""
        return None

    def picture(self, example: Tensor) -> bytes | None:
        """There is nothing to look at."""
        return None

    def thumbnails(self, examples: Tensor) -> Tensor | None:
        """There are none."""
        return None

    def problems(self) -> Sequence[str]:
        """Nothing is added to it."""
        return ()

    def draw_policies(self, file: Path) -> bytes:
        """There is nothing to draw.

        Raises:
            DataError: always.
        """
        raise DataError(f"{file}: there is nothing to draw of {self.item}s")
