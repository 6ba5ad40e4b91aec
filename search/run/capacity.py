"""How many trials may run at a time: as many as the nodes hold, shared among the searches on them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import ray

from search.errors import BadInput
from search.run.ray_compat import autoscaled_nodes, driver_commands, machine_resources
from search.spec.search_spec import SearchSpec
from search.spec.sections import Resources

__all__ = ["Capacity"]


class Capacity:
    """Whether more of a spec's trials may run: as many as the nodes hold, which come and go.

    Searches that share a cluster get equal shares; what others leave free, each may take.

    Raises:
        BadInput: if none could ever run, neither on a node that is there nor on one that could come.
    """

    _SECONDS = 2.0

    def __init__(self, spec: SearchSpec) -> None:
        self._spec = spec
        self._needs = _needs(spec)
        self._most = spec.resources.concurrency or 2**31
        self._look()
        if not self._all:
            raise BadInput(_too_small(spec, [*_alive(), *autoscaled_nodes()]))

    @classmethod
    def check(cls, spec: SearchSpec) -> None:
        """As making one, also before Ray has started on this machine.

        Raises:
            BadInput: if no trial could ever run.
        """
        if ray.is_initialized():
            cls(spec)
        elif not _holds(here := machine_resources(), _needs(spec)):
            raise BadInput(_too_small(spec, [(here, 1)]))

    @property
    def at_once(self) -> int:
        """How many trials may run at a time where nobody else runs any."""
        return min(self._all, self._most)

    @property
    def on_one_node(self) -> int:
        """How many trials one node holds at a time."""
        return max(1, min(max((self._on([each]) for each in _alive()), default=1), self._most))

    @property
    def alone(self) -> Resources:
        """What a trial takes that runs by itself: the cores of all trials of a node, if they are free."""
        resources = self._spec.resources
        fits = max(1, min(self.on_one_node, self._free))
        return resources.model_copy(update={"cpu": resources.cpu * fits})

    def for_more_than(self, running: int) -> bool:
        """Whether one more trial may run beside `running` ones."""
        if time.monotonic() - self._looked > self._SECONDS:
            self._look()
        return running < self.at_once and not self.exceeds_share(running)

    def exceeds_share(self, running: int) -> bool:
        """Whether one more trial than `running` would take what is another search's."""
        return self._share < self._all and running >= self._share and not self._free

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._all = max(self._on(_alive()), self._on(autoscaled_nodes()))
        self._share = math.ceil(self._all / _searches())
        self._free = self._on([(ray.available_resources(), 1)])

    def _on(self, nodes: Nodes) -> int:
        return sum(count * _holds(have, self._needs) for have, count in nodes)


def _searches() -> int:
    """How many searches run on this Ray now, this one included."""
    return max(1, sum(" -m search " in command for command in driver_commands()))


Nodes: TypeAlias = Sequence[tuple[Mapping[str, float], int]]
"""What a node has, by kind of resource, and how many there are of it."""


def _alive() -> Nodes:
    return [(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]


def _needs(spec: SearchSpec) -> dict[str, float]:
    return {"CPU": spec.resources.cpu, "GPU": spec.resources.gpu}


def _holds(have: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How many trials with these needs run at a time on a node."""
    return min(int(have.get(kind, 0) / need + 1e-9) for kind, need in needs.items() if need)


def _too_small(spec: SearchSpec, nodes: Nodes) -> str:
    most = {kind: max((have.get(kind, 0) for have, _ in nodes), default=0) for kind in ("CPU", "GPU")}
    less = [
        f"--set resources.{kind.lower()}={most[kind]:g}"
        for kind, need in _needs(spec).items()
        if need > most[kind]
    ]
    return (
        f"a trial asks for cpu {spec.resources.cpu:g} and gpu {spec.resources.gpu:g} (resources), "
        f"but no node could ever give that: there can be {_described(nodes)}; "
        f"ask for less, e.g. {' '.join(less) or '--set resources.gpu=0'}"
    )


def _described(nodes: Nodes) -> str:
    told = [f"CPU {have.get('CPU', 0):g} and GPU {have.get('GPU', 0):g}" for have, _ in nodes]
    return "nodes with " + ", or ".join(dict.fromkeys(told))
