"""Images as a modality: the one place where the parts of this room meet the protocol.

Imports that take torch with them stand in the methods: a spec is read without it, which takes seconds.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.image.endings import EXTENSIONS
from trainables.image.hparams import ADDED_POLICIES, OPERATIONS, POLICIES, ImageHParams
from trainables.plugins import PluginError
from trainables.training.classification import Classification

if TYPE_CHECKING:
    from torch import Tensor

    from trainables.image.augment import Policy
    from trainables.image.classifier import Classifier
    from trainables.image.data import ImageData
    from trainables.image.exporter import ImageExporter
    from trainables.image.mixing import Mixing
    from trainables.image.preprocessing import Preprocessing
    from trainables.modality import Backbone, BackboneInfo, Data, Modality, Progress
    from trainables.modality import Policy as AnyPolicy
    from trainables.training.card import Card
    from trainables.training.delta import LoadedModel

__all__ = ["IMAGE", "ImageModality"]

_PREVIEW_DRAWS = 6
_PICTURE_QUALITY = 85
_SHEET_SIZE = 128
_SHEET_FRAME = 146


FILES: Mapping[str, str] = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": "model.safetensors"}
"""The formats, the one that opens fastest first, and what their files are called."""


class ImageModality(Classification):
    """Files that Pillow decodes; policies of geometry and colour; the networks of torchvision and timm."""

    name = "image"
    item = "image"
    hparams = ImageHParams
    suffixes = EXTENSIONS
    export_files = FILES
    portfolio = Path(__file__).with_name("portfolio.json")
    backbone_knobs = ("backbone", "weights", "image_size")

    def load(
        self, config: Mapping[str, Any], *, cache_dir: Path, progress: Progress | None = None
    ) -> ImageData:
        from trainables.image.data import DataConfig, load

        return load(DataConfig.from_dict(config), cache_dir=cache_dir, progress=progress)

    def backbone(self, values: Mapping[str, Any], *, preprocessing: Preprocessing | None = None) -> Backbone:
        from trainables.image.backbones import build

        size = values["image_size"] if preprocessing is None else preprocessing.image_size
        built = build(values["backbone"], weights=values["weights"], image_size=size)
        return built if preprocessing is None else replace(built, preprocessing=preprocessing)

    def preprocessing(self, values: Mapping[str, Any]) -> Preprocessing:
        from trainables.image.preprocessing import Preprocessing

        return Preprocessing.from_dict(values)

    def policy(self, hparams: ImageHParams, data: Data, preprocessing: Preprocessing) -> Policy:
        from trainables.image.augment import build
        from trainables.image.data import ImageData

        upright = isinstance(data, ImageData) and data.orientation_matters
        return build(hparams, image_size=preprocessing.image_size, orientation_matters=upright)

    def plain(self, preprocessing: Preprocessing) -> Policy:
        from trainables.image.augment import build

        return build(ImageHParams(policy="none"), image_size=preprocessing.image_size)

    def mixing(self, hparams: ImageHParams, classes: int) -> Mixing | None:
        from trainables.image.mixing import build_mixing

        return None if hparams.mixing == "none" else build_mixing(hparams, classes)

    def preview(self, policy: AnyPolicy, examples: Tensor) -> bytes | None:
        from trainables.image.augment import Policy, preview

        if not isinstance(policy, Policy):
            return None
        png = io.BytesIO()
        preview(policy, examples, 0, len(examples), _PREVIEW_DRAWS).save(png, "png", compress_level=1)
        return png.getvalue()

    def picture(self, example: Tensor) -> bytes | None:
        from PIL import Image

        jpeg = io.BytesIO()
        Image.fromarray(example.permute(1, 2, 0).numpy()).save(jpeg, "jpeg", quality=_PICTURE_QUALITY)
        return jpeg.getvalue()

    def thumbnails(self, examples: Tensor) -> Tensor:
        from torch.nn.functional import interpolate

        from trainables.training.twins import SIDE

        grey = examples.float().mean(1, keepdim=True)
        return interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]

    def predictor(self, loaded: LoadedModel) -> Classifier:
        from trainables.image.classifier import of_model

        return of_model(loaded)

    def exporter(self, loaded: LoadedModel) -> ImageExporter:
        from trainables.image.exporter import ImageExporter

        return ImageExporter(loaded)

    def read_export(self, kind: str, path: Path) -> Classifier:
        from trainables.image.graphs import read_graph

        return read_graph(kind, path)

    def licence(self, card: Card) -> str:
        from trainables.image.backbones import licence

        return licence(card.backbone, card.weights)

    def backbones(self, pattern: str | None) -> Sequence[BackboneInfo]:
        from trainables.image.backbones import available

        return available(pattern)

    def problems(self) -> Sequence[str]:
        from trainables.image.augment import build
        from trainables.image.backbones import ADDED_BACKBONES

        told = ADDED_POLICIES.problems()
        for name in ADDED_POLICIES.added:
            if not ADDED_POLICIES.problems([name]):
                try:
                    build(ImageHParams(policy=name), image_size=_SHEET_SIZE)
                except PluginError as error:
                    told.append(str(error))
        return [*told, *ADDED_BACKBONES.problems()]

    def policies(self) -> Mapping[str, Sequence[str]]:
        from trainables.image.augment import build

        return {
            name: build(hparams, image_size=_SHEET_SIZE).describe() for name, hparams in _usable().items()
        }

    def draw_policies(self, file: Path) -> bytes:
        from PIL import Image, ImageDraw

        from trainables.image.augment import build, preview
        from trainables.image.decode import decode, to_frame

        frames = to_frame(decode(file), _SHEET_FRAME, "bicubic").unsqueeze(0)
        rows = [
            (name, preview(build(hparams, image_size=_SHEET_SIZE), frames, seed=0, rows=1))
            for name, hparams in _usable().items()
        ]
        margin, height = 120, rows[0][1].height + 4
        sheet = Image.new("RGB", (margin + rows[0][1].width, height * len(rows)), "white")
        pen = ImageDraw.Draw(sheet)
        for index, (name, row) in enumerate(rows):
            pen.text((6, index * height + height // 2 - 6), name, fill="black")
            sheet.paste(row, (margin, index * height))
        png = io.BytesIO()
        sheet.save(png, format="PNG")
        return png.getvalue()


def _examples() -> dict[str, ImageHParams]:
    """Every policy with its defaults; the sampled one with an example of what it samples."""
    example = tuple(
        ((first, 0.6, 12), (second, 0.4, 18))
        for first, second in zip(OPERATIONS[::2], OPERATIONS[1::2], strict=False)
    )[:3]
    return {
        name: ImageHParams(policy=name, sub_policies=example if name == "sampled" else ())
        for name in POLICIES
    }


def _usable() -> dict[str, ImageHParams]:
    """Our own policies, and those of installed packages that can be used."""
    from trainables.image.augment import build

    found = _examples()
    for name in ADDED_POLICIES.added:
        hparams = ImageHParams(policy=name)
        try:
            build(hparams, image_size=_SHEET_SIZE)
        except PluginError:
            continue  # named among the problems
        found[name] = hparams
    return found


IMAGE: Modality[ImageHParams] = ImageModality()
