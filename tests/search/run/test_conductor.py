"""The conductor: what trials say, what the study and people are told, in which order; no Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from search.home import Home
from search.run.conductor import Conductor
from search.run.settlement import settled
from search.study.search_study import Assignment, Ending, SearchStudy
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
    (model / "delta.safetensors").write_bytes(b"torn")
    assert settled(study, home, 0, [ears], {"epoch": 1}) == {"epoch": 1}
