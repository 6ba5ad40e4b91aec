"""The spec: a YAML file, read without trust, checked whole, and turned into one frozen value."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
)

from search.errors import Problem, SpecError
from search.home import NAME
from search.spec.document import located, override, parsed, text_of
from search.spec.domains import Choice, Domain, Fixed, Range, plain, points, read_space
from search.spec.places import placed, portable
from search.spec.section import Section, problems_of
from search.spec.sections import (
    CacheSection,
    Data,
    Resources,
    Search,
    Tracking,
)
from search.spec.values import (
    ELSEWHERE,
    SMALLER_IS_BETTER,
    STORAGE_VARIABLE,
    TRACKING_VARIABLE,
    Address,
    Location,
    expanded,
    shared,
    with_driver,
)
from trainables.errors import UnknownName
from trainables.modalities import modality
from trainables.modality import Modality
from trainables.plugins import PluginError
from trainables.training.hparams import HParams
from trainables.training.knobs import Knob, knobs

__all__ = ["SearchSpec", "read_spec"]


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
    checkpoints: Annotated[Location, AfterValidator(shared)] | None = None

    @property
    def storage_url(self) -> str | None:
        """Address of Optuna's storage, its variables filled in; None: the home's SQLite."""
        return None if self.storage is None else with_driver(expanded(self.storage))

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, its variables filled in."""
        return expanded(self.tracking.uri)

    @property
    def sampled(self) -> list[str]:
        """The names of the hyperparameters that the search varies."""
        return [name for name, domain in self.space.items() if domain.sampled]

    @property
    def multi_objective(self) -> bool:
        return len(self.search.objective) > 1

    @property
    def modality(self) -> Modality[Any]:
        """What the trials are trials of."""
        return modality(self.data.modality)

    @property
    def items(self) -> str:
        """What examples of the data are called, such as `images`."""
        return f"{self.modality.item}s"

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
            if direction != (opposite := "minimize" if metric in SMALLER_IS_BETTER else "maximize")
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

    def to_yaml(self, home: Path | None = None) -> str:
        """The spec as text; reading it again gives an equal value.

        Args:
            home: the folder that will keep it: paths of the project are told from there; None: absolute ones.
        """
        values = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        values["space"] = {name: plain(domain) for name, domain in self.space.items()}
        kept = values if home is None else portable(values, home)
        return str(yaml.safe_dump(kept, sort_keys=False))


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
    if isinstance(source, Path):
        raw = placed(raw, source.parent)
    space, space_problems = read_space(raw.get("space"), _knobs(raw), _given_with_data(raw))
    problems += space_problems
    checked = {**raw, "space": space}
    try:
        spec = SearchSpec.model_validate(checked, context={ELSEWHERE: elsewhere})
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
    if spec.data.splits.folds is not None:
        yield from _fold_problems(spec)
    if spec.search.sampler == "grid":
        yield from _grid_problems(spec, sampled)
    has_rows = any(spec.knobs[name].rows is not None for name in spec.space)
    if not sampled and spec.search.trials > 1 and not has_rows:
        message = "fixes every hyperparameter, so all trials would be alike; give some a list or range"
        yield Problem(place="space", given=None, message=message)


def _fold_problems(spec: SearchSpec) -> Iterator[Problem]:
    """What in the space is no head that is solved for on a frozen backbone."""
    allowed = {"strategy": ("probe",), "solver": ("ridge", "logistic"), "head": ("linear",)}
    for name, known in allowed.items():
        others = [value for value in _values(spec.domain(name)) if value not in known]
        if others:
            yield Problem(
                place=f"space.{name}",
                given=", ".join(map(repr, others)),
                message=f"data.splits.folds is for heads that are solved for: {name} must be "
                f"{' or '.join(known)}; leave folds out for a search that takes steps",
            )


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
    if "uri" not in spec.tracking.model_fields_set and TRACKING_VARIABLE in os.environ:
        update["tracking"] = spec.tracking.model_copy(update={"uri": f"${{{TRACKING_VARIABLE}}}"})
    else:
        update["tracking"] = spec.tracking.model_copy(update={"uri": _absolute_sqlite(spec.tracking.uri)})
    if "storage" not in spec.model_fields_set:
        # Written down even where there is none, so that `resume` looks where `launch` wrote.
        known = STORAGE_VARIABLE in os.environ
        update["storage"] = f"${{{STORAGE_VARIABLE}}}" if known else None
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
