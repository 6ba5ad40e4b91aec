"""The spec: a YAML file, read without trust, checked whole, and turned into one frozen value."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from search.errors import BadInput, Problem, SpecError
from search.home import NAME
from trainables.hparams import Knob, knobs

if TYPE_CHECKING:
    from trainables.data import DataConfig

__all__ = ["Choice", "Domain", "Fixed", "Range", "SearchSpec", "read_spec"]

_MAX_BYTES = 256 * 1024
_SECRET = re.compile(r"://[^/@:]*:[^/@$]+@")  # a password inside an address
_SET_ELSEWHERE = {"max_epochs": "search.max_epochs", "seed": "search.seed"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _seconds(value: Any) -> Any:
    """`90`, `90s`, `30m`, `1h30m` or `2d` as seconds."""
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"\s*(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?\s*", value)
    if not parts or not any(parts.groups()):
        raise ValueError("must be a time such as 90s, 30m or 1h30m")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
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


def _no_secret(value: str | None) -> str | None:
    """Refuses a password in the text, which the home and MLflow would keep."""
    if value is not None and _SECRET.search(value):
        raise ValueError(
            "must not contain a password, since the spec is kept; put the address into an "
            "environment variable and write ${ITS_NAME} here"
        )
    if value is not None:
        _expanded(value)
    return value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Address = Annotated[str, AfterValidator(_no_secret)]
Direction = Literal["maximize", "minimize"]
Metric = Literal["val_accuracy", "val_macro_f1", "val_loss", "train_loss", "epoch_seconds"]


class Splits(_Section):
    """Shares of the data where its source brings no split of its own."""

    validation: float = Field(0.2, gt=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _leaves_some(self) -> Splits:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave a share for training")
        return self


class Limits(_Section):
    """Sizes of stratified subsets, for trying things out; absent: all."""

    train: int | None = Field(None, ge=2)
    validation: int | None = Field(None, ge=2)
    test: int | None = Field(None, ge=2)


class Data(_Section):
    """What is learned from."""

    source: str = Field(min_length=1)
    root: str | None = None
    image_size: int | None = Field(None, ge=8, le=1024)
    splits: Splits = Splits()
    limit: Limits = Limits()
    orientation_matters: bool = False
    unreadable: Literal["refuse", "skip"] = "refuse"

    @property
    def config(self) -> DataConfig:
        """The same, as `trainables.data` takes it."""
        from trainables.data import DataConfig  # not above: it takes torch with it, seconds

        return DataConfig(
            source=self.source,
            root=self.root,
            validation=self.splits.validation,
            test=self.splits.test,
            seed=self.splits.seed,
            train_limit=self.limit.train,
            validation_limit=self.limit.validation,
            test_limit=self.limit.test,
            unreadable=self.unreadable,
        )


class Search(_Section):
    """How the space is searched."""

    objective: dict[Metric, Direction] = Field({"val_accuracy": "maximize"}, min_length=1)
    trials: int = Field(32, ge=1)
    time: Duration | None = None
    max_epochs: int = Field(8, ge=1, le=10_000)
    sampler: Literal["tpe", "random", "gp", "cmaes", "qmc", "nsga2", "grid"] = "tpe"
    pruner: Literal["asha", "hyperband", "median", "wilcoxon", "none"] = "asha"
    seed: int = Field(0, ge=0)
    retries: int = Field(1, ge=0, le=10)

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


class Resources(_Section):
    """What one trial takes, and how many run at once (absent: as many as fit)."""

    cpu: float = Field(1, gt=0)
    gpu: float = Field(0, ge=0)
    concurrency: int | None = Field(None, ge=1)


class Tracking(_Section):
    """Where MLflow keeps runs and models."""

    uri: Address = "sqlite:///mlflow.db"
    experiment: str = Field("transfer-search", min_length=1, max_length=250)


class CacheSection(_Section):
    """The node's cache; `cache: off` computes everything anew."""

    enabled: bool = True
    dir: str | None = None
    max_gb: float = Field(20, gt=0)
    views: int | None = Field(4, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class Fixed(_Section):
    """A knob with one value."""

    sampled: ClassVar[bool] = False
    value: Any


class Choice(_Section):
    """A knob that is one of several values."""

    sampled: ClassVar[bool] = True

    values: tuple[Any, ...] = Field(min_length=1)


class Range(_Section):
    """A knob that is a number between two others, or one of the values of `or`."""

    sampled: ClassVar[bool] = True

    low: float
    high: float
    log: bool = False
    step: float | None = Field(None, gt=0)
    alternatives: tuple[Any, ...] = Field((), alias="or")


Domain = Fixed | Choice | Range


class SearchSpec(_Section):
    """Everything a search is: what `launch` runs and `resume` runs again."""

    name: str = Field(pattern=f"^{NAME.pattern}$")
    data: Data
    search: Search = Search()
    space: dict[str, Domain]
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    cache: CacheSection = CacheSection()
    storage: Address | None = None

    @property
    def storage_url(self) -> str | None:
        """Address of Optuna's storage, its variables filled in; None: the home's SQLite."""
        return None if self.storage is None else _expanded(self.storage)

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, its variables filled in."""
        return _expanded(self.tracking.uri)

    @property
    def multi_objective(self) -> bool:
        return len(self.search.objective) > 1

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
        return knobs()[name].default if value is None else value

    def to_yaml(self) -> str:
        """The spec as `launch` keeps it; reading it again gives an equal value."""
        plain = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        plain["space"] = {name: _plain_domain(domain) for name, domain in self.space.items()}
        return str(yaml.safe_dump(plain, sort_keys=False))


def _plain_domain(domain: Domain) -> Any:
    match domain:
        case Fixed():
            return domain.value
        case Choice():
            return list(domain.values)
        case Range():
            return domain.model_dump(mode="json", by_alias=True, exclude_unset=True)


def read_spec(source: Path | str, overrides: Sequence[str] = (), *, name: str | None = None) -> SearchSpec:
    """Reads a spec file (a `Path`) or text, applies `a.b=c` overrides, and checks all of it.

    Raises:
        SpecError: with every problem found.
    """
    title = str(source) if isinstance(source, Path) else "the spec"
    text = _text(source, title) if isinstance(source, Path) else source
    raw, lines = _parsed(text, title)
    problems = list(_override(raw, overrides))
    if name is not None:
        raw["name"] = name
    space, space_problems = _space(raw.get("space"))
    problems += space_problems
    checked = {**raw, "space": space}
    try:
        spec = SearchSpec.model_validate(checked)
    except ValidationError as error:
        problems += _problems(error)
        spec = None
    if spec is not None:
        problems += _cross_checks(spec)
    if problems or spec is None:
        raise SpecError(title, (_located(problem, lines) for problem in problems))
    return _absolute(spec)


def _text(path: Path, title: str) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SpecError(title, [Problem(place="file", given=None, message="is over 256 KiB")])
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        message = f"cannot be read ({reason}); give the path of a YAML file"
        raise SpecError(title, [Problem(place="file", given=str(path), message=message)]) from error


def _parsed(text: str, title: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The YAML's mapping, and the line of each dotted path in it."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise SpecError(
                title,
                [Problem(place="file", given=None, message="YAML aliases (*name) are not allowed")],
            )
        root = yaml.compose(text, yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "file"
        reason = getattr(error, "problem", None) or str(error)
        raise SpecError(
            title, [Problem(place=place, given=None, message=f"not valid YAML: {reason}")]
        ) from error
    if not isinstance(raw, dict):
        message = "must be a mapping with name, data, search and space; see examples/quickstart.yaml"
        raise SpecError(title, [Problem(place="file", given=None, message=message)])
    lines: dict[str, int] = {}
    duplicates = [
        Problem(place=place, given=None, message="is given twice; keep one")
        for place in _mark(root, "", lines)
    ]
    if duplicates:
        raise SpecError(title, (_located(problem, lines) for problem in duplicates))
    return raw, lines


def _mark(node: yaml.Node | None, prefix: str, lines: dict[str, int]) -> Iterator[str]:
    """Fills `lines`, and yields each path that stands twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = f"{prefix}{key.value}"
            if place in lines:
                yield place
            lines[place] = key.start_mark.line + 1
            yield from _mark(value, f"{place}.", lines)


def _override(raw: dict[str, Any], overrides: Sequence[str]) -> Iterator[Problem]:
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            yield Problem(
                place="--set",
                given=repr(override),
                message="must be path.to.key=value, e.g. search.trials=8",
            )
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        section = raw
        for key in keys[:-1]:
            inner = section.get(key)
            if not isinstance(inner, dict):
                inner = section[key] = {}
            section = inner
        section[keys[-1]] = value


def _space(raw: Any) -> tuple[dict[str, Domain], list[Problem]]:
    """The space's domains, and what is wrong with them."""
    if raw == "default":
        raw = {known.name: known.space for known in knobs().values() if known.space is not None}
    if raw is None:
        return {}, [Problem(place="space", given=None, message="is missing; `space: default` samples all")]
    if not isinstance(raw, dict):
        message = "must be `default` or a mapping of hyperparameters"
        return {}, [Problem(place="space", given=repr(raw), message=message)]
    domains: dict[str, Domain] = {}
    problems: list[Problem] = []
    for name, value in raw.items():
        known = knobs().get(str(name))
        place = f"space.{name}"
        if known is None:
            problems.append(Problem(place=place, given=None, message=_unknown(str(name), knobs())))
        elif name in _SET_ELSEWHERE:
            message = f"is not sampled; set {_SET_ELSEWHERE[name]}"
            problems.append(Problem(place=place, given=None, message=message))
        else:
            domain, wrong = _domain(known, value, place)
            problems += wrong
            if not wrong:
                domains[known.name] = domain
    if not problems:
        problems += _unread(domains)
    return domains, problems


def _domain(known: Knob, value: Any, place: str) -> tuple[Domain, list[Problem]]:
    if known.name == "sub_policies":
        good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10
        message = "must be the number of sub-policies to sample, from 1 to 10"
        wrong = [] if good else [Problem(place=place, given=repr(value), message=message)]
        return Fixed(value=value), wrong
    if isinstance(value, dict):
        return _range(known, value, place)
    values = value if isinstance(value, list) else [value]
    values = [_number(known, each) for each in values]
    problems = [
        Problem(place=place, given=repr(each), message=f"must be {known.allowed}")
        for each in values
        if not known.accepts(each)
    ]
    if not values:
        message = f"is an empty list; give values ({known.allowed}) or leave it out"
        problems.append(Problem(place=place, given="[]", message=message))
        return Fixed(value=None), problems
    if len(set(map(repr, values))) < len(values):
        problems.append(Problem(place=place, given=repr(values), message="names a value twice"))
    if isinstance(value, list) and len(values) > 1:
        return Choice(values=tuple(values)), problems
    return Fixed(value=values[0]), problems


def _number(known: Knob, value: Any) -> Any:
    """YAML reads 1e-4 as text; a knob that is a number takes it as one."""
    if known.low is not None and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if known.integer and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _range(known: Knob, value: Mapping[str, Any], place: str) -> tuple[Domain, list[Problem]]:
    given = str(dict(value))
    fallback = Range(low=0, high=1)
    if known.low is None or known.high is None:
        message = f"must not be a range; must be {known.allowed}, or a list of those"
        return fallback, [Problem(place=place, given=given, message=message)]
    try:
        domain = Range.model_validate(dict(value))
    except ValidationError as error:
        return fallback, [
            Problem(place=f"{place}.{problem.place}", given=problem.given, message=problem.message)
            for problem in _problems(error, Range)
        ]
    problems = []
    if not domain.low < domain.high:
        problems.append(f"is an empty range: low {domain.low:g} must be below high {domain.high:g}")
    if not (known.low <= domain.low and domain.high <= known.high):
        problems.append(f"must be {known.allowed}")
    if domain.log and domain.low <= 0:
        problems.append("a log range cannot hold 0 or less; raise low, or add `or: [0]`")
    if domain.log and domain.step is not None:
        problems.append("log and step exclude each other")
    if known.integer and any(number != int(number) for number in (domain.low, domain.high, domain.step or 1)):
        problems.append("low, high and step must be whole numbers")
    if not all(known.accepts(other) for other in domain.alternatives):
        problems.append(f"`or` must hold what is {known.allowed}")
    return domain, [Problem(place=place, given=given, message=problem) for problem in problems]


def _unread(domains: Mapping[str, Domain]) -> Iterator[Problem]:
    """Sampled knobs that no trial could ever read."""
    for name, domain in domains.items():
        if domain.sampled and not _reachable(name, domains):
            yield Problem(
                place=f"space.{name}",
                given=None,
                message=f"is sampled but nothing reads it: it needs {knobs()[name].condition}; "
                "allow that in the space, or leave this knob out",
            )


def _reachable(name: str, domains: Mapping[str, Domain]) -> bool:
    for other, allowed in knobs()[name].when.items():
        match domains.get(other, Fixed(value=knobs()[other].default)):
            case Fixed(value=value):
                possible: tuple[Any, ...] = (value,)
            case Choice(values=values):
                possible = values
            case Range():
                possible = allowed
        if not set(possible) & set(allowed) or not _reachable(other, domains):
            return False
    return True


def _cross_checks(spec: SearchSpec) -> Iterator[Problem]:
    if spec.data.image_size is not None and "image_size" in spec.space:
        message = "is given in data.image_size too; keep one"
        yield Problem(place="space.image_size", given=None, message=message)
    sampled = {name: domain for name, domain in spec.space.items() if domain.sampled}
    if spec.search.sampler == "grid":
        yield from _grid_problems(spec, sampled)
    if not sampled and spec.search.trials > 1 and "sub_policies" not in spec.space:
        message = "fixes every hyperparameter, so all trials would be alike; give some a list or range"
        yield Problem(place="space", given=None, message=message)


def _grid_problems(spec: SearchSpec, sampled: Mapping[str, Domain]) -> Iterator[Problem]:
    for name, domain in sampled.items():
        if isinstance(domain, Range) and domain.step is None:
            message = "needs a step, or a list of values, with the grid sampler"
            yield Problem(place=f"space.{name}", given=None, message=message)
    conditional = [name for name in spec.space if knobs()[name].when and name in sampled]
    if conditional or "sub_policies" in spec.space:
        message = "grid cannot sample a knob that is read only sometimes: " + ", ".join(conditional)
        yield Problem(place="search.sampler", given="grid", message=message + "; use tpe or random")
    points = math.prod(map(_points, sampled.values()))
    if spec.search.trials > points:
        message = f"must be at most {points}, the points of the grid"
        yield Problem(place="search.trials", given=str(spec.search.trials), message=message)


def _points(domain: Domain) -> int:
    match domain:
        case Choice(values=values):
            return len(values)
        case Range(low=low, high=high, step=float() as step):
            return math.floor((high - low) / step + 1e-9) + 1
    return 1


def _problems(error: ValidationError, model: type[BaseModel] = SearchSpec) -> Iterator[Problem]:
    for detail in error.errors():
        place = ".".join(str(part) for part in detail["loc"] if part != "[key]") or "file"
        message = detail["msg"].removeprefix("Value error, ")
        given: str | None = repr(detail["input"])
        if detail["type"] == "extra_forbidden":
            given, message = None, _unknown(str(detail["loc"][-1]), _siblings(model, detail["loc"][:-1]))
        elif detail["type"] == "missing":
            given, message = None, "is missing"
        elif given is not None and (len(given) > 80 or _SECRET.search(given)):
            given = None
        yield Problem(place=place, given=given, message=message[:1].lower() + message[1:])


def _siblings(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """The keys allowed in the section of `model` at `place`."""
    for part in place:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _unknown(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"is not a known key; {hint}allowed: {', '.join(known)}"


def _located(problem: Problem, lines: Mapping[str, int]) -> Problem:
    """The problem with the line of the closest path that the file holds."""
    place = problem.place
    while place and place not in lines:
        place = place.rpartition(".")[0]
    if not place:
        return problem
    return Problem(
        place=f"{problem.place} (line {lines[place]})", given=problem.given, message=problem.message
    )


def _absolute(spec: SearchSpec) -> SearchSpec:
    """The spec with paths that hold wherever a worker runs, as seen from this folder."""
    data = spec.data
    source = Path(data.source).expanduser()
    if os.sep in data.source or source.exists() or source.suffix in (".csv", ".parquet"):
        data = data.model_copy(update={"source": str(source.resolve())})
    if data.root is not None:
        data = data.model_copy(update={"root": str(Path(data.root).expanduser().resolve())})
    update: dict[str, Any] = {"data": data}
    uri = spec.tracking.uri
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        path = Path(uri.removeprefix("sqlite:///")).resolve()
        update["tracking"] = spec.tracking.model_copy(update={"uri": f"sqlite:///{path}"})
    if spec.cache.dir is not None:
        path = Path(spec.cache.dir).expanduser().resolve()
        update["cache"] = spec.cache.model_copy(update={"dir": str(path)})
    if "weights" in spec.space:
        update["space"] = {**spec.space, "weights": _absolute_weights(spec.space["weights"])}
    copy = spec.model_copy(update=update)
    return copy


def _absolute_weights(domain: Domain) -> Domain:
    def absolute(value: Any) -> Any:
        return value if value in ("pretrained", "none") else str(Path(value).expanduser().resolve())

    if isinstance(domain, Fixed):
        return Fixed(value=absolute(domain.value))
    assert isinstance(domain, Choice)
    return Choice(values=tuple(absolute(value) for value in domain.values))
