"""Heads on a frozen trunk that are solved for: a path of strengths, scored on what no solution has seen.

The features are standardised first, by the first view of the training images, so that one strength suits all
of them. Every strength of the path is scored on images that its solution was not fitted to: by leaving out
one image at a time where that has a closed form and is to be trusted (one view of at least as many images as
features), else by folds of images. Left-out scores also tell the temperature that makes a head's scores
probabilities (Guo et al., 2017), and with it the cross-entropy by which the strength is chosen.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.training.folds import folds_of
from trainables.training.logistic import logistic_path
from trainables.training.ridge import Moments, RidgePath, targets_of
from trainables.training.temperature import cross_entropy, inverse_temperatures

__all__ = ["Point", "SolvedHead", "solve", "standardisation"]

FOLDS = 5
LOGISTIC_FOLDS = 3
RIDGE_STRENGTHS = tuple(10.0 ** (exponent / 4) for exponent in range(-16, 8))
"""Of the penalty over the sum of the rows' weights, for standardised features."""
LOGISTIC_STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(0, -7, -1))
_BATCH = 4096
_MOST = 4096
"""Coordinates that are solved for as they are: of more, what is decomposed would take minutes."""
_LANDMARKS = 2048
_LEAST_SCALE = 0.1

View = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One strength of a path, and how its solutions score what they were not fitted to.

    Attributes:
        strength: of the penalty, over the sum of the rows' weights.
        loss: cross-entropy of the left-out images at the best temperature.
        accuracy: share of them that are told right.
    """

    strength: float
    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class SolvedHead:
    """A linear head on standardised features.

    Attributes:
        mean, scale: of the features, float32 [F].
        weight, bias: float32 [C, F] and [C], of features less the mean over the scale; their softmax is
            calibrated.
        points: the path.
        chosen: place in it of the strength that the head has.
        left_out: by what the path was scored, in words.
        scores: of each image, [N, C], by a solution that it was left out of; calibrated.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    points: tuple[Point, ...]
    chosen: int
    left_out: str
    scores: Tensor

    def described(self) -> dict[str, Any]:
        """The path in plain values, for the record."""
        return {
            "left_out": self.left_out,
            "strength": self.points[self.chosen].strength,
            "path": [vars(point) for point in self.points],
        }


def solve(
    kind: str,
    views: Sequence[View],
    labels: Tensor,
    classes: int,
    *,
    weights: Tensor | None = None,
    folds: Tensor | None = None,
) -> SolvedHead:
    """The head of least left-out cross-entropy on a path of strengths.

    Args:
        kind: `ridge` or `logistic`.
        views: give features [N, F] of the same images; heads are scored on the first, which is of the images
            as they are evaluated, and fitted to all.
        labels: int64 [N], on the features' device.
        classes: how many there are.
        weights: of the images, [N]; None: all alike.
        folds: int64 [N], what is left out together; None: as is best for the head.
    """
    weights = torch.ones(len(labels), device=labels.device) if weights is None else weights
    rows = _Rows(views, labels, classes, weights.double())
    closed = folds is None and kind == "ridge" and len(views) == 1 and len(labels) >= rows.width
    if folds is None and not closed:
        folds = folds_of(labels, FOLDS if kind == "ridge" else LOGISTIC_FOLDS)
    paths = {"ridge": _ridge, "logistic": _logistic}
    strengths, scores, linear = paths[kind](rows, folds)
    factors = inverse_temperatures(scores, labels, weights)
    points = tuple(
        Point(
            strength=float(strength),
            loss=cross_entropy(each * factor, labels, weights),
            accuracy=float((each.argmax(1) == labels).double().mean()),
        )
        for strength, each, factor in zip(strengths, scores, factors, strict=True)
    )
    chosen = min(range(len(points)), key=lambda index: points[index].loss)
    weight, bias = (factors[chosen] * part for part in linear(chosen))
    return SolvedHead(
        mean=rows.mean.float(),
        scale=rows.scale.float(),
        weight=rows.original(weight).float(),
        bias=bias.float(),
        points=points,
        chosen=chosen,
        left_out="one image at a time" if folds is None else f"{len(folds.unique())} folds of images",
        scores=factors[chosen] * scores[chosen],
    )


class _Rows:
    """The rows of all views, standardised, and turned to fewer coordinates where there are fewer rows.

    The weights of a solution with a squared penalty lie in the span of the rows: with fewer rows than
    features it is as well found in coordinates of that span, of which there are no more than rows. Where
    both are many, the span of some of the clean rows stands for that of all, as in Nyström's method
    (Williams and Seeger, 2001).
    """

    def __init__(self, views: Sequence[View], labels: Tensor, classes: int, weights: Tensor) -> None:
        self.views, self.labels, self.weights = views, labels, weights
        self.targets = targets_of(labels, classes)
        first = views[0]()
        self.width = first.shape[1]
        self.mean, self.scale = standardisation(first)
        self._span: _Span | None = None
        count = len(views) * len(labels)
        if min(count, self.width) > _MOST:
            places = torch.linspace(0, len(labels) - 1, min(len(labels), _LANDMARKS)).round().long()
            self._span = _Span(self._standardised(first[places.to(first.device)]))
        elif count < self.width:
            self._span = _Span(torch.cat([self._standardised(view()) for view in views]))

    def view(self, number: int, part: Tensor | slice = slice(None)) -> Tensor:
        """Rows of some images in one view, float64."""
        return torch.cat([rows for _, rows in self._in_batches(number, part)])

    def _in_batches(self, number: int, part: Tensor | slice) -> Iterator[tuple[Tensor, Tensor]]:
        """A few of some images at a time, and their rows in one view, float64."""
        count = len(self.labels)
        places = torch.arange(count, device=self.labels.device)[part].split(_BATCH)
        if self._span is not None and len(self._span.own) == len(self.views) * count:  # it is of all rows
            yield from ((few, self._span.own[number * count + few]) for few in places)
            return
        features = self.views[number]()
        for few in places:
            rows = self._standardised(features[few.to(features.device)])
            yield few, rows if self._span is None else self._span.turned(rows)

    @property
    def coordinates(self) -> int:
        """How many each row has."""
        return self.width if self._span is None else self._span.own.shape[1]

    def original(self, weight: Tensor) -> Tensor:
        """Weights [C, F] of standardised features, of those of the rows' coordinates."""
        return weight if self._span is None else self._span.weight(weight)

    def moments(self, part: Tensor | slice = slice(None)) -> Moments:
        """The moments of some images in all views."""
        every = (batch for number in range(len(self.views)) for batch in self._in_batches(number, part))
        few, rows = next(every)
        found = Moments.of(rows, self.targets[few], self.weights[few])
        for few, rows in every:
            found.add(rows, self.targets[few], self.weights[few])
        return found

    def _standardised(self, rows: Tensor) -> Tensor:
        return (rows.double() - self.mean) / self.scale


class _Span:
    """Coordinates in the span of rows [N, F], which has K dimensions, without its basis of F x K.

    Attributes:
        own: of the rows themselves, [N, K].
    """

    def __init__(self, rows: Tensor) -> None:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        kept = values > values[-1] * 1e-12
        self._rows, self._turn = rows, vectors[:, kept] / values[kept].sqrt()
        self.own = vectors[:, kept] * values[kept].sqrt()

    def turned(self, rows: Tensor) -> Tensor:
        """Of other rows, as far as they lie in the span."""
        found: Tensor = (rows @ self._rows.T) @ self._turn
        return found

    def weight(self, weight: Tensor) -> Tensor:
        """Weights [C, F] of features, of those of coordinates [C, K]."""
        found: Tensor = (weight @ self._turn.T) @ self._rows
        return found


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of each feature of [N, F], float64.

    The scale is the standard deviation; of what varies next to nothing a tenth of the usual one, since a
    trunk that then trains moves such features by many times their deviation; of what does not vary, one.
    """
    total = torch.zeros(2, features.shape[1], dtype=torch.float64, device=features.device)
    for part in features.split(_BATCH):
        part = part.double()
        total += torch.stack([part.sum(0), part.square().sum(0)])
    mean = total[0] / len(features)
    scale = (total[1] / len(features) - mean.square()).clamp(min=0).sqrt()
    # Rounding makes a little of nothing.
    varies = scale > 1e-6 * mean.abs().clamp(min=1e-6)
    if varies.any():
        scale = scale.clamp(min=float(_LEAST_SCALE * scale[varies].median()))
    return mean, torch.where(varies, scale, torch.ones_like(scale))


Path = tuple[Tensor, Tensor, Callable[[int], tuple[Tensor, Tensor]]]
"""Strengths [L], left-out scores [L, N, C], and weights and bias by place in the path."""


def _ridge(rows: _Rows, folds: Tensor | None) -> Path:
    if len(rows.views) == 1 and (folds is None or int(folds.bincount().max()) <= rows.coordinates):
        return _ridge_in_closed_form(rows, folds)
    assert folds is not None, "no image of several views is left out by itself"
    every = [rows.moments(folds == fold) for fold in folds.unique()]
    total = functools.reduce(operator.add, every)
    strengths = _strengths(RIDGE_STRENGTHS, total.weight)
    scores = rows.targets.expand(len(RIDGE_STRENGTHS), -1, -1).clone()
    for fold, own in zip(folds.unique(), every, strict=True):
        rest = total - own
        fitted = RidgePath(rest, _strengths(RIDGE_STRENGTHS, rest.weight), exact=False)
        left = folds == fold
        scores[:, left] = fitted.scores(rows.view(0, left))
    return strengths / total.weight, scores, lambda place: total.solution(strengths[place])


def _ridge_in_closed_form(rows: _Rows, folds: Tensor | None) -> Path:
    """One decomposition for all that is left out: one image at a time, or the images of a fold."""
    total = rows.moments()
    path = RidgePath(total, _strengths(RIDGE_STRENGTHS, total.weight))
    if folds is None:
        left_out = path.left_out
        parts = list(torch.arange(len(rows.labels), device=rows.labels.device).split(_BATCH))
    else:
        left_out = path.left_out_together
        parts = [torch.nonzero(folds == fold).squeeze(1) for fold in folds.unique()]
    scores = rows.targets.expand(len(path.strengths), -1, -1).clone()
    for part in parts:
        scores[:, part] = left_out(rows.view(0, part), rows.targets[part], rows.weights[part])
    return path.strengths / total.weight, scores, path.linear


def _strengths(relative: Sequence[float], weight: Tensor) -> Tensor:
    return torch.tensor(relative, dtype=torch.float64, device=weight.device) * weight


def _logistic(rows: _Rows, folds: Tensor | None) -> Path:
    """From strong to weak, until weaker is worse: the weakest take the most steps."""
    assert folds is not None, "a logistic regression has no closed form for what is left out"
    classes = rows.targets.shape[1]
    every = folds.unique()
    fits = [logistic_path(*_stacked(rows, folds != fold), classes, LOGISTIC_STRENGTHS) for fold in every]
    held = [rows.view(0, folds == fold) for fold in every]
    scores, losses = [], [math.inf]
    for solutions in zip(*fits, strict=True):
        own = torch.empty_like(rows.targets)
        for fold, part, (weight, bias) in zip(every, held, solutions, strict=True):
            own[folds == fold] = part @ weight.T.double() + bias
        (factor,) = inverse_temperatures(own[None], rows.labels, rows.weights)
        losses.append(cross_entropy(own * factor, rows.labels, rows.weights))
        scores.append(own)
        if losses[-1] > min(losses):
            break
    strengths = LOGISTIC_STRENGTHS[: len(scores)]
    path = logistic_path(*_stacked(rows, slice(None)), classes, strengths)
    return torch.tensor(strengths), torch.stack(scores), lambda place: _nth(path, place)


def _nth(path: Iterator[tuple[Tensor, Tensor]], place: int) -> tuple[Tensor, Tensor]:
    weight, bias = next(itertools.islice(path, place, None))
    return weight.double(), bias.double()


def _stacked(rows: _Rows, part: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of all views, in single precision, with their labels and weights."""
    count = len(rows.views)
    every = torch.cat([rows.view(number, part).float() for number in range(count)])
    return every, rows.labels[part].repeat(count), rows.weights[part].repeat(count)
