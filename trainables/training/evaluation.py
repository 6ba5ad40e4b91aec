"""What a model says of examples whose classes are known: class by class, and where it is most wrong."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from trainables.modality import Data, Modality

__all__ = ["Evaluation", "Mistake", "evaluation", "page"]

_TABLED = 20  # classes that a confusion matrix is drawn of
_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An example that a model takes for another class.

    Attributes:
        name: of the example.
        true, told: its class, and what the model says.
        probability: of what it says.
        picture: a JPEG; None where there is nothing to look at.
    """

    name: str
    true: str
    told: str
    probability: float
    picture: bytes | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model says of examples.

    Attributes:
        classes: their names.
        confusion: how many examples of a class, a row, are taken for each class.
        worst: the mistakes that the model is surest of.
    """

    classes: Sequence[str]
    confusion: Sequence[Sequence[int]]
    worst: Sequence[Mistake]

    @property
    def is_tabled(self) -> bool:
        """Whether there are so few classes that a matrix of them can be looked at."""
        return len(self.classes) <= _TABLED

    @property
    def scores(self) -> list[tuple[str, int, float, float, float]]:
        """Of each class its name, examples, recall, precision and F1."""
        told = [sum(column) for column in zip(*self.confusion, strict=True)]
        rows = []
        for place, (name, row) in enumerate(zip(self.classes, self.confusion, strict=True)):
            right, true = row[place], sum(row)
            both = true + told[place]
            rows.append(
                (name, true, right / max(1, true), right / max(1, told[place]), 2 * right / max(1, both))
            )
        return rows

    @property
    def confused(self) -> list[tuple[str, str, int]]:
        """The pairs of a class and what it is taken for, the commonest first."""
        pairs = [
            (true, told, count)
            for true, row in zip(self.classes, self.confusion, strict=True)
            for told, count in zip(self.classes, row, strict=True)
            if true != told and count
        ]
        return sorted(pairs, key=lambda pair: -pair[2])


def evaluation(
    kind: Modality[Any], data: Data, preprocessing: Any, split: str, logits: Tensor, *, worst: int
) -> Evaluation:
    """What logits [N, C] say of a split's N examples, with so many of the worst mistakes at most."""
    examples, indices = data.examples(preprocessing), data.splits[split]
    labels, count = data.labels[indices], len(data.classes)
    shares = logits.float().softmax(1)
    pairs = torch.bincount(labels * count + shares.argmax(1), minlength=count**2).view(count, count)
    places = _worst(shares, labels)[:worst]
    pictures = [kind.picture(example) for example in examples[indices[places]]] if len(places) else []
    return Evaluation(
        classes=data.classes,
        confusion=pairs.tolist(),
        worst=[
            Mistake(
                name=data.names[int(indices[place])],
                true=data.classes[int(labels[place])],
                told=data.classes[int(shares[place].argmax())],
                probability=float(shares[place].max()),
                picture=picture,
            )
            for place, picture in zip(places.tolist(), pictures, strict=True)
        ],
    )


def _worst(shares: Tensor, labels: Tensor) -> Tensor:
    """The places of the mistakes, the surest first."""
    sureness, told = shares.max(1)
    wrong = torch.nonzero(told != labels).squeeze(1)
    return wrong[sureness[wrong].argsort(descending=True)]


_STYLE = (
    "body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; color-scheme: light dark }"
    "table { border-collapse: collapse; margin: .5rem 0 } th, td { padding: .15rem .5rem; text-align: right }"
    "th:first-child { text-align: left } .gallery { display: flex; flex-wrap: wrap; gap: 1rem }"
    "figure { margin: 0; max-width: 12rem } img { width: 8rem }"
)


def page(found: Evaluation, title: str, items: str) -> str:
    """An evaluation as one HTML page that needs nothing beside it."""
    count = sum(map(sum, found.confusion))
    right = sum(line[place] for place, line in enumerate(found.confusion))
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>{right:,} of {count:,} {escape(items)} are told right.</p>",
    ]
    if found.is_tabled:
        lines = [(name, *line) for name, line in zip(found.classes, found.confusion, strict=True)]
        parts += _table("What they are taken for (rows: what they are)", ("", *found.classes), lines)
    else:
        parts += _table("Commonest confusions", ("class", "taken for", items), found.confused[:_PAIRS])
    scores = [(name, count, *(f"{each:.3f}" for each in rest)) for name, count, *rest in found.scores]
    parts += _table("Class by class", ("class", items, "recall", "precision", "F1"), scores)
    if found.worst:
        parts += ["<h2>The mistakes that it is surest of</h2>", '<div class="gallery">']
        parts += [_figure(each) for each in found.worst]
        parts += ["</div>"]
    return "\n".join([*parts, "</html>"])


def _table(title: str, head: Sequence[object], lines: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"<h2>{escape(title)}</h2><table><tr>"
    yield "".join(f'<th scope="col">{escape(str(each))}</th>' for each in head) + "</tr>"
    for first, *rest in lines:
        cells = "".join(f"<td>{escape(str(each))}</td>" for each in rest)
        yield f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>'
    yield "</table>"


def _figure(mistake: Mistake) -> str:
    picture, name = mistake.picture, escape(mistake.name)
    shown = (
        f'<img src="data:image/jpeg;base64,{b64encode(picture).decode()}" alt="{name}">' if picture else ""
    )
    told = f"{mistake.true}, taken for {mistake.told} ({mistake.probability:.2f})"
    return f"<figure>{shown}<figcaption>{escape(told)}<br>{name}</figcaption></figure>"
