"""The conductor: what trials say, what the study and people are told, in which order; no Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from search.errors import TransferSearchError
from search.home import Home
from search.run.conductor import MOVES, Conductor, NoTrial
from search.run.failures import Failure, FailureKind
from search.run.settlement import settled
from search.study.search_study import SearchStudy
from search.study.trials import Assignment, Ending
from tests.search.specs import small
from trainables.files.trial_folder import write_epochs
from trainables.record import BEST, EPOCHS, METRICS, MODEL_FOLDER, TOLD


class Everywhere:
    """Capacity for any number of trials."""

    at_once = 2

    def for_more_than(self, running: int) -> bool:
        return True

    def exceeds_share(self, running: int) -> bool:
        return False


class Ears:
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def trial_started(self, assignment: Assignment) -> None:
        self.heard.append(("started", assignment.number))

    def epoch_ended(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        self.heard.append(("epoch", number, epoch, metrics["val_accuracy"]))

    def attempt_failed(self, number: int, reason: str) -> None:
        self.heard.append(("failed", number, reason))

    def trial_moved(self, number: int, moves: int) -> None:
        self.heard.append(("moved", number, moves))

    def damage_found(self, number: int, what: str) -> None:
        self.heard.append(("damage", number, what))

    def trial_ended(self, number: int, ending: Ending, best: Mapping[str, float] | None, reason: str) -> None:
        self.heard.append(("ended", number, ending, best and best["epoch"]))


@pytest.fixture
def home(folder: Path) -> Home:
    home = Home(folder / "searches" / "small")
    home.make()
    return home


def begin(home: Home, *overrides: str) -> tuple[Conductor, SearchStudy, Ears]:
    """A driver's conductor on the study in `home`, new or as another driver left it."""
    spec, ears = small("search.pruner=none", *overrides), Ears()
    study = SearchStudy.create(spec, home)
    conductor = Conductor(
        study,
        home,
        {},
        capacity=Everywhere(),  # type: ignore[arg-type]
        observers=[ears],
        run_of=lambda number, wait=False: None,
        should_stop=lambda: False,
    )
    return conductor, study, ears


def measured(epoch: int, value: float | None = None) -> dict[str, float]:
    return dict.fromkeys(METRICS, epoch / 10 if value is None else value)


def result(epoch: int, known: int | None = None, **more: Any) -> dict[str, Any]:
    """What a trial says after an epoch, which knows the first `known` epochs; as Tune passes it on."""
    known = known or epoch
    epochs = [{"epoch": each, **measured(each)} for each in range(1, known + 1)]
    best = {f"{BEST}/{name}": value for name, value in {"epoch": known, **measured(known)}.items()}
    return {**measured(epoch), "epoch": epoch, EPOCHS: epochs, **best, **more}


def test_epochs_that_were_saved_and_never_told_are_told_first_and_once(home: Home) -> None:
    conductor, study, ears = begin(home)
    conductor.next("a")
    assert conductor.after_epoch("a", result(1))
    # The trial ran epochs 2 and 3 and its driver died; the state was of epoch 2.
    conductor, study, ears = begin(home)
    conductor.next("b")
    assert conductor.after_epoch("b", result(3))
    assert ears.heard == [("started", 0), ("epoch", 0, 2, 0.2), ("epoch", 0, 3, 0.3)]
    assert study.reported(0) == {1: 0.1, 2: 0.2, 3: 0.3}
    # And once more, from a state that is older than what was told.
    conductor, study, ears = begin(home)
    conductor.next("c")
    assert conductor.after_epoch("c", result(2, known=3))
    assert conductor.after_epoch("c", result(3))
    assert not conductor.after_epoch("c", result(4))
    assert ears.heard == [("started", 0), ("epoch", 0, 4, 0.4), ("ended", 0, Ending.COMPLETED, 4)]
    assert study.reported(0) == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


def test_a_driver_that_died_before_it_told_the_ending_tells_it_when_the_last_epoch_comes_again(
    home: Home,
) -> None:
    conductor, study, _ = begin(home)
    conductor.next("a")
    for epoch in range(1, 5):
        study.report(0, epoch, measured(epoch))
    conductor, study, ears = begin(home)
    conductor.next("b")
    assert conductor.after_epoch("b", result(3))
    assert not conductor.after_epoch("b", result(4))
    assert ears.heard[-1] == ("ended", 0, Ending.COMPLETED, 4)


def test_an_epoch_that_diverged_and_was_never_told_ends_its_trial(home: Home) -> None:
    conductor, _, ears = begin(home)
    conductor.next("a")
    said = result(3)
    said[EPOCHS][1] |= measured(2, float("nan"))
    assert not conductor.after_epoch("a", said)
    assert ears.heard[-1][:3] == ("ended", 0, Ending.DIVERGED)


def test_several_objectives_know_what_was_told_too(home: Home) -> None:
    two = "search.objective={val_accuracy: maximize, val_loss: minimize}"
    conductor, study, _ = begin(home, two)
    conductor.next("a")
    conductor.after_epoch("a", result(1))
    conductor, study, ears = begin(home, two)
    assert study.told(0) == {1}
    conductor.next("b")
    conductor.after_epoch("b", result(2))
    assert ears.heard == [("started", 0), ("epoch", 0, 2, 0.2)]


def test_damage_is_told(home: Home) -> None:
    conductor, _, ears = begin(home)
    conductor.next("a")
    conductor.after_epoch("a", result(1, **{TOLD: ["state.pt is not what was written"]}))
    assert ("damage", 0, "state.pt is not what was written") in ears.heard


def test_what_is_given_up_keeps_the_epochs_it_wrote_down_and_the_metrics_of_its_model(home: Home) -> None:
    conductor, study, ears = begin(home)
    conductor.next("a")
    conductor.after_epoch("a", result(1))
    # Epochs 2 and 3 were written down, and of them the model of epoch 2.
    write_epochs(home.trial(0), {epoch: measured(epoch) for epoch in (1, 2, 3)}, {})
    model = home.trial(0) / MODEL_FOLDER
    model.mkdir()
    (model / "delta.safetensors").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    card = {"metric": {"epoch": 2, **measured(2)}, "delta_sha256": empty}
    (model / "model.json").write_text(json.dumps(card))
    best = settled(study, home, 0, [ears], {"epoch": 1, **measured(1)})
    assert best is not None
    assert (best["epoch"], best["val_accuracy"]) == (2, 0.2)
    assert ears.heard[-2:] == [("epoch", 0, 2, 0.2), ("epoch", 0, 3, 0.3)]
    assert study.reported(0) == {1: 0.1, 2: 0.2, 3: 0.3}
    assert settled(study, home, 0, [ears], {"epoch": 2, "expected_val_accuracy": 0.15}) == {
        **card["metric"],  # type: ignore[dict-item]
        "expected_val_accuracy": 0.15,
    }
    (model / "delta.safetensors").write_bytes(b"of another card: its process died between the two")
    assert settled(study, home, 0, [ears], {"epoch": 1}) is None
    assert not model.exists()


def lost() -> Failure:
    return Failure(kind=FailureKind.NODE_LOST, message="its node has died", traceback="")


def broken(message: str) -> Failure:
    return Failure(kind=FailureKind.OTHER, message=message, traceback=f"Traceback\n{message}")


def test_a_trial_that_loses_one_node_after_another_ends(home: Home) -> None:
    conductor, _, ears = begin(home)
    conductor.next("a")
    for _ in range(MOVES):
        assert conductor.failed("a", lost())
    assert conductor.after_epoch("a", result(1))  # it goes on, so it may lose as many again
    for _ in range(MOVES):
        assert conductor.failed("a", lost())
    assert not conductor.failed("a", lost())
    assert [each[2] for each in ears.heard if each[0] == "moved"] == list(range(1, 2 * MOVES + 2))
    assert ears.heard[-1][:3] == ("ended", 0, Ending.ERRORED)


def test_first_trials_that_all_fail_alike_end_the_search_and_keep_its_budget(home: Home) -> None:
    conductor, study, ears = begin(home, "search.retries=0", "search.trials=20")
    for name in "abcd":
        assert isinstance(conductor.next(name), dict)
    for pid, name in enumerate("abc"):
        assert conductor.common_cause is None
        assert not conductor.failed(name, broken(f"OSError: no module in process {pid}"))
    assert conductor.common_cause == "OSError: no module in process 2"
    assert conductor.should_end()
    assert conductor.next("e") is NoTrial.EVER_AGAIN
    conductor.stopped()
    assert ears.heard[-1][:3] == ("ended", 3, Ending.INTERRUPTED)
    assert study.progress().left == 17


@pytest.mark.parametrize("differs", ["the message", "an epoch was run", "an epoch was run before"])
def test_failures_that_differ_end_no_search(home: Home, differs: str) -> None:
    conductor, _, _ = begin(home, "search.retries=0", "search.trials=20")
    if differs == "an epoch was run before":
        conductor.next("before")
        conductor.after_epoch("before", result(1))
        conductor, _, _ = begin(home, "search.retries=0", "search.trials=20")
    for name in "abc":
        conductor.next(name)
    if differs == "an epoch was run":
        conductor.after_epoch("c", result(1))
    for name in "abc":
        conductor.failed(name, broken(f"OSError: {name if differs == 'the message' else ''}"))
    assert conductor.common_cause is None


def test_a_trial_whose_time_is_over_keeps_its_epochs_and_one_without_any_has_failed(home: Home) -> None:
    conductor, study, _ = begin(home, "search.trial_time=1h")
    now = 0.0
    conductor._deadlines.clock = lambda: now
    conductor.next("a")
    conductor.next("b")
    assert conductor.overdue(["a", "b"]) == []
    conductor.after_epoch("a", result(1))
    for now in map(float, range(0, 3600, 20)):  # noqa: B007 # an event loop that runs all the time
        assert conductor.overdue(["a", "b"]) == []
    now = 3601.0
    assert conductor.overdue(["a", "b"]) == ["a", "b"]
    assert conductor.overdue(["a", "b"]) == []  # once is enough
    for name in "ab":
        assert not conductor.failed(name, broken("the process was killed"))
    records = {record.number: record for record in study.records()}
    assert records[0].ending is Ending.PRUNED
    assert records[1].ending is Ending.ERRORED
    assert all("search.trial_time" in record.reason for record in records.values())
    assert study.reported(0) == {1: 0.1}


def test_a_process_that_hangs_is_known_by_its_kin_and_a_driver_that_slept_blames_nobody(home: Home) -> None:
    conductor, study, _ = begin(home, "search.retries=0", "space.policy=none")
    now = 0.0
    conductor._deadlines.clock = lambda: now
    for name in "abc":
        conductor.next(name)
    conductor.overdue("abc")
    now = 5.0
    conductor.after_epoch("a", result(1))
    for now in map(float, range(5, 900, 20)):  # noqa: B007
        assert conductor.overdue("abc") == []  # one alone is no kin
    conductor.after_epoch("b", result(1))
    now += 5000.0  # the driver was stopped
    assert conductor.overdue("abc") == []
    begun = now
    while not (found := conductor.overdue("abc")):
        now += 20.0
    assert found == ["c"]
    assert now - begun > 600
    assert not conductor.failed("c", broken("the process was killed"))
    assert "hangs" in study.records()[2].reason


def test_a_search_whose_study_is_gone_is_not_begun_anew(home: Home) -> None:
    conductor, study, _ = begin(home)
    conductor.next("a")
    home.trial(0).mkdir()
    assert SearchStudy.open(study.spec, home).told(0) == frozenset()
    kept = {path: path.read_bytes() for path in home.root.glob("study.db*")}
    for path in kept:
        path.unlink()
    with pytest.raises(TransferSearchError, match=r"study\.db holds no study.*the folders of 1 trials"):
        SearchStudy.open(study.spec, home)
    assert not list(home.root.glob("study.db*"))
    (home.root / "study.db").touch()
    with pytest.raises(TransferSearchError, match="holds no study"):
        SearchStudy.open(study.spec, home)
    SearchStudy.create(study.spec, home)  # as an older version's resume did
    with pytest.raises(TransferSearchError, match="knows none of its trials"):
        SearchStudy.open(study.spec, home)


def test_a_study_whose_making_was_interrupted_is_made_whole_by_the_launch(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("optuna.Study.enqueue_trial", killed)
        with pytest.raises(KeyboardInterrupt):
            SearchStudy.create(spec, home)
    assert SearchStudy.find(spec, home) is None
    study = SearchStudy.create(spec, home)
    assert study.budget == 6
    assert study.search_id


def test_a_trial_that_a_full_disk_ended_goes_on_when_there_is_room(home: Home) -> None:
    conductor, study, _ = begin(home, "search.retries=0")
    conductor.next("a")
    full = Failure(kind=FailureKind.NO_ROOM, message="OSError: full", traceback="OSError: full")
    conductor._was_waited_for = lambda: True
    assert all(conductor.failed("a", full) for _ in range(20))
    conductor._was_waited_for = lambda: False  # it is another disk, of which nothing is known
    assert not conductor.failed("a", full)
    assert study.progress().failed == 1
