"""The spec: a YAML file, read without trust, checked whole, and turned into one frozen value."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from search.errors import BadInput, Problem, SpecError
from search.home import NAME
from search.spec.document import located, override, parsed, text_of
from search.spec.domains import Choice, Domain, Fixed, Range, plain, points, read_space
from search.spec.section import SECRET, Section, problems_of
from trainables.errors import UnknownName, did_you_mean
from trainables.modalities import modality
from trainables.modality import Modality
from trainables.plugins import PluginError, Registry, takes
from trainables.training.hparams import HParams, Knob, knobs

__all__ = ["SAMPLERS", "SearchSpec", "read_spec", "seconds_of", "with_driver"]


_AMOUNT = r"\d+(?:\.\d+)?"


def _seconds(value: Any) -> Any:
    """`90`, `90s`, `30m`, `1h30m` or `2d` as seconds."""
    if not isinstance(value, str):
        return value
    parts = re.fullmatch("".join(rf"(?:({_AMOUNT}){unit})?" for unit in "dhms"), re.sub(r"\s", "", value))
    if not parts or not any(parts.groups()):
        raise ValueError("must be a time such as 90s, 30m, 1.5h or 1h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def seconds_of(text: str) -> float:
    """A time such as 90s, 30m or 1h30m in seconds.

    Raises:
        BadInput: if it is none.
    """
    try:
        return float(_seconds(text))
    except ValueError as error:
        raise BadInput(f"the time {text!r} {error}") from error


def _expanded(value: str) -> str:
    """`value` with ${VARIABLE} taken from the environment."""
    missing = [name for name in re.findall(r"\$\{(\w+)\}", value) if name not in os.environ]
    if missing:
        raise ValueError(f"needs the environment variable {', '.join(missing)}, which is not set")
    return re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], value)


def with_driver(url: str) -> str:
    """A database's address with the driver that the package's extras install, whatever the default is."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def _no_secret(value: str | None, info: ValidationInfo) -> str | None:
    """Refuses a password in the text, which the home and MLflow would keep."""
    if value is not None and SECRET.search(value):
        raise ValueError(
            "must not contain a password, since the spec is kept; put the address into an "
            "environment variable and write ${ITS_NAME} here"
        )
    if value is not None and not (info.context or {}).get(_ELSEWHERE):
        _expanded(value)
    return value


_KEY = re.compile(r"://[^/?]*:|[?&][^=&]*(secret|key|token|password)[^=&]*=", re.IGNORECASE)
"""What an address of files has where it holds a key; no bucket has a port."""


def _keyless(value: str) -> str:
    """Refuses a key or a password in an address of files."""
    if _KEY.search(value):
        raise ValueError(
            "must not contain a key or a password; each machine's environment has them (for S3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or its role does"
        )
    return value


def _shared(value: str) -> str:
    if not (value.startswith("/") or "://" in value):
        raise ValueError("must be an address such as s3://bucket/prefix, or an absolute path")
    return value


_SMALLER_IS_BETTER = ("val_loss", "train_loss", "epoch_seconds")
_ELSEWHERE = "elsewhere"
_STORAGE_VARIABLE = "TRANSFER_SEARCH_STORAGE"
_TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"

Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Address = Annotated[str, AfterValidator(_no_secret)]
Location = Annotated[str, AfterValidator(_keyless)]
Direction = Literal["maximize", "minimize"]
Metric = Literal["val_accuracy", "val_macro_f1", "val_loss", "train_loss", "epoch_seconds"]


class Splits(Section):
    """Shares of the data where its source brings no split of its own."""

    validation: float = Field(0.2, gt=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _leaves_some(self) -> Splits:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave a share for training")
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
    links are followed where they stay `inside` the source's folder, or to `anywhere`.
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
    options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _of_one_modality(self) -> Data:
        modality(self.modality)
        strange = sorted(_OF_IMAGES & self.model_fields_set) if self.modality != "image" else []
        if strange:
            raise ValueError(
                f"{', '.join(strange)} are for images, but modality is {self.modality}; give what it needs "
                "as options"
            )
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The same, as the modality's `load` takes it."""
        of_images = {name: getattr(self, name) for name in sorted(_OF_IMAGES - {"image_size"})}
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
            **(self.options or {}),
        }


_OF_IMAGES = {"image_size", "orientation_matters", "unreadable", "max_pixels", "links"}


class Finalists(Section):
    """The search's best trials, run again on fresh seeds before one is called the winner."""

    top: int = Field(3, ge=1)
    seeds: int = Field(3, ge=2)  # one value has no spread


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


class Search(Section):
    """How the space is searched.

    `start_from` is the name, or the path of the home, of an earlier search, whose best configurations are
    tried first.
    """

    objective: dict[Metric, Direction] = Field({"val_accuracy": "maximize"}, min_length=1)
    trials: int = Field(32, ge=1)
    time: Duration | None = None
    trial_time: Duration | None = None
    max_epochs: int = Field(8, ge=1, le=10_000)
    sampler: Annotated[str, AfterValidator(_known_sampler)] = "tpe"
    pruner: Literal["asha", "hyperband", "median", "wilcoxon", "none"] = "asha"
    finalists: Finalists | None = None
    seed: int = Field(0, ge=0)
    retries: int = Field(1, ge=0, le=10)
    start_from: str | None = Field(None, min_length=1)

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


class SearchSpec(Section):
    """Everything a search is: what `launch` runs and `resume` runs again.

    Running trials keep states and models in the home, which all nodes must then share; or at
    `checkpoints`, an address such as s3://bucket/prefix, from where a trial's model comes home as it ends.
    """

    name: str = Field(pattern=f"^{NAME.pattern}$")
    data: Data
    search: Search = Search()
    space: dict[str, Domain]
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    cache: CacheSection = CacheSection()
    storage: Address | None = None
    checkpoints: Annotated[Location, AfterValidator(_shared)] | None = None

    @property
    def storage_url(self) -> str | None:
        """Address of Optuna's storage, its variables filled in; None: the home's SQLite."""
        return None if self.storage is None else with_driver(_expanded(self.storage))

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, its variables filled in."""
        return _expanded(self.tracking.uri)

    @property
    def multi_objective(self) -> bool:
        return len(self.search.objective) > 1

    @property
    def modality(self) -> Modality[Any]:
        """What the trials are trials of."""
        return modality(self.data.modality)

    @property
    def hparams(self) -> type[HParams]:
        """What a trial can vary."""
        kind: type[HParams] = self.modality.hparams
        return kind

    @property
    def knobs(self) -> Mapping[str, Knob]:
        """What a trial can vary, one by one."""
        return knobs(self.hparams)

    @property
    def warnings(self) -> list[str]:
        """What is allowed, and probably not meant."""
        return [
            f"WARNING: search.objective asks to {direction} {metric}; did you mean {opposite}?"
            for metric, direction in self.search.objective.items()
            if direction != (opposite := "minimize" if metric in _SMALLER_IS_BETTER else "maximize")
        ]

    def domain(self, name: str) -> Domain:
        """What the knob `name` is drawn from; its default where the spec is silent."""
        return self.space.get(name, Fixed(value=self.default(name)))

    def default(self, name: str) -> Any:
        """The knob's value where the space does not name it."""
        own = {
            "max_epochs": self.search.max_epochs,
            "image_size": self.data.image_size,
        }
        value = own.get(name)
        return self.knobs[name].default if value is None else value

    def to_yaml(self) -> str:
        """The spec as `launch` keeps it; reading it again gives an equal value."""
        values = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        values["space"] = {name: plain(domain) for name, domain in self.space.items()}
        return str(yaml.safe_dump(values, sort_keys=False))


def read_spec(
    source: Path | str, overrides: Sequence[str] = (), *, name: str | None = None, elsewhere: bool = False
) -> SearchSpec:
    """Reads a spec file (a `Path`) or text, applies `a.b=c` overrides, and checks all of it.

    Args:
        source: the file, or what is in it.
        overrides: values in place of the spec's.
        name: a name in place of the spec's.
        elsewhere: whether it is for other machines, whose paths and variables are not looked at.

    Raises:
        SpecError: with every problem found.
    """
    title = str(source) if isinstance(source, Path) else "the spec"
    text = text_of(source, title) if isinstance(source, Path) else source
    raw, lines = parsed(text, title)
    problems = list(override(raw, overrides))
    if name is not None:
        raw["name"] = name
    space, space_problems = read_space(raw.get("space"), _knobs(raw), _given_with_data(raw))
    problems += space_problems
    checked = {**raw, "space": space}
    try:
        spec = SearchSpec.model_validate(checked, context={_ELSEWHERE: elsewhere})
    except ValidationError as error:
        problems += problems_of(error, SearchSpec)
        spec = None
    if spec is not None:
        problems += _cross_checks(spec) if not space_problems else ()
        problems += _paths_here(spec) if elsewhere else ()
    if problems or spec is None:
        raise SpecError(title, (located(problem, lines) for problem in problems))
    return spec if elsewhere else _absolute(spec)


def _knobs(raw: Mapping[str, Any]) -> Mapping[str, Knob]:
    """What the trials of a spec can vary; an unknown modality, which is said elsewhere, counts as images."""
    data = raw.get("data")
    name = data.get("modality", "image") if isinstance(data, dict) else "image"
    try:
        return knobs(modality(name).hparams)
    except (UnknownName, PluginError, TypeError):
        return knobs(modality("image").hparams)


def _given_with_data(raw: Mapping[str, Any]) -> set[str]:
    """The knobs that a spec's data give a value to."""
    data = raw.get("data")
    return {"image_size"} if isinstance(data, dict) and data.get("image_size") is not None else set()


def _paths_here(spec: SearchSpec) -> Iterator[Problem]:
    """Paths that mean something on this machine alone, in a spec for others."""
    weights = spec.space.get("weights")
    given = {
        "data.source": [spec.data.source] if _is_path(spec.data.source) else [],
        "data.root": [spec.data.root] if spec.data.root else [],
        "search.start_from": [start] if os.sep in (start := spec.search.start_from or "") else [],
        "cache.dir": [spec.cache.dir] if spec.cache.dir else [],
        "space.weights": [each for each in _values(weights) if each not in _WEIGHTS] if weights else [],
        "tracking.uri": _RELATIVE_SQLITE.findall(spec.tracking.uri)
        if "uri" in spec.tracking.model_fields_set
        else [],
    }
    for place, paths in given.items():
        for path in paths:
            if not str(path).startswith(("/", "~")):
                message = "must be an absolute path that every node of the cluster has"
                if place == "data.source":
                    message += ", or an address such as s3://bucket/folder"
                if place == "tracking.uri":
                    message = "must be a server's URL; leave it out for the one that the cluster's head names"
                yield Problem(place=place, given=repr(path), message=message)


def _is_path(source: str) -> bool:
    return "://" not in source and (
        os.sep in source or Path(source).suffix in (".csv", ".tsv", ".jsonl", ".parquet")
    )


def _cross_checks(spec: SearchSpec) -> Iterator[Problem]:
    if spec.data.image_size is not None and "image_size" in spec.space:
        message = "is given in data.image_size too; keep one"
        yield Problem(place="space.image_size", given=None, message=message)
    sampled = {name: domain for name, domain in spec.space.items() if domain.sampled}
    if spec.search.sampler == "grid":
        yield from _grid_problems(spec, sampled)
    has_rows = any(spec.knobs[name].rows is not None for name in spec.space)
    if not sampled and spec.search.trials > 1 and not has_rows:
        message = "fixes every hyperparameter, so all trials would be alike; give some a list or range"
        yield Problem(place="space", given=None, message=message)


def _grid_problems(spec: SearchSpec, sampled: Mapping[str, Domain]) -> Iterator[Problem]:
    for name, domain in sampled.items():
        if isinstance(domain, Range) and domain.step is None:
            message = "needs a step, or a list of values, with the grid sampler"
            yield Problem(place=f"space.{name}", given=None, message=message)
    conditional = [name for name in spec.space if spec.knobs[name].when and name in sampled]
    if conditional or any(spec.knobs[name].rows is not None for name in spec.space):
        message = "grid cannot sample a knob that is read only sometimes: " + ", ".join(conditional)
        yield Problem(place="search.sampler", given="grid", message=message + "; use tpe or random")
    if spec.search.start_from is not None:
        message = "has no use with the grid sampler, which runs every point of the grid; leave it out"
        yield Problem(place="search.start_from", given=repr(spec.search.start_from), message=message)
    size = math.prod(map(points, sampled.values()))
    if spec.search.trials > size:
        message = f"must be at most {size}, the points of the grid"
        yield Problem(place="search.trials", given=str(spec.search.trials), message=message)


def _absolute(spec: SearchSpec) -> SearchSpec:
    """The spec with paths that hold wherever a worker runs, as seen from this folder."""
    data = spec.data
    source = Path(data.source).expanduser()
    if _is_path(data.source) or ("://" not in data.source and source.exists()):
        data = data.model_copy(update={"source": str(source.resolve())})
    if data.root is not None:
        data = data.model_copy(update={"root": str(Path(data.root).expanduser().resolve())})
    update: dict[str, Any] = {"data": data}
    if spec.search.start_from is not None and os.sep in spec.search.start_from:
        path = Path(spec.search.start_from).expanduser().resolve()
        update["search"] = spec.search.model_copy(update={"start_from": str(path)})
    if "uri" not in spec.tracking.model_fields_set and _TRACKING_VARIABLE in os.environ:
        update["tracking"] = spec.tracking.model_copy(update={"uri": f"${{{_TRACKING_VARIABLE}}}"})
    else:
        update["tracking"] = spec.tracking.model_copy(update={"uri": _absolute_sqlite(spec.tracking.uri)})
    if "storage" not in spec.model_fields_set:
        # Written down even where there is none, so that `resume` looks where `launch` wrote.
        known = _STORAGE_VARIABLE in os.environ
        update["storage"] = f"${{{_STORAGE_VARIABLE}}}" if known else None
    elif spec.storage is not None:
        update["storage"] = _absolute_sqlite(spec.storage)
    if spec.cache.dir is not None:
        path = Path(spec.cache.dir).expanduser().resolve()
        update["cache"] = spec.cache.model_copy(update={"dir": str(path)})
    if "weights" in spec.space:
        update["space"] = {**spec.space, "weights": _absolute_weights(spec.space["weights"])}
    copy = spec.model_copy(update=update)
    return copy


def _absolute_sqlite(uri: str) -> str:
    """The address of a file of SQLite that holds in every folder; any other as it is."""
    relative = _RELATIVE_SQLITE.fullmatch(uri)
    return uri if relative is None else f"sqlite:///{Path(relative[1]).expanduser().resolve()}"


_RELATIVE_SQLITE = re.compile(r"sqlite:///(?![/$]|:memory:|file:)(.*)")
_WEIGHTS = ("pretrained", "none")


def _values(domain: Domain) -> tuple[Any, ...]:
    return domain.values if isinstance(domain, Choice) else (getattr(domain, "value", None),)


def _absolute_weights(domain: Domain) -> Domain:
    def absolute(value: Any) -> Any:
        return value if value in _WEIGHTS else str(Path(value).expanduser().resolve())

    if isinstance(domain, Fixed):
        return Fixed(value=absolute(domain.value))
    assert isinstance(domain, Choice)
    return Choice(values=tuple(absolute(value) for value in domain.values))
