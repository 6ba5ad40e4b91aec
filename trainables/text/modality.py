"""Texts as a modality: the one place where the parts of this room meet the protocol.

Imports that take torch with them stand in the methods: a spec is read without it, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.text.hparams import OPERATIONS, POLICIES, TextHParams
from trainables.training.classification import Classification

if TYPE_CHECKING:
    from torch import Tensor

    from trainables.modality import Backbone, BackboneInfo, Data, Modality, Progress
    from trainables.modality import Policy as AnyPolicy
    from trainables.text.augment import Policy
    from trainables.text.data import TextData
    from trainables.text.exporter import TextExporter
    from trainables.text.preprocessing import Preprocessing
    from trainables.training.card import Card
    from trainables.training.delta import LoadedModel
    from trainables.training.predicting import ItemPredictor

__all__ = ["TEXT", "TextModality"]


FILES: Mapping[str, str] = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": "model.safetensors"}
"""The formats, the one that opens fastest first, and what their files are called."""


class TextModality(Classification):
    """Sentences; policies that edit words; encoders and word vectors."""

    name = "text"
    item = "text"
    hparams = TextHParams
    suffixes = frozenset([".txt"])
    export_files = FILES
    backbone_knobs = ("backbone", "weights", "max_length", "pooling")

    def load(
        self, config: Mapping[str, Any], *, cache_dir: Path, progress: Progress | None = None
    ) -> TextData:
        from trainables.text.data import load
        from trainables.text.data_config import TextConfig

        return load(TextConfig.from_dict(config), progress=progress)

    def backbone(self, values: Mapping[str, Any], *, preprocessing: Preprocessing | None = None) -> Backbone:
        from trainables.text.backbones import build

        return build(values, preprocessing)

    def preprocessing(self, values: Mapping[str, Any]) -> Preprocessing:
        from trainables.text.preprocessing import Preprocessing

        return Preprocessing.from_dict(values)

    def policy(self, hparams: TextHParams, data: Data, preprocessing: Preprocessing) -> Policy:
        from trainables.text.augment import build
        from trainables.text.data import TextData

        matter = isinstance(data, TextData) and data.negations_matter
        return build(hparams, preprocessing, negations_matter=matter)

    def plain(self, preprocessing: Preprocessing) -> Policy:
        from trainables.text.augment import plain

        return plain(preprocessing)

    def read(self, item: Any, preprocessing: Preprocessing) -> Tensor:
        """A text as tokens: of a file's `pathlib.Path`, or of the text itself; a text is never a path."""
        from trainables.text.reading import read

        return read(item, preprocessing)

    def exporter(self, loaded: LoadedModel) -> TextExporter:
        from trainables.text.exporter import TextExporter

        return TextExporter(loaded)

    def read_export(self, kind: str, path: Path) -> ItemPredictor:
        from trainables.text.graphs import read_graph

        return read_graph(kind, path)

    def preview(self, policy: AnyPolicy, examples: Tensor) -> bytes | None:
        from trainables.text.augment import Policy
        from trainables.text.sheets import preview

        return preview(policy, examples) if isinstance(policy, Policy) else None

    def draw_policies(self, file: Path) -> bytes:
        from trainables.text.sheets import drawn_policies

        return drawn_policies(file, _examples())

    def licence(self, card: Card) -> str:
        from trainables.text.backbones import licence

        return licence(card.backbone, card.weights)

    def backbones(self, pattern: str | None) -> Sequence[BackboneInfo]:
        from trainables.text.backbones import available

        return available(pattern)

    def policies(self) -> Mapping[str, Sequence[str]]:
        from trainables.text.augment import described

        return {name: described(hparams) for name, hparams in _examples().items()}


def _examples() -> dict[str, TextHParams]:
    """Every policy with its defaults; the sampled one with an example of what it samples."""
    example = tuple(((name, 0.6, 4),) for name in OPERATIONS[:3])
    return {
        name: TextHParams(policy=name, sub_policies=example if name == "sampled" else ()) for name in POLICIES
    }


TEXT: Modality[TextHParams] = TextModality()
