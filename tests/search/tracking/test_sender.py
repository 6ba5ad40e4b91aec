"""The sender on a real MLflow store: what is refused is in nobody's way, what is away is waited for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from search.home import Home
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from search.tracking.client import DAMAGE_TAG
from search.tracking.events import Close, End, Epoch, Epochs, Event, Flush, Open, Start, TrialEvent
from search.tracking.outbox import Outbox
from search.tracking.runs import Runs
from search.tracking.sender import Sender
from search.tracking.tracker import Tracker
from tests.search.specs import small
from trainables.files.trial_folder import write_epochs
from trainables.record import METRICS, MODEL_FOLDER


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables and nothing in them: to make one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class Sending:
    """A search's sender in this process, and what it answered."""

    def __init__(self, folder: Path, store: Path) -> None:
        shutil.copy(store, folder / "mlflow.db")
        self.spec = small(f"tracking.uri=sqlite:///{folder / 'mlflow.db'}")
        self.home = Home(folder / "searches" / "small")
        self.home.make()
        self.outbox = Outbox(self.home.outbox)
        self.client = MlflowClient(self.spec.tracking_uri)
        self.runs = Runs(self.spec, self.home, "abc")
        self.answers: dict[str, Any] = {}
        self.sender = Sender(self.runs, self.home, self.answers.__setitem__)

    def tell(self, *events: TrialEvent) -> None:
        """Tells the events as a driver does, and waits until the sender has nothing more to do."""
        for event in events:
            self.outbox.add(event)
        asked = threading.Event()

        def lines() -> Iterator[str]:
            yield from (event.line() for event in events)
            yield Flush(answer="flushed").line()
            asked.wait(60)

        sender = Sender(self.runs, self.home, self._answered(asked))
        threading.Thread(target=sender.receive, args=(lines(),), daemon=True).start()
        sender.send()
        assert self.answers.pop("flushed")

    def _answered(self, asked: threading.Event) -> Any:
        def answer(name: str, value: Any) -> None:
            self.answers[name] = value
            if name == "flushed":
                asked.set()

        return answer

    def run(self, number: int) -> Run:
        """The only run of a trial that was not deleted."""
        (found,) = self.client.search_runs(
            [self.runs.experiment], f"tags.`transfer_search.trial` = '{number}'", ViewType.ACTIVE_ONLY
        )
        return found

    def points(self, number: int) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.run(number).info.run_id, "val_loss")
        return sorted((point.step, point.value) for point in history)


@pytest.fixture
def sending(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Sending:
    monkeypatch.setattr("search.tracking.sender._RETRY_SECONDS", (0.01,))
    return Sending(folder, store)


def start(number: int) -> Start:
    return Start(trial=number, at=1000, begun=0, params={"lr": 0.1})


def epoch(number: int, epoch: int) -> Epoch:
    return Epoch(trial=number, epoch=epoch, metrics=dict.fromkeys(METRICS, epoch / 10))


def end(number: int) -> End:
    best = {"epoch": 2, **dict.fromkeys(METRICS, 0.2)}
    return End(trial=number, at=2000, ending=Ending.COMPLETED, best=best, reason="")


def leave_model(home: Home, number: int) -> None:
    model = home.trial(number) / MODEL_FOLDER
    model.mkdir(parents=True)
    card = {"metric": {"epoch": 2, "val_accuracy": 0.2}, "delta_sha256": sha256(b"delta").hexdigest()}
    (model / "model.json").write_text(json.dumps(card))
    (model / "delta.safetensors").write_bytes(b"delta")


def test_a_run_that_was_deleted_is_made_again_with_all_its_points(sending: Sending) -> None:
    sending.tell(start(0), epoch(0, 1), start(1), epoch(1, 1))
    gone = sending.run(0).info.run_id
    sending.client.delete_run(gone)
    leave_model(sending.home, 0)
    sending.tell(epoch(0, 2), end(0), epoch(1, 2), end(1))
    for number in (0, 1):
        assert sending.points(number) == [(1, 0.1), (2, 0.2)]
        assert sending.run(number).info.status == "FINISHED"
        assert sending.run(number).data.params == {"lr": "0.1"}
    assert sending.run(0).info.run_id != gone
    assert sending.answers["run 0"] == sending.run(0).info.run_id
    assert sending.outbox.numbers() == []
    assert len(models(sending, 0)) == 1


@pytest.mark.parametrize("gathered", [60.0, 0.05])
def test_epochs_wait_a_moment_for_more_and_no_longer(
    sending: Sending, monkeypatch: pytest.MonkeyPatch, gathered: float
) -> None:
    monkeypatch.setattr("search.tracking.sender._GATHERED_SECONDS", gathered)
    written: list[Event] = []
    write = sending.runs.write

    def record(event: Event) -> None:
        write(event)
        written.append(event)

    monkeypatch.setattr(sending.runs, "write", record)

    def lines() -> Iterator[str]:
        for event in (start(0), start(1), epoch(0, 1)):
            yield event.line()
        until = time.monotonic() + (60 if gathered < 1 else 0.5)
        while len(written) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        for event in (epoch(0, 2), epoch(1, 1), end(1), Flush(answer="flushed")):
            yield event.line()
        while "flushed" not in sending.answers:
            time.sleep(0.01)

    threading.Thread(target=sending.sender.receive, args=(lines(),), daemon=True).start()
    sending.sender.send()
    epochs = [[number for number, _ in event.epochs] for event in written if isinstance(event, Epochs)]
    assert epochs == ([[1, 2]] if gathered > 1 else [[1], [2]])
    assert sending.points(0) == [(1, 0.1), (2, 0.2)]
    assert sending.points(1) == [(1, 0.1)]


def test_a_damaged_model_is_not_logged_and_that_is_told(sending: Sending) -> None:
    leave_model(sending.home, 0)
    (sending.home.trial(0) / MODEL_FOLDER / "delta.safetensors").write_bytes(b"other")
    sending.tell(start(0), epoch(0, 1), end(0))
    assert models(sending, 0) == []
    assert sending.run(0).info.status == "FINISHED"
    assert "is not the one that model.json was written with" in sending.run(0).data.tags[DAMAGE_TAG]


def models(sending: Sending, number: int) -> list[Any]:
    run = sending.run(number).info.run_id
    return list(
        sending.client.search_logged_models(
            [sending.runs.experiment], filter_string=f"source_run_id = '{run}'"
        )
    )


def test_what_is_refused_for_good_is_set_aside_and_named_and_the_rest_arrives(sending: Sending) -> None:
    spoiled = replace(epoch(0, 1), metrics={"val_loss": "no number"})  # type: ignore[dict-item]
    sending.tell(start(0), spoiled, end(0), start(1), epoch(1, 1), end(1))
    assert sending.points(1) == [(1, 0.1)]
    assert sending.outbox.numbers() == [0]
    assert list(sending.outbox.refusals()) == [0]
    assert "refused 0" in sending.answers
    # It is sent again when it is told again: by a doctor, who has mended it.
    (sending.home.outbox / "00000.jsonl").unlink()
    sending.tell(replace(start(0), replayed=True), epoch(0, 1), end(0))
    assert sending.points(0) == [(1, 0.1)]
    assert sending.outbox.refusals() == {}


def test_what_mlflow_is_away_for_holds_up_no_other_trial_and_arrives(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, str]] = []
    write, tries = Runs.write, iter(range(3))

    def failing(runs: Runs, event: TrialEvent) -> None:
        if event.trial == 0 and not isinstance(event, Start) and next(tries, None) is not None:
            raise MlflowException("API request failed: connection refused by http://me:pw@host")
        write(runs, event)
        written.append((event.trial, event.kind))

    monkeypatch.setattr(Runs, "write", failing)
    monkeypatch.setattr("search.tracking.sender._RETRY_SECONDS", (0.3,))
    sending.tell(start(0), epoch(0, 1), end(0), start(1), epoch(1, 1), end(1))
    assert written[-2:] == [(1, "end"), (0, "end")]
    assert sending.points(0) == [(1, 0.1)]
    assert sending.answers["away"] is None


def test_a_model_that_was_made_and_never_finished_is_finished_and_not_doubled(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_model(sending.home, 0)
    with monkeypatch.context() as patch:
        patch.setattr(
            MlflowClient, "finalize_logged_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        sending.runs.write(start(0))
        with pytest.raises(KeyboardInterrupt):  # the sender was killed
            sending.runs.write(replace(end(0), epochs=((1, dict.fromkeys(METRICS, 0.1)),)))
    (pending,) = models(sending, 0)
    assert pending.status == "PENDING"
    sending.runs.forget(0)
    sending.tell(*(replace(each, replayed=True) for each in (start(0), epoch(0, 1), end(0))))
    (whole,) = models(sending, 0)
    assert (whole.status, whole.model_id) == ("READY", pending.model_id)


# The process


def test_a_sender_whose_driver_died_in_the_midst_of_a_line_ends(folder: Path, store: Path) -> None:
    home = Home(folder / "searches" / "small")
    home.make()
    shutil.copy(store, folder / "mlflow.db")
    spec = small(f"tracking.uri=sqlite:///{folder / 'mlflow.db'}")
    opening = Open(spec=spec.to_yaml(), home=str(home.root), search_id="abc", role="trial")
    process = subprocess.Popen(
        [sys.executable, "-m", "search.tracking.sender"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(opening.line())
    process.stdin.flush()
    assert '"opened": {"parent"' in process.stdout.readline()
    _, said = process.communicate(start(0).line()[:20], timeout=60)
    assert "a line that is no event" in said


def test_a_search_whose_mlflow_is_away_waits_for_nothing_and_keeps_everything(folder: Path) -> None:
    spec = small("tracking.uri=http://127.0.0.1:9")
    home = Home(folder / "searches" / "small")
    home.make()
    study = SearchStudy.create(spec, home)
    study.parent_run, study.experiment = "known", "1"
    tracker = Tracker(spec, home, study)
    began = time.monotonic()
    tracker.replay()  # as `resume` does
    for number in range(5):
        assignment = study.ask()
        tracker.trial_started(assignment)
        tracker.epoch_ended(number, 1, dict.fromkeys(METRICS, 0.1))
        tracker.trial_ended(number, Ending.COMPLETED, {"epoch": 1, **dict.fromkeys(METRICS, 0.1)}, "")
        assert tracker.run_of(number, wait=True) is None
    assert time.monotonic() - began < 10
    assert not tracker.close("FINISHED")
    outbox = Outbox(home.outbox)
    assert [[event.kind for event in outbox.events(number)[0]] for number in range(5)] == [
        ["start", "epoch", "end"]
    ] * 5


def test_what_is_told_of_the_search_outlives_a_sender_that_dies_of_it(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(store, folder / "mlflow.db")
    spec = small(f"tracking.uri=sqlite:///{folder / 'mlflow.db'}")
    home = Home(folder / "searches" / "small")
    home.make()
    study = SearchStudy.create(spec, home)
    tracker = Tracker(spec, home, study)
    tracker.open()
    killed: list[int] = []
    tell = Tracker._tell

    def deadly(self: Tracker, event: Event) -> None:
        tell(self, event)
        if isinstance(event, Close) and not killed:
            killed.append(self._line.process.pid)
            self._line.process.kill()

    monkeypatch.setattr(Tracker, "_tell", deadly)
    assert tracker.close("FINISHED")
    assert killed
    run = MlflowClient(spec.tracking_uri).get_run(str(study.parent_run))
    assert run.info.status == "FINISHED"


def test_a_trial_that_goes_on_tells_its_epochs_again_and_damaged_lines_are_made_good(folder: Path) -> None:
    spec = small("tracking.uri=http://127.0.0.1:9")
    home = Home(folder / "searches" / "small")
    home.make()
    study = SearchStudy.create(spec, home)
    study.parent_run, study.experiment = "known", "1"
    assignment = study.ask()
    metrics = {each: dict.fromkeys(METRICS, each / 10) for each in (1, 2, 3)}
    write_epochs(home.trial(0), metrics, {})
    for each in (1, 2):
        study.report(0, each, metrics[each])
    tracker = Tracker(spec, home, study)
    said: list[Event] = []
    tracker._line.say = said.append  # type: ignore[method-assign, assignment]
    tracker.trial_started(study.continue_trial(0))
    # Epoch 3 was never told; the conductor tells it when the trial says so.
    assert [(event.kind, getattr(event, "epoch", None)) for event in said] == [
        ("start", None),
        ("epoch", 1),
        ("epoch", 2),
    ]
    said.clear()
    (home.outbox / "00000.jsonl").write_bytes(b"\xff\xff\n" + end(0).line().encode())
    tracker.replay()
    tracker._line.process.kill()
    assert [(event.kind, getattr(event, "epoch", None)) for event in said] == [
        ("start", None),
        ("epoch", 1),
        ("epoch", 2),
        ("end", None),
    ]
    assert assignment.number == 0
