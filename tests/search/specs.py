"""Specs that tests start from."""

from __future__ import annotations

from search.spec.search_spec import SearchSpec, read_spec

SMALL = """
name: small
data:
  source: digits
  image_size: 32
  limit: {train: 200, validation: 100, test: 50}
  orientation_matters: true
search:
  trials: 6
  max_epochs: 4
  seed: 0
  refit: false
space:
  backbone: efficientnet_lite0
  strategy: probe
  policy: [none, classic]
  lr: {low: 1.0e-3, high: 1.0e-1, log: true}
  batch_size: [32, 64]
"""


def small(*overrides: str, name: str | None = None) -> SearchSpec:
    """The small spec with overrides such as `search.trials=3`."""
    return read_spec(SMALL, overrides, name=name)
