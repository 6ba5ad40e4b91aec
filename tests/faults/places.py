"""A folder in which one search after another is run, each on an empty study and an empty MLflow store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from search.home import Home
from search.study.search_study import SearchStudy
from tests.faults.invariants import Losses, losses
from tests.faults.lives import drive, forked
from tests.faults.moments import Fault, Moments
from tests.search.specs import small

__all__ = ["Place"]


class Place:
    """Searches in `folder`, of one spec.

    This process itself runs a search there first: what libraries do once is not done in each fork.
    """

    def __init__(self, folder: Path, *overrides: str) -> None:
        self._one, self._copy = folder / "one", folder / "empty"
        uri = f"tracking.uri=sqlite:///{self._one / 'mlflow.db'}"
        self.spec = small(uri, "search.pruner=none", "search.retries=10", *overrides)
        self.home = Home(self._one / "searches" / "small")
        self._one.mkdir()
        os.chdir(self._one)
        forked(self._make)
        shutil.copytree(self._one, self._copy)
        drive(self.spec, self.home, Moments(Fault()))
        assert losses(self.spec, self.home).all() == []
        for engine in SqlAlchemyStore._engine_map.values():
            engine.dispose()  # a connection is of one process

    def _make(self) -> None:
        self.home.make()
        self.home.spec.write_text(self.spec.to_yaml())
        SearchStudy.create(self.spec, self.home)
        MlflowClient(self.spec.tracking_uri).search_experiments()

    def empty(self) -> None:
        """Forgets the search before."""
        os.chdir(self._copy)
        shutil.rmtree(self._one)
        shutil.copytree(self._copy, self._one)
        os.chdir(self._one)

    def losses(self, before: dict[tuple[int, int], float]) -> Losses:
        """Where the search breaks an invariant; `before` is what users have seen of it."""
        found: Losses = forked(lambda: losses(self.spec, self.home, before))
        return found
