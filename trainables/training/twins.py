"""Examples that are nearly the same: encoded again, resized, shifted.

Candidates are the nearest of each example by three descriptions: its thumbnail; the spectrum of that, which
a shift leaves as it is; and the features of a trunk. The likeness of a pair of candidates is the correlation
of their thumbnails at the best shift by a few pixels, where they overlap. What counts as nearly the same
depends on the images (drawings on white are all alike), so that a pair must also be much more alike than
the other candidates of either are: a ratio of distances, as Lowe uses it in "Distinctive Image Features from
Scale-Invariant Keypoints", IJCV 60 (2004). Thumbnails are compared twice, the second time at half their size
and blurred: an image that was made small once has lost its details, a shifted one has kept them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, pad

__all__ = ["SIDE", "twins"]

SIDE = 32
"""Pixels of a thumbnail's side."""

_NEAREST = 3
"""Candidates by each description."""
_ROWS, _FEW = 1024, 128
_SHIFT = 8
"""The largest shift, as a part of the side."""
_WIDTH = 128
"""Principal components of features that are looked at."""
_ALIKE = 0.9
_SAME = 0.995
"""A likeness, of the larger ones, at which no other candidate is asked."""
_RATIO = 0.28
_OTHER = 3
"""With which of its candidates a pair is compared: three copies of one image are no reason to say none is."""
_FLOOR = 0.3
"""What is usual for an image is at least this much of what is for half of all."""
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
    candidates = _candidates(
        normalize(avg_pool2d(centred, 4).flatten(1), dim=1),
        normalize(_spectrum(centred), dim=1),
        normalize(_whitened(features.float()), dim=1),
    )
    best: dict[tuple[int, int], float] = {}
    for images, same in ((_blurred(centred, 3), _SAME), (_blurred(avg_pool2d(centred, 2), 5), 1.0)):
        for one, two, value in _chosen(_likeness(images, candidates), candidates, same):
            best[one, two] = max(best.get((one, two), 0.0), value)
    order = sorted(best.items(), key=lambda each: (-each[1], each[0]))
    return [(one, two, min(1.0, value)) for (one, two), value in order]


def _chosen(alike: Tensor, candidates: Tensor, same: float) -> Iterator[tuple[int, int, float]]:
    """The pairs that are much more alike than the other candidates of the two are, or as good as the same."""
    usual = _usual(alike).clamp(min=_LEAST)
    between = (usual[:, None] * usual[candidates]).sqrt()
    chosen = (alike > same) | ((alike > _ALIKE) & (1 - alike < _RATIO * between))
    for one, column in chosen.nonzero().tolist():
        two = int(candidates[one, column])
        yield min(one, two), max(one, two), float(alike[one, column])


def _usual(alike: Tensor) -> Tensor:
    """How far from an image its candidates are that are no copies of it, [N].

    Candidates that all are copies, of many, say nothing of that: then what is usual in the data does. Of so
    few images that none has other candidates nothing is usual: NaN, with which no distance is small.
    """
    ranked = alike.sort(1, descending=True).values
    known = (ranked > -1).sum(1)
    other = ranked.gather(1, (known - 1).clamp(max=_OTHER)[:, None])[:, 0]
    return torch.maximum(1 - other, _FLOOR * (1 - other[known > _OTHER]).median())


def _candidates(*descriptions: Tensor) -> Tensor:
    """The nearest few of each example by each description, int64 [N, K], ascending.

    Args:
        descriptions: of unit length, [N, D] each.
    """
    count = len(descriptions[0])
    nearest, rows = min(_NEAREST, count - 1), []
    for part in torch.arange(count).split(_ROWS):
        found = []
        for each in descriptions:
            cosines = each[part] @ each.T
            cosines[torch.arange(len(part)), part] = -2.0
            found.append(cosines.topk(nearest, 1).indices)
        rows.append(torch.cat(found, 1))
    return torch.cat(rows).sort(1).values


def _blurred(images: Tensor, pixels: int) -> Tensor:
    """Noise, and what falls between pixels, moves otherwise than the image when that is shifted."""
    return avg_pool2d(pad(images[:, None], (pixels // 2,) * 4, mode="replicate"), pixels, 1)[:, 0]


def _spectrum(centred: Tensor) -> Tensor:
    """Amplitudes of the low frequencies, under a window that lets the edges fade."""
    window = 0.3 + 0.7 * torch.hann_window(SIDE, periodic=False)
    amplitudes = torch.fft.rfft2(centred * window[:, None] * window[None, :]).abs().sqrt()
    low = torch.cat([amplitudes[:, :9, :9], amplitudes[:, -8:, :9]], 1).flatten(1)
    return low - low.mean(0)


def _whitened(features: Tensor) -> Tensor:
    """The principal components of features [N, F], each with the same spread."""
    centred = features - features.mean(0)
    few = len(centred) < centred.shape[1]
    products = (centred @ centred.T if few else centred.T @ centred) / len(centred)
    values, vectors = torch.linalg.eigh(products.double() if few else products)
    kept = min(_WIDTH, len(values))
    spreads, main = values[-kept:].clamp(min=_LEAST).sqrt(), vectors[:, -kept:]
    components: Tensor = (main * (values[-kept:] > _LEAST)).float() if few else centred @ main / spreads
    return components


def _likeness(images: Tensor, candidates: Tensor) -> Tensor:
    """The correlation of images with their candidates [N, K], at the best shift and where they overlap.

    One that is named twice has it once, and then -1.

    Args:
        images: float [N, S, S].
        candidates: int64 [N, K], ascending.
    """
    side = images.shape[1]
    most = side // _SHIFT
    padded = (
        side + most,
    ) * 2  # with as many zeros, a shifted image does not come in again at the other edge
    images = images / images.flatten(1).std(1).clamp(min=_LEAST)[:, None, None]
    spectra = torch.fft.rfft2(images, s=padded)
    # Each shift has its opposite at the place that is as far from the end.
    shifts = torch.cartesian_prod(*[torch.arange(-most, most + 1)] * 2)
    counts = (side - shifts.abs()).prod(1)
    sums, squares = _sums(images, shifts), _sums(images.square(), shifts)
    spreads = (squares - sums.square() / counts).clamp(min=0).sqrt()
    means = sums / counts.sqrt()
    downs, rights = (shifts % padded[0]).T
    found = []
    for part in torch.arange(len(images)).split(_FEW):
        others = candidates[part]
        around = torch.fft.irfft2(spectra[part, None] * spectra[others].conj(), s=padded)
        covaried = around[..., downs, rights] - means[part, None] * means[others].flip(2)
        spread = spreads[part, None] * spreads[others].flip(2)
        found.append((covaried / spread.clamp(min=_LEAST)).amax(2))
    alike = torch.cat(found)
    alike[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -1.0
    return alike


def _sums(images: Tensor, shifts: Tensor) -> Tensor:
    """The sum over what another image covers that is shifted, [N, shifts]."""
    side = images.shape[1]
    total = pad(images.cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, left = shifts.clamp(min=0).T
    bottom, right = (side + shifts.clamp(max=0)).T
    return total[:, bottom, right] - total[:, top, right] - total[:, bottom, left] + total[:, top, left]
