"""What is doubtful in a spec's data: labels, copies, outliers, classes that are confused, groups that leak.

A head that is solved for, on what a frozen backbone of the space sees of the images, says of each image what
it would be taken for by one that never saw it. The features stay in the node's cache, for trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from search.errors import Problem, SpecError
from search.run.planning import cache_root, inspection_file, load_data, values_of
from search.spec.search_spec import SearchSpec
from trainables.errors import BackboneError, DataError
from trainables.files.cache import Cache
from trainables.files.whole import write_json
from trainables.modality import Backbone, Data
from trainables.training.card import ModelError
from trainables.training.doubts import confusions, doubts, left_out_shares
from trainables.training.features import FrozenFeatures, JoinedFeatures
from trainables.training.model import build_model
from trainables.training.outliers import outliers
from trainables.training.splits import SPLITS
from trainables.training.twins import twins

__all__ = ["Confused", "Inspection", "Outlier", "Suspect", "Twins", "inspected"]

_PART = 256
_SHOWN = 10
_SUREST = 4
"""Examples of a pair of classes that are confused."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An example whose label is probably wrong: what it is labelled, and what a head takes it for."""

    place: int
    name: str
    split: str
    label: str
    likely: str
    share: float
    likely_share: float


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two examples that are nearly the same."""

    places: tuple[int, int]
    names: tuple[str, str]
    splits: tuple[str, str]
    labels: tuple[str, str]
    likeness: float

    @property
    def leak(self) -> bool:
        """Whether they are in different splits."""
        return self.splits[0] != self.splits[1]

    @property
    def disagree(self) -> bool:
        """Whether they have different labels."""
        return self.labels[0] != self.labels[1]


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """An example that is like no other, and how many times as far as usual its nearest are."""

    place: int
    name: str
    split: str
    label: str
    times: float


@dataclass(frozen=True, kw_only=True)
class Confused:
    """Two classes, how many of their examples are taken for the other, how many they have, and the surest."""

    classes: tuple[str, str]
    count: int
    of: int
    surest: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found; each list has the most doubtful first.

    Attributes:
        item: what an example is called, such as image.
        examples: how many were looked at.
        accuracy: share of them that heads which were left without them tell right.
        suspects: labels that are probably wrong.
        twins: examples that are nearly the same; None where the modality has no thumbnails.
        outliers: examples that are like no other.
        confused: classes that are taken for each other.
        leaks: groups that stood in several splits of the source, with an example that was left out.
    """

    item: str
    examples: int
    accuracy: float
    suspects: Sequence[Suspect]
    twins: Sequence[Twins] | None
    outliers: Sequence[Outlier]
    confused: Sequence[Confused]
    leaks: Sequence[Sequence[str]]

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        pairs = None
        if self.twins is not None:
            pairs = [{**asdict(each), "leak": each.leak, "disagree": each.disagree} for each in self.twins]
        return {**asdict(self), "twins": pairs}

    @property
    def brief(self) -> str:
        """The same in a line."""
        pairs = self.twins or ()
        counts = {
            "labels that are probably wrong": len(self.suspects),
            "pairs of copies in different splits": sum(each.leak for each in pairs),
            "in one": sum(not each.leak for each in pairs),
            "outliers": len(self.outliers),
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing doubtful"

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield (
            f"{self.examples:,} {self.item}s; heads that were left without them tell a share of "
            f"{self.accuracy:.4f} right"
        )
        yield from _list(
            f"labels that are probably wrong: {len(self.suspects):,}",
            [
                f"{each.name} ({each.split}) is {each.label!r} ({each.share:.2f}), looks like "
                f"{each.likely!r} ({each.likely_share:.2f})"
                for each in self.suspects
            ],
        )
        yield from self._twin_lines()
        yield from _list(
            f"like no other {self.item}: {len(self.outliers):,}",
            [
                f"{each.name} ({each.split}, {each.label!r}): {each.times:.1f} times as far as usual"
                for each in self.outliers
            ],
        )
        yield from _list(
            f"pairs of classes that are confused: {len(self.confused):,}",
            [
                f"{each.classes[0]!r} and {each.classes[1]!r}: {each.count:,} of {each.of:,} {self.item}s"
                for each in self.confused
            ],
        )
        yield from _list(
            f"{self.item}s of groups that leak, left out: {len(self.leaks):,}",
            [
                f"group {group}: {out} ({split}), for {kept} ({there})"
                for group, out, split, kept, there in self.leaks
            ],
        )

    def _twin_lines(self) -> Iterator[str]:
        if self.twins is None:
            return
        across = [each for each in self.twins if each.leak]
        for told, pairs in (
            ("nearly the same, in different splits", across),
            ("nearly the same, in one split", [each for each in self.twins if not each.leak]),
        ):
            yield from _list(
                f"{told}: {len(pairs):,} pairs",
                [
                    " = ".join(
                        f"{name} ({split}, {label!r})"
                        for name, split, label in zip(each.names, each.splits, each.labels, strict=True)
                    )
                    + f": {each.likeness:.3f}"
                    for each in pairs
                ],
            )


def _list(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield title
    yield from (f"  {line}" for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield f"  and {len(lines) - _SHOWN:,} more; --json has all"


def inspected(spec: SearchSpec, progress: Progress | None = None) -> tuple[Inspection, Data, Backbone]:
    """What is doubtful in the data of a spec; and the data and the backbone that it was looked at with.

    Raises:
        SpecError: if the data or the backbone cannot be used.
    """
    try:
        data = load_data(spec, progress)
    except DataError as error:
        raise SpecError(
            f"search {spec.name}", [Problem(place="data", given=None, message=str(error))]
        ) from error
    knobs = {name: values_of(spec.domain(name))[0] for name in spec.modality.backbone_knobs}
    try:
        backbone = spec.modality.backbone(knobs)
    except BackboneError as error:
        problem = Problem(place="space.backbone", given=repr(knobs["backbone"]), message=str(error))
        raise SpecError(f"search {spec.name}", [problem]) from error
    places = torch.cat([data.splits[split] for split in SPLITS])
    features = _features(spec, data, backbone, progress)
    labels, groups = data.labels[places], getattr(data, "groups", None)
    kin = None if groups is None else groups[places].unique(return_inverse=True)[1]
    shares = left_out_shares(features, labels, len(data.classes), kin)
    sureness, told = shares.max(1)
    split_of = [split for split in SPLITS for _ in range(len(data.splits[split]))]

    def named(place: int) -> tuple[int, str, str]:
        return int(places[place]), data.names[int(places[place])], split_of[place]

    found = Inspection(
        item=spec.modality.item,
        examples=len(places),
        accuracy=float((told == labels).double().mean()),
        suspects=[
            Suspect(
                **dict(zip(("place", "name", "split"), named(each.place), strict=True)),  # type: ignore[arg-type]
                label=data.classes[each.label],
                likely=data.classes[each.likely],
                share=each.share,
                likely_share=each.likely_share,
            )
            for each in doubts(shares, labels)
        ],
        twins=_twins(spec, data, backbone, places, split_of, features),
        outliers=[
            Outlier(
                **dict(zip(("place", "name", "split"), named(place), strict=True)),  # type: ignore[arg-type]
                label=data.classes[int(labels[place])],
                times=times,
            )
            for place, times in outliers(features, kin)
        ],
        confused=[
            Confused(
                classes=(data.classes[one], data.classes[two]),
                count=count,
                of=total,
                surest=[int(places[each]) for each in _surest(sureness, told, labels, one, two)],
            )
            for one, two, count, total in confusions(shares, labels)
        ],
        leaks=list(getattr(data.report, "leaks", ())),
    )
    file = inspection_file(spec, data)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"told": found.brief})
    return found, data, backbone


def _surest(sureness: Tensor, told: Tensor, labels: Tensor, one: int, two: int) -> list[int]:
    """The examples of two classes that are taken for the other, the surest few first."""
    taken = ((labels == one) & (told == two)) | ((labels == two) & (told == one))
    places = torch.nonzero(taken).squeeze(1)
    few: list[int] = places[sureness[places].argsort(descending=True)][:_SUREST].tolist()
    return few


def _features(spec: SearchSpec, data: Data, backbone: Backbone, progress: Progress | None) -> Tensor:
    """What a frozen trunk sees of all examples, split by split: of its stages, where it has any."""
    hparams = {name: values_of(spec.domain(name))[0] for name in spec.modality.backbone_knobs}
    try:
        model = build_model(backbone, spec.hparams(**hparams, features="stages"), len(data.classes))
    except ModelError:
        model = build_model(backbone, spec.hparams(**hparams), len(data.classes))
    torch.set_num_threads(max(1, int(spec.resources.cpu)))
    cache = Cache(cache_root(spec), int(spec.cache.max_gb * 2**30)) if spec.cache.enabled else None
    parts = [
        FrozenFeatures(
            model=model,
            trunk_key=f"{backbone.name} {backbone.weights_hash} {backbone.preprocessing}",
            examples=data.examples(backbone.preprocessing),
            indices=data.splits[split],
            policy=spec.modality.plain(backbone.preprocessing),
            data_key=data.fingerprint,
            cache=cache,
            dtype=torch.float16,
            device=torch.device("cpu"),
            progress=progress,
        )
        for split in SPLITS
        if len(data.splits[split])
    ]
    return JoinedFeatures(parts).view(0)


def _twins(
    spec: SearchSpec, data: Data, backbone: Backbone, places: Tensor, splits: Sequence[str], features: Tensor
) -> list[Twins] | None:
    examples = data.examples(backbone.preprocessing)
    small = [spec.modality.thumbnails(examples[part]) for part in places.split(_PART)]
    thumbnails = [each for each in small if each is not None]
    if len(thumbnails) < len(small):
        return None
    own = [int(place) for place in places]
    return [
        Twins(
            places=(own[one], own[two]),
            names=(data.names[own[one]], data.names[own[two]]),
            splits=(splits[one], splits[two]),
            labels=(data.classes[int(data.labels[own[one]])], data.classes[int(data.labels[own[two]])]),
            likeness=likeness,
        )
        for one, two, likeness in twins(torch.cat(thumbnails), features)
    ]
