"""torch without its compiler, which nothing here uses and which takes as long to import as the rest of it.

torchvision and timm import the compiler to keep it from some of their functions, and an optimizer takes it
along at its first step for the same reason. Here nothing is said to a compiler that is not there; whoever
imports it has it as ever. Written for torch 2.11 and torchvision 0.26.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["install"]

_COMPILER, _ASKED = "torch._dynamo", "torch._dynamo.utils"
_MARKED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
"""An optimizer's methods that its compiler is kept from."""


def install() -> None:
    """From now on torch and torchvision are imported, and used, without the compiler."""
    if _COMPILER in sys.modules or any(isinstance(each, _Finder) for each in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    if "torch" in sys.modules:
        _spare()


def _spare() -> None:
    """Lets functions be kept from the compiler, and optimizers be used, without importing it."""
    from torch import compiler
    from torch.optim import SGD, Adam, Optimizer

    disable = compiler.disable

    @functools.wraps(disable)
    def lean(fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        if _COMPILER in sys.modules:
            return disable(fn, *args, **kwargs)
        return (lambda each: each) if fn is None else fn

    compiler.disable = lean
    for name in _MARKED:
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None:
            method.__dynamo_disable = method
    for kind in (SGD, Adam):
        kind.step = _plain(kind.step)  # type: ignore[method-assign]


def _plain(step: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer's step without the breaks in a graph that it has for the compiler."""
    from torch import no_grad

    inner = inspect.unwrap(step)

    @functools.wraps(inner)
    def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _COMPILER in sys.modules or self.defaults["differentiable"]:
            return step(self, *args, **kwargs)
        with no_grad():
            return inner(self, *args, **kwargs)

    return plain


class _StandIn(ModuleType):
    """Takes the place of the module that torchvision asks: its functions import it when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.leave()
            return getattr(import_module(self.__name__), name)(*args, **kwargs)

        return call

    def leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in ("torch", "torchvision"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Lean(spec.loader)
        return spec


class _Lean(Loader):
    """A module's own loader, and what is to be done about the compiler."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        if module.__name__ == "torch":
            self._loader.exec_module(module)
            _spare()
        elif _ASKED in sys.modules:
            self._loader.exec_module(module)
        else:
            stand_in = sys.modules[_ASKED] = _StandIn(_ASKED)
            try:
                self._loader.exec_module(module)
            finally:
                stand_in.leave()
