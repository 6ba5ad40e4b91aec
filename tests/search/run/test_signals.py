"""A launch that is ended before it has begun leaves nothing, and the same words work again."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from search.home import Home
from search.processes import environment, python
from tests.search.commands import transfer_search
from tests.search.specs import SMALL


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP])
def test_what_ends_a_launch_in_rays_start_leaves_no_home(folder: Path, how: signal.Signals) -> None:
    (folder / "small.yaml").write_text(SMALL)
    home = Home.of("small")
    with (folder / "said.txt").open("w") as said:
        driver = subprocess.Popen(
            python("search", "launch", "small.yaml"), env=environment(), stdout=said, stderr=said
        )
        until = time.monotonic() + 60
        while home.driver() is None:
            assert driver.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5)
        driver.send_signal(how)
        assert driver.wait(60) == 130
    assert (folder / "said.txt").read_text().splitlines()[-1] == "interrupted"
    assert not home.root.exists()
    assert "24 trials" in transfer_search("launch", "small.yaml", "--dry-run", "--set=search.trials=24")
