"""The sections of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from search.spec.section import Section
from search.spec.values import Address, Direction, Duration, Location, Metric
from trainables.errors import did_you_mean
from trainables.modalities import modality
from trainables.plugins import Registry, takes
from trainables.record import COSTS

__all__ = [
    "OF_IMAGES",
    "SAMPLERS",
    "Bounds",
    "CacheSection",
    "Data",
    "Finalists",
    "Limits",
    "Resources",
    "Search",
    "Splits",
    "Tracking",
]


class Splits(Section):
    """Shares of the data where its source brings no split of its own.

    With `folds: 5` a trial is worth what its heads have on training and validation images that each was not
    fitted to, one fifth after another; `repeats` draws the folds so often. For heads that are solved for.
    """

    validation: float = Field(0.2, gt=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    folds: int | None = Field(None, ge=2, le=20)
    repeats: int = Field(1, ge=1, le=20)

    @model_validator(mode="after")
    def _leaves_some(self) -> Splits:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave a share for training")
        if self.repeats > 1 and self.folds is None:
            raise ValueError("repeats are of folds; give folds too, such as {folds: 5, repeats: 3}")
        return self


class Limits(Section):
    """Sizes of stratified subsets, for trying things out; absent: all."""

    train: int | None = Field(None, ge=2)
    validation: int | None = Field(None, ge=2)
    test: int | None = Field(None, ge=2)


class Data(Section):
    """What is learned from.

    `modality` says of what kind the examples are. `image_size`, `orientation_matters` and `unreadable` are of
    images; `options` are what another modality needs, in its own words.

    `source` may be an address of a folder or a manifest, such as s3://bucket/folder: each node then fetches
    it once into its cache. An image with more than `max_pixels` is taken for a decompression bomb. Symbolic
    links are followed where they stay `inside` the source's folder, or to `anywhere`. Examples of one
    `group` (a column of the table, or a pattern of the file's path with one group in brackets) are never in
    two splits.
    """

    modality: str = "image"
    source: Location = Field(min_length=1)
    root: str | None = None
    image_size: int | None = Field(None, ge=8, le=1024)
    splits: Splits = Splits()
    limit: Limits = Limits()
    orientation_matters: bool = False
    unreadable: Literal["refuse", "skip"] = "refuse"
    max_pixels: int = Field(100_000_000, gt=0)
    links: Literal["inside", "anywhere"] = "inside"
    group: str | None = Field(None, min_length=1)
    options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _of_one_modality(self) -> Data:
        modality(self.modality)
        strange = sorted(OF_IMAGES & self.model_fields_set) if self.modality != "image" else []
        if strange:
            raise ValueError(
                f"{', '.join(strange)} are for images, but modality is {self.modality}; give what it needs "
                "as options"
            )
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The same, as the modality's `load` takes it."""
        of_images = {name: getattr(self, name) for name in sorted(OF_IMAGES - {"image_size"})}
        return {
            "source": self.source,
            "root": self.root,
            "validation": self.splits.validation,
            "test": self.splits.test,
            "seed": self.splits.seed,
            "train_limit": self.limit.train,
            "validation_limit": self.limit.validation,
            "test_limit": self.limit.test,
            **(of_images if self.modality == "image" else {}),
            **({} if self.group is None else {"group": self.group}),
            **(self.options or {}),
        }


OF_IMAGES = {"image_size", "orientation_matters", "unreadable", "max_pixels", "links"}


class Finalists(Section):
    """The search's best trials, run again on fresh seeds before one is called the winner."""

    top: int = Field(3, ge=1)
    seeds: int = Field(3, ge=2)  # one value has no spread


class Bounds(Section):
    """What a metric may be at most, or must be at least."""

    max: float | None = None
    min: float | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Bounds:
        if self.max is None and self.min is None:
            raise ValueError("must have max or min, such as {max: 5}")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError("must leave something between min and max")
        return self

    def above(self, value: float) -> float | None:
        """By how much a value is above `max`; below 0 where it is not."""
        return None if self.max is None else value - self.max

    def below(self, value: float) -> float | None:
        """By how much a value is below `min`; below 0 where it is not."""
        return None if self.min is None else self.min - value

    @property
    def told(self) -> str:
        """The same for a person."""
        parts = {"at least": self.min, "at most": self.max}
        return "must be " + " and ".join(
            f"{how} {value:g}" for how, value in parts.items() if value is not None
        )


def _check_sampler(name: str, build: Any) -> None:
    takes("it", build, seed="seed")


SAMPLERS = Registry(
    "samplers", "sampler", ("tpe", "random", "gp", "cmaes", "qmc", "nsga2", "grid"), _check_sampler
)
"""The names of all samplers; those that packages add are functions of `seed` that give one of Optuna's."""


def _known_sampler(name: str) -> str:
    if name not in SAMPLERS.names:
        known = ", ".join(map(repr, SAMPLERS.names))
        raise ValueError(f"must be one of {known}{did_you_mean(name, SAMPLERS.names)}")
    return name


_LARGEST_POOL = 64
AUTO: Final = "auto"
"""Of `search.ensemble`: where it is worth its time."""


def _pool_size(value: Any) -> Any:
    """How many trials an ensemble is chosen from; 0 where there is to be none."""
    if value is None or value is False:
        return 0
    is_size = isinstance(value, int) and value is not True and (value == 0 or 2 <= value <= _LARGEST_POOL)
    if value != AUTO and not is_size:
        raise ValueError(
            f"must be auto, false, or of how many of the best trials to choose, 2 to {_LARGEST_POOL}"
        )
    return value


class Search(Section):
    """How the space is searched.

    `objective` and `constraints` name metrics; a trial that misses a constraint, such as {latency_ms: {max:
    5}}, is never the best. `start_from` is the name, or the path of the home, of an earlier search, whose
    best configurations are tried first. `device_hours` bounds the hours that trials hold GPUs, or CPUs where
    they take no GPU. With `refit` the winner's configuration is trained once more in the end, on training and
    validation images together. With `ensemble: N` the best N trials' probabilities are averaged, if that is
    better than the winner alone; `auto` does so where fine-tunes are among the best of a search that solves
    heads too. With `conformal: 0.9` an export gives sets of classes too, which hold the true one of 90 % of
    new images.
    """

    objective: dict[Metric, Direction] = Field({"val_accuracy": "maximize"}, min_length=1)
    constraints: dict[Metric, Bounds] = Field(default_factory=dict)
    trials: int = Field(32, ge=1)
    time: Duration | None = None
    trial_time: Duration | None = None
    device_hours: float | None = Field(None, gt=0)
    max_epochs: int = Field(8, ge=1, le=10_000)
    sampler: Annotated[str, AfterValidator(_known_sampler)] = "tpe"
    pruner: Literal["asha", "hyperband", "median", "wilcoxon", "none"] = "asha"
    finalists: Finalists | None = None
    refit: bool = True
    ensemble: Annotated[int | Literal["auto"], BeforeValidator(_pool_size)] = AUTO
    conformal: float | None = Field(None, ge=0.5, le=0.999)
    seed: int = Field(0, ge=0)
    retries: int = Field(1, ge=0, le=10)
    start_from: str | None = Field(None, min_length=1)

    @property
    def costs(self) -> list[str]:
        """The costs of one model that it looks at."""
        return [name for name in (*self.objective, *self.constraints) if name in COSTS]

    @model_validator(mode="before")
    @classmethod
    def _yaml_none(cls, value: Any) -> Any:
        # A person who writes `pruner: null` or `~` means none.
        if isinstance(value, dict) and "pruner" in value and value["pruner"] is None:
            return {**value, "pruner": "none"}
        return value

    @model_validator(mode="after")
    def _prunable(self) -> Search:
        if len(self.objective) > 1 and self.pruner != "none":
            raise ValueError("pruner must be none with more than one objective: Optuna prunes by one")
        return self

    @model_validator(mode="after")
    def _with_winner(self) -> Search:
        for name in ("refit", "ensemble"):
            is_asked = name in self.model_fields_set and getattr(self, name) not in (0, AUTO)
            if is_asked and len(self.objective) > 1:
                raise ValueError(f"{name} needs one objective: a Pareto front has no winner; leave it out")
        return self

    @model_validator(mode="after")
    def _one_model(self) -> Search:
        if self.ensemble not in (0, AUTO) and self.costs:
            raise ValueError(
                f"ensemble is several models, which {', '.join(self.costs)} says nothing of; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _one_winner(self) -> Search:
        if len(self.objective) > 1 and self.finalists is not None:
            raise ValueError(
                "finalists need one objective, since a Pareto front has no winner; leave finalists out"
            )
        return self


class Resources(Section):
    """What one trial takes, and how many run at once (absent: as many as fit).

    `precision` is that of training a backbone: auto takes bf16 or fp16 on a GPU, fp32 on a CPU.
    """

    cpu: float = Field(1, gt=0)
    gpu: float = Field(0, ge=0)
    concurrency: int | None = Field(None, ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class Tracking(Section):
    """Where MLflow keeps runs and models."""

    uri: Address = "sqlite:///mlflow.db"
    experiment: str = Field("transfer-search", min_length=1, max_length=250)


class CacheSection(Section):
    """The node's cache; `cache: off` computes everything anew."""

    enabled: bool = True
    dir: str | None = None
    max_gb: float = Field(20, gt=0)
    views: int | None = Field(8, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value
