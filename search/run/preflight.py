"""Everything that would keep a search from running, told before anything is written.

`launch`, its dry run and `resume` ask the same, so that none of them approves what another refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from search.errors import BadInput, ExperimentDeleted, Problem, SpecError, TrackingError, TransferSearchError
from search.home import Home, is_inside
from search.run.capacity import Capacity
from search.run.ray_session import cluster_ray
from search.spec.search_spec import SearchSpec
from search.study.earlier import start_of
from search.study.search_study import SearchStudy
from search.tracking.stores import check_store

if TYPE_CHECKING:
    from search.run.planning import Plan, Progress

__all__ = ["planned", "preflight", "refusals"]


def preflight(spec: SearchSpec, home: Home, progress: Progress | None = None) -> Plan:
    """What a new search would run.

    Raises:
        SpecError: with everything that would keep it from running.
        Refused: if MLflow does not know the user.
        BadInput: if the home is another search's.
    """
    home.check_free()
    return planned(spec, home, progress, refusals(spec, home))


def refusals(
    spec: SearchSpec, home: Home, *, is_new: bool = True, tell: Callable[[str], None] = lambda text: None
) -> list[Problem]:
    """What the machine, the storage or MLflow refuses; found at once, before anything is started.

    A search that is not new goes on where its server is away, or its experiment was deleted: the outbox keeps
    what MLflow does not take. `tell` is told so.

    Raises:
        Refused: if MLflow does not know the user.
    """
    problems = _capacity_problems(spec)
    if is_new:
        problems += _name_problems(spec, home)
        problems += _start_problems(spec, home)
    if is_new or spec.tracking_uri.startswith("sqlite:"):
        problems += _store_problems(spec, None if is_new else tell)
    return problems


def planned(
    spec: SearchSpec, home: Home, progress: Progress | None, problems: Sequence[Problem] = ()
) -> Plan:
    """The plan, unless there are `problems` already.

    Raises:
        SpecError: with the problems and those that the plan has.
    """
    from search.run.planning import plan  # not above: it takes torch with it, seconds

    try:
        found = plan(spec, home, progress)
    except SpecError as error:
        raise SpecError(f"search {spec.name}", [*problems, *error.problems]) from error
    if problems:
        raise SpecError(f"search {spec.name}", problems)
    return found


def _capacity_problems(spec: SearchSpec) -> list[Problem]:
    if is_inside():
        cluster_ray()
    try:
        Capacity.check(spec)
    except BadInput as error:
        return [Problem(place="resources", given=None, message=str(error))]
    return []


def _start_problems(spec: SearchSpec, home: Home) -> list[Problem]:
    try:
        start_of(spec, home)
    except TransferSearchError as error:
        return [Problem(place="search.start_from", given=repr(spec.search.start_from), message=str(error))]
    return []


def _store_problems(spec: SearchSpec, tell: Callable[[str], None] | None) -> list[Problem]:
    try:
        check_store(spec)
    except ExperimentDeleted as error:
        if tell is None:
            return [Problem(place="tracking", given=None, message=str(error))]
        repair = f"`transfer-search doctor {spec.name} --repair`"
        tell(f"{error}; the trials go on, and {repair} sends later what it has missed")
    except TrackingError as error:
        return [Problem(place="tracking", given=None, message=str(error))]
    return []


def _name_problems(spec: SearchSpec, home: Home) -> list[Problem]:
    """The name's other owner in a storage that searches share."""
    if spec.storage_url is None:
        return []
    try:
        is_taken = SearchStudy.is_taken(spec, home)
    except BadInput as error:
        return [Problem(place="storage", given=None, message=str(error))]
    if not is_taken:
        return []
    message = (
        f"is the name of another search in the storage {spec.storage}; give this one another with --name, "
        "or another storage"
    )
    return [Problem(place="name", given=repr(spec.name), message=message)]
