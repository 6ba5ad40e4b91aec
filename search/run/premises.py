"""What a search was launched on: its data and its space, which `resume` checks are still the same.

Values of trials that saw other images, or that were drawn from another space, cannot be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from search.errors import BadInput
from search.spec.domains import Domain, Fixed, plain
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy

if TYPE_CHECKING:
    from search.run.planning import Plan
    from trainables.modality import Data

__all__ = ["MOVABLE", "Premises", "check_movable", "data_change"]

MOVABLE = (
    "cache",
    "data.root",
    "data.source",
    "resources",
    "search.conformal",
    "search.ensemble",
    "search.refit",
    "space.weights",
    "tracking.experiment",
    "tracking.uri",
)
"""What `resume --set` may change: where things are, what trials take and what is made of the winner."""


@dataclass(frozen=True, kw_only=True)
class Premises:
    """What the values of a search's trials depend on.

    Attributes:
        data: fingerprint of pixels, labels, classes and splits.
        classes: their names.
        images: how many each split has.
        space: the domains of the hyperparameters, as a spec writes them.
        weights: digests of the weights that trials start from, by what they are called.
        search: the objective, the constraints, and for how many epochs trials may run.
    """

    data: str
    classes: Sequence[str]
    images: dict[str, int]
    space: dict[str, Any]
    weights: dict[str, str]
    search: dict[str, Any]

    @classmethod
    def of(cls, spec: SearchSpec, plan: Plan) -> Self:
        """Those of a plan."""
        return cls(
            **_of_data(plan.data),
            space={name: plain(domain) for name, domain in spec.space.items() if not _is_file(name, domain)},
            weights=dict(plan.weights),
            search=_compared(spec),
        )

    def keep(self, study: SearchStudy) -> None:
        """Writes them down in the study."""
        study.premises = self._plain()

    def check(self, study: SearchStudy) -> None:
        """Compares them with those of the launch, where these are known.

        Raises:
            BadInput: if they differ, with the difference.
        """
        if study.premises is None:
            return  # launched before they were written down
        changes = list(self._changes(study.premises))
        if changes:
            raise BadInput(
                f"the search {study.spec.name!r} cannot go on, since its trials could not be compared any "
                f"more: {'; '.join(changes)}. Put back what there was, or launch another search"
            )

    def _plain(self) -> dict[str, Any]:
        """As a database gives them back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    def _changes(self, launched: dict[str, Any]) -> Iterator[str]:
        now = self._plain()
        if change := _difference(launched, now):
            yield f"the data has changed ({change})"
        for part, called in (("space", "the space"), ("search", "the search")):
            was, is_now = launched.get(part, now[part]), now[part]
            changed = [name for name in {**was, **is_now} if was.get(name) != is_now.get(name)]
            if changed:
                told = [f"{name} was {was.get(name)}, is {is_now.get(name)}" for name in changed]
                yield f"{called} has changed ({', '.join(told)})"
        if (before := launched.get("weights")) is not None and before != now["weights"]:
            yield f"the weights have changed ({_weights_change(before, now['weights'])})"


def _compared(spec: SearchSpec) -> dict[str, Any]:
    """What trials are compared by; earlier versions knew no constraints."""
    known = {"objective", "max_epochs", *(["constraints"] if spec.search.constraints else [])}
    return spec.search.model_dump(mode="json", include=known)


def _is_file(name: str, domain: Domain) -> bool:
    """Whether a domain names one file of weights, which may lie anywhere; of several the study knows."""
    return name == "weights" and isinstance(domain, Fixed)


def data_change(launched: Mapping[str, Any], data: Data) -> str | None:
    """How data differs from that of a launch; None where it does not, or nobody knows."""
    return _difference(launched, _of_data(data)) if launched else None


def _of_data(data: Data) -> dict[str, Any]:
    """What is written down of data."""
    return {
        "data": data.fingerprint,
        "classes": list(data.classes),
        "images": {split: len(places) for split, places in data.splits.items()},
    }


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    if was["data"] == now["data"]:
        return None
    if was["classes"] != now["classes"]:
        gone = [name for name in was["classes"] if name not in now["classes"]]
        new = [name for name in now["classes"] if name not in was["classes"]]
        return f"classes gone: {', '.join(gone[:10]) or 'none'}; new: {', '.join(new[:10]) or 'none'}"
    counts = [
        f"{split} {count} -> {now['images'].get(split)}"
        for split, count in was["images"].items()
        if count != now["images"].get(split)
    ]
    return ", ".join(counts) or "as many as before, but other ones, or other labels"


def _weights_change(was: dict[str, str], now: dict[str, str]) -> str:
    told = []
    for name in {**was, **now}:
        before, after = (each[name][:12] if name in each else "not there" for each in (was, now))
        if before != after:
            told.append(f"{name} {before} -> {after}")
    return ", ".join(told)


def check_movable(overrides: Sequence[str]) -> None:
    """Checks that `resume --set` changes only what may change.

    Raises:
        BadInput: if it changes anything else.
    """
    wrong = [each for each in overrides if not _is_movable(each.partition("=")[0])]
    if wrong:
        raise BadInput(
            f"--set {wrong[0]!r}: of a search that was launched, only {', '.join(MOVABLE)} may be set; "
            "launch another search for the rest"
        )


def _is_movable(path: str) -> bool:
    return any(path == allowed or path.startswith(f"{allowed}.") for allowed in MOVABLE)
