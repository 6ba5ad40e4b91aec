"""What installed packages add: objects that their entry points name, by group and name.

A package registers a policy, a backbone, a sampler or a modality under `transfer_search.GROUP`. Its code is
imported when its name is used, or when all are listed; a name never says where code is. A broken one breaks
nothing but what uses it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trainables.errors import UnknownName

__all__ = ["PluginError", "Registry", "takes"]


class PluginError(ValueError):
    """What an installed package adds cannot be used; the message names it, and why."""


class Registry:
    """The names of one kind: our own, and those that installed packages add.

    Args:
        group: of the entry points, after `transfer_search.`.
        what: one of them in words, such as `policy`.
        own: the names of this package's own, which nobody can take.
        check: raises `TypeError` or `ValueError` where an object that was loaded is none of the kind.
    """

    def __init__(self, group: str, what: str, own: Iterable[str], check: Callable[[str, Any], None]) -> None:
        self.group, self.what, self.own = group, what, tuple(own)
        self._check = check

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, our own first."""
        return (*self.own, *sorted(set(_installed(self.group)) - set(self.own)))

    @property
    def added(self) -> tuple[str, ...]:
        """The names that packages add."""
        return self.names[len(self.own) :]

    def load(self, name: str) -> Any:
        """What an installed package added as `name`.

        Raises:
            UnknownName: where nothing has the name.
            PluginError: where it cannot be used.
        """
        found = _installed(self.group).get(name, ())
        if name in self.own or not found:
            raise UnknownName(self.what, name, self.names)
        if len(found) > 1:
            raise PluginError(
                f"the {self.what} {name!r} is in more than one package: "
                f"{', '.join(map(_origin, found))}; uninstall all but one"
            )
        return _loaded(found[0], self)

    def origin(self, name: str) -> str:
        """The package that adds `name`, and its version."""
        return _origin(_installed(self.group)[name][0])

    def problems(self, names: Iterable[str] | None = None) -> list[str]:
        """What is wrong with what packages add, a message for each; `names`: of these alone."""
        told = []
        for name, found in sorted(_installed(self.group).items()):
            if names is not None and name not in names:
                continue
            if name in self.own:
                told += [
                    f"the {self.what} {name!r} of {_origin(each)} is not used: the name is taken by "
                    "transfer-search itself; the package must give it another"
                    for each in found
                ]
                continue
            try:
                self.load(name)
            except PluginError as error:
                told.append(str(error))
        return told

    def checked(self, name: str, loaded: Any) -> None:
        self._check(name, loaded)


def takes(what: str, called: Callable[..., Any], *arguments: str, **named: str) -> None:
    """Sees that a function can be called so.

    Raises:
        TypeError: where it cannot, with how it must be.
    """
    shape = ", ".join([*arguments, *(f"{name}=" for name in named)])
    if not callable(called):
        raise TypeError(f"{what} is {type(called).__name__}, but must be callable with ({shape})")
    try:
        inspect.signature(called).bind(*arguments, **named)
    except TypeError as error:
        raise TypeError(f"{what} must be callable with ({shape}): {error}") from error


@cache
def _installed(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=f"transfer_search.{group}"):
        if point not in found.get(point.name, ()):  # a folder that is on the path twice
            found[point.name] = (*found.get(point.name, ()), point)
    return found


@cache
def _loaded(point: EntryPoint, registry: Registry) -> Any:
    try:
        loaded = point.load()
        registry.checked(point.name, loaded)
    except Exception as error:  # a stranger's module raises whatever it likes
        raise PluginError(
            f"the {registry.what} {point.name!r} of {_origin(point)} ({point.value}) cannot be used: "
            f"{type(error).__name__}: {error}; mend the package or uninstall it"
        ) from error
    return loaded


def _origin(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
