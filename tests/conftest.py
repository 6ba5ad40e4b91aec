"""What all tests share: a scrubbed environment, and one node cache for the whole run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# A new environment is compiled as it is first imported: once, and not in each of hundreds of processes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import torch  # noqa: E402

# Ray's launcher reads every file of a checkout, with whatever rights; so nothing of the tests is kept there.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", f"{tempfile.gettempdir()}/hypothesis-{os.getuid()}")

# A shell lets what it starts in the background, or under nohup, ignore them; processes of tests inherit that.
for _each, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_each) is signal.SIG_IGN:
        signal.signal(_each, _default)

if TYPE_CHECKING:
    from tests.buckets import Bucket


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes long, unless TESTS=all asks for it."""
    left_out = [
        item for item in items if item.get_closest_marker("long") and os.environ.get("TESTS") != "all"
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MPLBACKEND", "agg")
        patch.setenv("NO_COLOR", "1")
        patch.setenv("COLUMNS", "200")
        patch.setenv("RAY_worker_niceness", "0")  # else trials wait for whatever another process tests
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        for name in ("TRANSFER_SEARCH_HOME", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def shared_ray(_environment: None) -> Iterator[None]:
    """One Ray for all searches that run in this process, with a GPU on paper: a start costs many seconds."""
    from search.run.ray_session import local_ray

    with local_ray(gpus=1):
        yield


@pytest.fixture(scope="session")
def _object_store(_environment: None) -> Iterator[str]:
    """The address of a server that speaks S3, on this machine alone."""
    from tests.buckets import serving  # not above: most tests need none of it

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(_object_store: str) -> Bucket:
    """An empty bucket."""
    from tests.buckets import Bucket

    return Bucket(_object_store)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
