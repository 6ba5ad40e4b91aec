"""Pictures of texts: what policies draw, line by line."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainables.errors import BackboneError, DataError
from trainables.seeds import derived_seed, sample_seeds
from trainables.text.augment import Policy, build, plain
from trainables.text.backbones import build as build_backbone
from trainables.text.hparams import TextHParams
from trainables.text.reading import read, text_of
from trainables.text.tokens import tokenizer_of

__all__ = ["drawn_policies", "preview"]

_DRAWS = 4
_LONGEST = 120
_SIZE, _LINE, _EDGE, _MARGIN = 14, 22, 8, 110
_LETTER = 7.6
"""Width of a letter in pixels, about."""


def preview(policy: Policy, examples: Tensor) -> bytes:
    """A PNG of texts, int64 [N, 3, L], as they are and as a policy draws them."""
    return _sheet([line for example in examples for line in _lines(policy, example)])


def drawn_policies(file: Path, policies: Mapping[str, TextHParams]) -> bytes:
    """A PNG of one text under every policy.

    Raises:
        DataError: where the file is no text, or there is no encoder to cut it into tokens.
    """
    try:
        values = vars(TextHParams())
        preprocessing = build_backbone(values).preprocessing
        example = read(text_of(file), preprocessing)
    except DataError:
        raise
    except (BackboneError, ValueError) as error:
        raise DataError(f"{file} cannot be drawn: {error}") from error
    lines: list[tuple[str, str]] = []
    for name, hparams in policies.items():
        try:
            policy = build(hparams, preprocessing)
        except ValueError:
            continue  # there are no synonyms here, which the list says
        lines += [
            (name if place == 0 else "", text) for place, (_, text) in enumerate(_lines(policy, example))
        ]
    return _sheet(lines)


def _lines(policy: Policy, example: Tensor) -> list[tuple[str, str]]:
    """A text as it is, then some draws of it, each with what it is called."""
    rows, seeds = example[None].repeat(_DRAWS, 1, 1), torch.arange(_DRAWS)
    before = plain(policy.preprocessing)(rows[:1], seeds[:1])
    if policy.is_identity:
        return [("as it is", _text(policy, before[0]))]
    drawn = policy(rows, sample_seeds(derived_seed("preview"), seeds))
    return [("as it is", _text(policy, before[0])), *(("drawn", _text(policy, each)) for each in drawn)]


def _text(policy: Policy, tokens: Tensor) -> str:
    return tokenizer_of(policy.preprocessing).text_of(tokens[0][tokens[1] > 0].tolist())


def _sheet(lines: Sequence[tuple[str, str]]) -> bytes:
    told = [(name, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…") for name, text in lines]
    width = _MARGIN + 2 * _EDGE + int(_LETTER * max(len(text) for _, text in told))
    page = Image.new("RGB", (width, _LINE * len(told) + 2 * _EDGE), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_SIZE)
    for place, (name, text) in enumerate(told):
        height = _EDGE + place * _LINE
        pen.text((_EDGE, height), name, fill="grey", font=font)
        pen.text((_EDGE + _MARGIN, height), text, fill="black" if name != "drawn" else "#1f4e9e", font=font)
    png = io.BytesIO()
    page.save(png, "png", compress_level=1)
    return png.getvalue()
