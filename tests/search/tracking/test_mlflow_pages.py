"""MLflow's own pages of a search, in a browser: what whoever follows a printed link sees at first.

One search, one server and one browser serve all tests; each page is opened in a fresh profile.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from search.processes import environment
from tests.chromium import MARKS, kept, opened
from tests.search.commands import rows, transfer_search
from tests.search.specs import SMALL

pytestmark = [*MARKS, pytest.mark.usefixtures("shared_ray")]

SEEN_WITHIN = 30_000.0  # ms; the machine has other work too
PINNED = ".ag-pinned-left-cols-container .ag-row"  # the rows of the table, from their names on
FINALISTS = "search.finalists={top: 2, seeds: 2}"


@dataclass(frozen=True)
class Shown:
    """A search that has ended, what was printed, and a browser for MLflow's pages of it."""

    folder: Path
    printed: str
    first_page: str
    browser: Any

    @contextmanager
    def page(self, link: str, name: str, waits_for: str, width: int = 1280) -> Iterator[Any]:
        """The page of a link as a fresh profile shows it, once it says `waits_for`."""
        context = self.browser.new_context(viewport={"width": width, "height": 900})
        page = context.new_page()
        page.goto(link)
        page.get_by_text(waits_for).first.wait_for(timeout=SEEN_WITHIN)
        try:
            yield page
        finally:
            kept(page, name, self.folder)
            context.close()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "small.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ("--set", "search.trials=8", "--set", "search.pruner=median", "--set", FINALISTS)
        transfer_search("launch", "small.yaml", *words)
        with _server() as first_page, opened() as browser:
            printed = transfer_search("best", "small")
            yield Shown(folder, printed, first_page, browser)


@contextmanager
def _server() -> Iterator[str]:
    """`transfer-search ui` on a free port; gives the link that it prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "search", "ui", "--port", str(port)]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        link = next(
            found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/#\S+", line))
        )
        assert f":{port}/" in link
        yield link
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def test_every_printed_link_leads_to_runs_models_and_the_registry(shown: Shown) -> None:
    links = {shown.first_page, *re.findall(r"http://\S+", shown.printed)}
    assert len(links) == 2
    for link in sorted(links):
        with shown.page(link, "menu", "Model registry") as page:
            for entry in ("Runs", "Models", "Model registry"):
                page.get_by_role("link", name=entry, exact=True).first.wait_for(timeout=SEEN_WITHIN)


def test_the_table_begins_with_the_best_trial_and_shows_state_score_and_policy(shown: Shown) -> None:
    trials = [row for row in rows("trials", "small") if row["state"] == "COMPLETE"]
    best = max(trials, key=lambda row: (row["value"], -row["trial"]))
    with shown.page(shown.first_page, "table", f"small-{best['trial']}") as page:
        page.locator(".ag-header-cell", has_text="state").first.wait_for(timeout=SEEN_WITHIN)
        box = page.viewport_size["width"] - 330  # MLflow's assistant opens itself over the rest
        for title in ("state", "best_val_accuracy", "policy"):
            header = page.locator(".ag-header-cell", has_text=title).first
            header.wait_for(timeout=SEEN_WITHIN)
            place = header.bounding_box()
            assert place["x"] + place["width"] <= box, f"{title} is out of sight: {place}"
        lines = sorted(page.locator(PINNED).all(), key=lambda line: line.bounding_box()["y"])
        names = [_name(line) for line in lines]
        of_trials = [name for name in names if re.match(r"small-\d", name)]
        assert of_trials[0] == f"small-{best['trial']}", names
        assert page.locator(".ag-center-cols-container").inner_text().count("PRUNED") == sum(
            row["state"] == "PRUNED" for row in rows("trials", "small")
        )
        # MLflow draws a run that failed, or was killed, as a red cross.
        assert page.locator("[aria-label*=ailed], [aria-label*=illed]").count() == 0


def _name(line: Any) -> str:
    """The run that a row of the table is about."""
    found = re.search(r"small\S*", line.inner_text())
    return found[0] if found else ""


def test_trials_stand_under_their_search(shown: Shown) -> None:
    nested = shown.first_page.partition("&viewStateShareKey")[0]
    with shown.page(nested, "nested", "small") as page:
        row = page.locator(PINNED).first
        row.wait_for(timeout=SEEN_WITHIN)
        top = page.locator(PINNED).all()
        assert [_name(line) for line in top] == ["small"]
        row.get_by_role("gridcell").nth(1).locator("button").first.click()
        page.get_by_text("small-0", exact=False).first.wait_for(timeout=SEEN_WITHIN)


def test_the_page_of_the_search_says_what_won_on_what_and_by_how_much(shown: Shown) -> None:
    best = rows("best", "small")
    link = re.sub(
        r"/runs\?.*", f"/runs/{_parent(shown.folder)}?workflowType=machine_learning", shown.first_page
    )
    with shown.page(link, "search", "won") as page:
        page.get_by_text("Show more").first.click()
        text = page.inner_text("body")
    winner = best["finalists"][0]
    for said in (
        f"Trial {best['trial']} won",
        f"{winner['mean']:.4f}",
        "{:.4f}-{:.4f}".format(*winner["test"]["test_accuracy"]["interval"]),
        "200 train, 100 validation, 50 test images in 10 classes",
        "best_so_far_val_accuracy",
        "trials_pruned",
        "digits (",
        "transfer-search export small",
    ):
        assert said in text, said


def _parent(folder: Path) -> str:
    from search.home import Home
    from search.search import Search

    return str(Search.open(Home(folder / "searches" / "small")).study.parent_run)


def test_models_are_listed_with_their_scores(shown: Shown) -> None:
    link = shown.first_page.replace("/runs?", "/models?").partition("&viewStateShareKey")[0]
    with shown.page(link, "models", "small-0", width=2400) as page:
        page.locator(".ag-header-cell", has_text="val_accuracy").first.wait_for(timeout=SEEN_WITHIN)
    # MLflow 3.17 sorts that page by date alone, but whoever asks it by any score.
    models = _client(shown.folder).search_logged_models(
        ["1"], order_by=[{"field_name": "metrics.val_accuracy"}]
    )
    scores = [metric.value for model in models for metric in model.metrics if metric.key == "val_accuracy"]
    assert len(scores) == 12
    assert scores in (sorted(scores), sorted(scores, reverse=True))


def _client(folder: Path) -> Any:
    from search.tracking.client import connect

    return connect(f"sqlite:///{folder}/mlflow.db")


def test_the_report_of_a_real_search_fits_a_phone_in_the_dark(shown: Shown) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    transfer_search("report", "small", "--to", shown.folder / "small.html")
    context = shown.browser.new_context(
        viewport={"width": 390, "height": 800}, color_scheme="dark", offline=True
    )
    page = context.new_page()
    page.goto((shown.folder / "small.html").as_uri())
    kept(page, "report-real", shown.folder)
    assert page.locator(".gallery img").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    context.close()
