"""The report in a browser: without a network, on a phone and a desk, in the light and in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.results.report import write_report
from search.search import Search
from tests.chromium import MARKS, kept, opened
from tests.search.results.test_report import searched

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = MARKS


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a search of 300 trials, whose best has a number in the middle."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_report(Search.open(searched(300)), folder / "small.html")
    return folder / "small.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened() as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_can_be_read_by_anybody(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, java_script_enabled=True
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(page_file.as_uri())
    kept(page, f"report-{width}-{scheme}", page_file.parent)
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    best = page.locator("h2", has_text="Best: trial").inner_text().split()[-1]
    first = page.locator("[aria-label=Trials] tr").nth(1).locator("td").first.inner_text()
    assert first == best
    context.close()


def test_a_large_report_stays_small(page_file: Path) -> None:
    assert page_file.stat().st_size < 6_000_000
