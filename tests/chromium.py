"""Debian's Chromium for tests that look at pages, and where what they saw is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["MARKS", "kept", "opened"]

_PATH = Path("/usr/bin/chromium")
_SWITCHES = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")

MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(not _PATH.exists(), reason="Chromium is not installed"),
]
"""Of every module whose tests drive it."""


@contextmanager
def opened() -> Iterator[Any]:
    """A browser; each of its contexts is a fresh profile."""
    playwright_api = pytest.importorskip("playwright.sync_api")
    with playwright_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(_PATH), args=list(_SWITCHES))
        try:
            yield browser
        finally:
            browser.close()


def kept(page: Any, name: str, otherwise: Path) -> None:
    """Keeps a picture of a page for who looks at it later: in CI_OUTPUT, where that is set."""
    folder = Path(os.environ.get("CI_OUTPUT", otherwise))
    page.screenshot(path=folder / f"{name}.png", full_page=True)
