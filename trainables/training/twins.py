"""Examples that are nearly the same: encoded again, resized, shifted.

Candidates are the nearest of each example by three descriptions: its thumbnail; the spectrum of that, which
a shift leaves as it is; and the features of a trunk. The likeness of a pair of candidates is the correlation
of their thumbnails at the best shift by a few pixels, where they overlap. What counts as nearly the same
depends on the images (drawings on white are all alike), so that a pair must also be much more alike than
other candidates are: a ratio of distances, as Lowe uses it in "Distinctive Image Features from
Scale-Invariant Keypoints", IJCV 60 (2004).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, pad

__all__ = ["SIDE", "twins"]

SIDE = 32
"""Pixels of a thumbnail's side."""

_NEAREST = 3
"""Candidates by each description."""
_ROWS, _FEW = 1024, 128
_SHIFT = 4
_WIDTH = 128
"""Principal components of features that are looked at."""
_ALIKE = 0.9
_SAME = 0.995
"""A likeness at which no other candidate is asked."""
_RATIO = 0.4
_OTHER = 3
"""With which of its candidates a pair is compared: three copies of one image are no reason to say none is."""
_LEAST = 1e-6


def twins(thumbnails: Tensor, features: Tensor) -> list[tuple[int, int, float]]:
    """Pairs of examples that are nearly the same, and how alike they are (1: the same), the most alike first.

    Args:
        thumbnails: float [N, 32, 32], grey.
        features: [N, F].
    """
    if len(thumbnails) < 2:
        return []
    centred = thumbnails.float() - thumbnails.float().mean((1, 2), keepdim=True)
    # Noise, and what falls between pixels, moves otherwise than the image when that is shifted.
    smooth = avg_pool2d(pad(centred[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    pixels = normalize(avg_pool2d(centred, 2).flatten(1), dim=1)
    spectrum = normalize(_spectrum(centred), dim=1)
    features = normalize(_whitened(features.float()), dim=1)
    likeness = _Likeness(smooth)
    alike: list[Tensor] = []
    nearest: list[Tensor] = []
    for part in torch.arange(len(centred)).split(_ROWS):
        cosines = [each[part] @ each.T for each in (pixels, spectrum, features)]
        candidates = _candidates(part, cosines)
        nearest.append(candidates)
        parts = zip(part.split(_FEW), candidates.split(_FEW), strict=True)
        alike += [likeness.of(few, others) for few, others in parts]
    every, places = torch.cat(alike), torch.cat(nearest)
    every[:, 1:][places[:, 1:] == places[:, :-1]] = -1.0  # named by two descriptions
    return list(_chosen(every, places))


def _chosen(alike: Tensor, candidates: Tensor) -> Iterator[tuple[int, int, float]]:
    """The pairs of which one of the two says that the other is much more alike than others are."""
    other = alike.sort(1, descending=True).values[:, min(_OTHER, alike.shape[1] - 1)]
    distance, usual = 1 - alike, (1 - other).clamp(min=_LEAST)
    same = (alike > _SAME) | ((alike > _ALIKE) & (distance < _RATIO * usual[:, None]))
    best: dict[tuple[int, int], float] = {}
    for one, column in same.nonzero().tolist():
        pair = (one, int(candidates[one, column]))
        key = (min(pair), max(pair))
        best[key] = max(best.get(key, 0.0), float(alike[one, column]))
    for (one, two), value in sorted(best.items(), key=lambda each: (-each[1], each[0])):
        yield one, two, min(1.0, value)


def _candidates(part: Tensor, cosines: Sequence[Tensor]) -> Tensor:
    """The nearest few of each row by each description, int64 [B, K], ascending.

    Args:
        part: numbers of the rows, [B].
        cosines: by description, [B, N].
    """
    rows, found = torch.arange(len(part)), []
    for each in cosines:
        each[rows, part] = -2.0
        found.append(each.topk(min(_NEAREST, each.shape[1] - 1), 1).indices)
    return torch.cat(found, 1).sort(1).values


def _spectrum(centred: Tensor) -> Tensor:
    """Amplitudes of the low frequencies, under a window that lets the edges fade."""
    window = 0.3 + 0.7 * torch.hann_window(SIDE, periodic=False)
    amplitudes = torch.fft.rfft2(centred * window[:, None] * window[None, :]).abs().sqrt()
    low = torch.cat([amplitudes[:, :9, :9], amplitudes[:, -8:, :9]], 1).flatten(1)
    return low - low.mean(0)


def _whitened(features: Tensor) -> Tensor:
    """The principal components of features, each with the same spread."""
    centred = features - features.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = min(_WIDTH, len(values), len(features))
    components: Tensor = centred @ vectors[:, -kept:] / values[-kept:].clamp(min=_LEAST).sqrt()
    return components


class _Likeness:
    """The correlation of thumbnails at the best shift by a few pixels, where they overlap.

    Args:
        thumbnails: float [N, 32, 32].
    """

    def __init__(self, thumbnails: Tensor) -> None:
        spread = thumbnails.flatten(1).std(1).clamp(min=_LEAST)
        self._images = thumbnails / spread[:, None, None]
        self._spectra = torch.fft.rfft2(self._images)
        self._sums, squares = _sums(self._images), _sums(self._images.square())
        self._counts = torch.tensor([(SIDE - abs(down)) * (SIDE - abs(right)) for down, right in _SHIFTS])
        self._spreads = (squares - self._sums.square() / self._counts).clamp(min=0).sqrt()

    def of(self, part: Tensor, others: Tensor) -> Tensor:
        """Likeness [B, K] of images `part` [B] and `others` [B, K]: at the likeliest shift, or unshifted."""
        products = self._spectra[part][:, None] * self._spectra[others].conj()
        around = torch.fft.irfft2(products, s=(SIDE, SIDE))  # as if images went on at the other edge
        downs, rights = (torch.tensor(each) % SIDE for each in zip(*_SHIFTS, strict=True))
        likeliest = around[:, :, downs, rights].argmax(2).flatten()
        one, two = part[:, None].expand_as(others).flatten(), others.flatten()
        best = self._at(len(_SHIFTS) // 2, one, two)
        for place in likeliest.unique().tolist():
            mine = likeliest == place
            best[mine] = torch.maximum(best[mine], self._at(place, one[mine], two[mine]))
        return best.view(others.shape)

    def _at(self, place: int, one: Tensor, two: Tensor) -> Tensor:
        """The correlation of pairs, each int64 [P], at one shift."""
        down, right = _SHIFTS[place]
        own = self._images[one][:, *_window(down, right)].flatten(1)
        theirs = self._images[two][:, *_window(-down, -right)].flatten(1)
        opposite = len(_SHIFTS) - 1 - place
        sums = self._sums[one, place] * self._sums[two, opposite]
        spreads = self._spreads[one, place] * self._spreads[two, opposite]
        product = (own * theirs).sum(1) - sums / self._counts[place]
        return (product / spreads.clamp(min=_LEAST)).float()


_SHIFTS = [(down, right) for down in range(-_SHIFT, _SHIFT + 1) for right in range(-_SHIFT, _SHIFT + 1)]
"""Each with its opposite at the place that is as far from the end."""


def _window(down: int, right: int) -> tuple[slice, slice]:
    """What of an image another one covers that is shifted."""
    return tuple(slice(max(0, by), SIDE + min(0, by)) for by in (down, right))  # type: ignore[return-value]


def _sums(images: Tensor) -> Tensor:
    """The sum over the window of each shift, float64 [N, shifts]."""
    total = torch.zeros(len(images), SIDE + 1, SIDE + 1, dtype=torch.float64)
    total[:, 1:, 1:] = images.double().cumsum(1).cumsum(2)
    found = []
    for shift in _SHIFTS:
        rows, columns = _window(*shift)
        found.append(
            total[:, rows.stop, columns.stop]
            - total[:, rows.start, columns.stop]
            - total[:, rows.stop, columns.start]
            + total[:, rows.start, columns.start]
        )
    return torch.stack(found, 1)
