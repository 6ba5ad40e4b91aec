"""What the process that drives a search writes down of itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from search.home import Home
from search.masking import MaskingFilter

__all__ = ["driver_log"]


@contextmanager
def driver_log(home: Home) -> Iterator[None]:
    """Sends log records to the home's `driver.log` while the block runs."""
    handler = logging.FileHandler(home.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {home.name} %(name)s: %(message)s"))
    handler.addFilter(MaskingFilter())
    root = logging.getLogger()
    root.addHandler(handler)
    for name in ("search", "trainables"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
