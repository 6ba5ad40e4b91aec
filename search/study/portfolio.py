"""Configurations that did well on other tasks, as first trials of a search.

A modality may bring a table of trials that were run on tasks that differ in kind, each configuration on each
of them. A search begins with those that its space has and that complement one another: each lowers most the
regret which the best so far leave in the mean over tasks, as in Feurer et al. (2015) and Winkelmolen et al.
(2020). So the choice follows the space, and needs to know nothing of the new task.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search.spec.search_spec import SearchSpec
from search.study.recipes import carried_over, offered
from trainables.training.hparams import HParams

__all__ = ["KIND", "Portfolio", "portfolio"]

KIND = ("strategy", "head", "solver", "features", "policy", "optimizer")
"""Knobs without which a rate, or an accuracy, says little."""
_RATES = ("trunk_lr", "backbone_lr_mult")

_Best: TypeAlias = tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, kw_only=True)
class Portfolio:
    """A table of trials, tasks by configurations.

    Attributes:
        tasks: their names.
        configurations: the hyperparameters that a trial read, without its seed.
        counted: float [T, C], what a search would have counted, an accuracy; 0 where a trial diverged.
        test: float [T, C], the accuracy on images that chose nothing.
    """

    tasks: tuple[str, ...]
    configurations: tuple[Mapping[str, Any], ...]
    counted: NDArray[np.float64]
    test: NDArray[np.float64]

    @classmethod
    def read(cls, file: Path) -> Portfolio:
        """The table that `to_json` made."""
        told = json.loads(file.read_text())
        rows = told["tasks"]
        return cls(
            tasks=tuple(rows),
            configurations=tuple(told["configurations"]),
            **{name: np.array([row[name] for row in rows.values()]) for name in ("counted", "test")},
        )

    def to_json(self) -> str:
        """The table as text, a configuration a line."""
        every = ",\n".join(json.dumps(each) for each in self.configurations)
        rows = ",\n".join(
            f"{json.dumps(task)}: {json.dumps({'counted': counted.tolist(), 'test': test.tolist()})}"
            for task, counted, test in zip(self.tasks, self.counted, self.test, strict=True)
        )
        return f'{{"configurations": [\n{every}\n], "tasks": {{\n{rows}\n}}}}\n'

    def regret(self, task: int, tried: Sequence[int]) -> float:
        """Test accuracy that the best of some trials, by what was counted, lacks of the best there is."""
        best = max(tried, key=lambda place: self.counted[task, place])
        return float(self.test[task].max() - self.test[task, best])

    def complementing(
        self,
        among: Sequence[int],
        count: int | None = None,
        *,
        after: Sequence[int] = (),
        tasks: Sequence[int] | None = None,
    ) -> list[int]:
        """Places of configurations that complement one another, the most useful first.

        Args:
            among: places to choose from.
            count: how many at most; None: all.
            after: places of what will have been tried before.
            tasks: to choose by; None: all.
        """
        told = list(range(len(self.tasks)) if tasks is None else tasks)
        counted, test = self.counted[told], self.test[told]

        def reached(before: _Best, places: Sequence[int]) -> _Best:
            """What each of some trials makes of the best so far, both [T, P]: a tie keeps the earlier."""
            better = counted[:, places] > before[0]
            return tuple(
                np.where(better, each[:, places], old)
                for each, old in zip((counted, test), before, strict=True)
            )

        best: _Best = (np.full((len(told), 1), -1.0), np.zeros((len(told), 1)))
        found: list[int] = []
        left = [place for place in among if place not in after]
        for place in after:
            best = reached(best, [place])
        while left and (count is None or len(found) < count):
            gained = reached(best, left)[1].mean(0)
            # Of those that lower the regret alike, what is good by itself.
            place = left[np.lexsort((counted[:, left].mean(0), gained.round(9)))[-1]]
            best = reached(best, [place])
            found.append(place)
            left.remove(place)
        return found


def portfolio(spec: SearchSpec, *, fine_tuned: bool = False) -> Iterator[dict[str, Any]]:
    """Hyperparameters of the table that a space has, those first that complement one another.

    Args:
        spec: of the search.
        fine_tuned: only those that train the trunk, to complement all heads that are solved for.
    """
    file = spec.modality.portfolio
    if file is None:
        return
    table = _read(file)
    known: dict[int, HParams] = {
        place: spec.hparams.from_dict(values)
        for place, values in enumerate(table.configurations)
        if _has(spec, values)
    }
    after: list[int] = []
    if fine_tuned:
        after = [place for place, each in known.items() if each.strategy == "probe" and each.head_is_solved]
        known = {place: each for place, each in known.items() if each.strategy != "probe"}
    for place in table.complementing(list(known), after=after):
        told = {*table.configurations[place], *_RATES}
        yield {name: value for name, value in carried_over(known[place], spec).items() if name in told}


@functools.cache
def _read(file: Path) -> Portfolio:
    return Portfolio.read(file)


def _has(spec: SearchSpec, values: Mapping[str, Any]) -> bool:
    """Whether a space has what makes a configuration what it is; of the rest it has something near."""
    return all(offered(spec, name, values[name]) is not None for name in KIND if name in values)
