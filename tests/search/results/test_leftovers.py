"""What no search needs goes with `clean`; nothing else does."""

from __future__ import annotations

from pathlib import Path

from search.home import Home
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from tests.search.commands import rows, transfer_search
from tests.search.specs import small
from trainables.record import METRICS, MODEL_FOLDER, STATE_FILE


def test_clean_removes_what_no_search_needs_and_nothing_else(folder: Path) -> None:
    home = Home.of("small")
    home.make()
    spec = small("search.trials=2")
    home.keep(spec.to_yaml())
    study = SearchStudy.create(spec, home)
    for _ in range(2):
        study.ask()
    study.end(0, Ending.COMPLETED, {"epoch": 1, **dict.fromkeys(METRICS, 0.5)})
    gone, stays = [], [home.spec, home.root / "study.db"]
    for number in (0, 1):
        trial = home.trial(number)
        (trial / MODEL_FOLDER).mkdir(parents=True)
        (trial / STATE_FILE).write_bytes(b"state")
        (trial / MODEL_FOLDER / "delta.safetensors").write_bytes(b"delta")
        (trial / "state.pt.1-1.tmp").write_bytes(b"half")
        gone.append(trial / "state.pt.1-1.tmp")
        stays.append(trial / MODEL_FOLDER / "delta.safetensors")
    (home.ray / "tune-1").mkdir(parents=True)
    killed, other = Home.of("killed"), Home.of("notes")
    killed.make()
    other.root.mkdir()
    (other.root / "mine.txt").write_text("mine")
    gone += [home.trial(0) / STATE_FILE, home.ray, killed.root]
    stays += [home.trial(1) / STATE_FILE, other.root / "mine.txt"]
    told = rows("clean", "--dry-run")
    assert {each["path"] for each in told["leftovers"]} == {str(path) for path in gone}
    assert all(path.exists() for path in [*gone, *stays])
    with home.lock():
        assert [each["path"] for each in rows("clean", "--dry-run")["leftovers"]] == [str(killed.root)]
    printed = transfer_search("clean")
    assert "trial 0 has ended" in printed
    assert "5 leftovers removed" in printed
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in stays)
    assert "nothing is left over" in transfer_search("clean")
