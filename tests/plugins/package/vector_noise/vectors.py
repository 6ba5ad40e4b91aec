"""Vectors with noise: the least that a modality can be."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.errors import BackboneError, DataError
from trainables.modality import Backbone, BackboneInfo
from trainables.seeds import generator
from trainables.training.classification import Classification
from trainables.training.hparams import HParams
from trainables.training.knobs import knob
from trainables.training.splits import SPLITS, assign, limited


@dataclass(frozen=True, kw_only=True)
class VectorHParams(HParams):
    modality: ClassVar[str] = "vectors"

    backbone: str = knob("projection", "Name of the network.")
    policy: str = knob("none", "The augmentation.", choices=("none", "noise"), space=["none", "noise"])
    noise: float = knob(
        0.1, "Deviation of the noise.", low=0.0, high=10.0, when={"policy": ("noise",)},
        space={"low": 0.01, "high": 1.0},
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What vectors are divided by, of how many numbers each."""

    width: int
    scale: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def normaliser(self) -> nn.Module:
        return _Divided(self.scale)

    def blank(self, count: int) -> Tensor:
        return torch.zeros(count, self.width)


class _Divided(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs / self.scale


@dataclass(frozen=True)
class Noise:
    deviation: float

    @property
    def is_identity(self) -> bool:
        return self.deviation == 0

    @property
    def key(self) -> str:
        return f"noise {self.deviation}"

    def __call__(self, examples: Tensor, seeds: Tensor) -> Tensor:
        if self.is_identity:
            return examples
        drawn = [torch.randn(examples.shape[1:], generator=generator("noise", int(s))) for s in seeds]
        return examples + self.deviation * torch.stack(drawn).to(examples.device)

    def describe(self) -> list[str]:
        return [f"noise of deviation {self.deviation:g}"]


class Rows:
    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self._values[indices]

    def on(self, device: torch.device, indices: Tensor) -> Tensor:
        return self[indices].to(device)


@dataclass(frozen=True)
class Found:
    source: str
    count: int

    def lines(self) -> Iterator[str]:
        yield f"{self.source}: {self.count} vectors"

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "vectors": self.count}


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorData:
    classes: tuple[str, ...]
    labels: Tensor
    splits: dict[str, Tensor]
    fingerprint: str
    names: tuple[str, ...]
    report: Found
    values: Tensor = field(repr=False)

    def examples(self, preprocessing: Scaling) -> Rows:
        return Rows(self.values)


class Vectors(Classification):
    """Rows of a CSV file, the last column the class."""

    name = "vectors"
    item = "vector"
    suffixes = (".csv",)
    hparams = VectorHParams
    backbone_knobs = ("backbone", "weights")

    def load(self, config: Mapping[str, Any], *, cache_dir: Path, progress: Any = None) -> VectorData:
        options = dict(config)
        path, skip = Path(options.pop("source")), options.pop("skip_rows", 0)
        known = {"root", "validation", "test", "seed", *(f"{split}_limit" for split in SPLITS)}
        if set(options) - known:
            raise DataError(f"data.options has {sorted(set(options) - known)}, but may have skip_rows")
        try:
            table = np.genfromtxt(path, delimiter=",", dtype=str, skip_header=skip)
            values = table[:, :-1].astype(np.float32)
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"data.source {path} is no table of numbers and a class: {error}") from error
        classes, labels = np.unique(table[:, -1], return_inverse=True)
        ids = np.array([_number(row) for row in values], dtype=np.uint64)
        assigned = assign(
            labels=labels,
            groups=np.unique(ids, return_inverse=True)[1],
            ids=ids,
            given=np.full(len(labels), -1),
            classes=list(classes),
            shares={"validation": options["validation"], "test": options["test"]},
            seed=options["seed"],
        )
        if assigned.problems:
            raise DataError(assigned.problems)
        splits = {}
        for code, split in enumerate(SPLITS):
            own = np.flatnonzero(assigned.codes == code)
            limit = options[f"{split}_limit"]
            kept = limited(own, labels=labels[own], ids=ids[own], limit=limit, seed=options["seed"])
            splits[split] = torch.from_numpy(kept)
        content = values.tobytes() + labels.tobytes() + b"".join(s.numpy().tobytes() for s in splits.values())
        return VectorData(
            classes=tuple(map(str, classes)),
            labels=torch.from_numpy(labels),
            splits=splits,
            fingerprint=hashlib.sha256(content).hexdigest(),
            names=tuple(f"row {number}" for number in range(len(labels))),
            report=Found(str(path), len(labels)),
            values=torch.from_numpy(values),
        )

    def backbone(self, values: Mapping[str, Any], *, preprocessing: Scaling | None = None) -> Backbone:
        if values["backbone"] != "projection" or values["weights"] not in ("pretrained", "none"):
            raise BackboneError(f"backbone is {values['backbone']!r}, but must be projection, without a file")
        width, features = 64, 24
        trunk = nn.Sequential(nn.Linear(width, features), nn.Tanh(), nn.Linear(features, features)).eval()
        numbers = generator("projection")
        for parameter in trunk.parameters():
            nn.init.normal_(parameter, std=0.3, generator=numbers)
        return Backbone(
            name="projection",
            weights=values["weights"],
            module=trunk,
            features=features,
            groups=(("0.weight", "0.bias"), ("2.weight", "2.bias")),
            preprocessing=preprocessing or Scaling(width=width, scale=16.0),
            weights_hash="projection 1",
        )

    def preprocessing(self, values: Mapping[str, Any]) -> Scaling:
        return Scaling(**values)

    def policy(self, hparams: VectorHParams, data: Any, preprocessing: Scaling) -> Noise:
        if hparams.policy not in ("none", "noise"):
            raise ValueError(f"policy is {hparams.policy!r}, but must be none or noise")
        return Noise(hparams.noise if hparams.policy == "noise" else 0.0)

    def plain(self, preprocessing: Scaling) -> Noise:
        return Noise(0.0)

    def read(self, item: Any, preprocessing: Scaling) -> Tensor:
        values = np.loadtxt(item, delimiter=",") if isinstance(item, Path) else item
        vector = torch.as_tensor(np.asarray(values, dtype=np.float32))
        if vector.shape != (preprocessing.width,):
            raise ValueError(f"a vector is {list(vector.shape)}, but must be {[preprocessing.width]}")
        return vector

    def backbones(self, pattern: str | None) -> Sequence[BackboneInfo]:
        if not fnmatch.fnmatchcase("projection", f"*{pattern or ''}*"):
            return []
        return [BackboneInfo(name="projection", parameters=None, weights_at_hand=True, details={"width": 64})]

    def policies(self) -> Mapping[str, Sequence[str]]:
        return {"none": ["nothing"], "noise": Noise(0.1).describe()}


def _number(row: np.ndarray[Any, Any]) -> int:
    return int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "big")


VECTORS = Vectors()
