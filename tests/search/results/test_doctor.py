"""The doctor notices every planted disagreement, mends what can be mended, and names the rest."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from search.home import Home
from search.results.doctor import examine
from search.search import Search
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from search.tracking.events import Start
from search.tracking.tracker import Tracker
from tests.search.specs import small
from trainables.files.trial_folder import write_epochs
from trainables.record import EPOCHS_FILE, METRICS, MODEL_FOLDER, STATE_FILE

EPOCHS = 3


def measured(epoch: int) -> dict[str, float]:
    return dict.fromkeys(METRICS, epoch / 10)


class Planted:
    """A search that ended well, in which a test then spoils one thing of each trial."""

    def __init__(self, folder: Path, trials: int) -> None:
        uri = f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"
        self.spec: SearchSpec = small(uri, f"search.trials={trials}", "search.pruner=none")
        self.home = Home(folder / "searches" / "small")
        self.home.make()
        self.home.spec.write_text(self.spec.to_yaml())
        study = SearchStudy.create(self.spec, self.home)
        tracker = Tracker(self.spec, self.home, study)
        tracker.replay()
        for number in range(trials):
            self._run(study, tracker, number)
        assert tracker.close("FINISHED")
        self.client = MlflowClient(self.spec.tracking_uri)
        self.experiment = study.experiment
        self.parent = study.parent_run

    def _run(self, study: SearchStudy, tracker: Tracker, number: int) -> None:
        assignment = study.ask()
        tracker.trial_started(assignment)
        for epoch in range(1, EPOCHS + 1):
            tracker.epoch_ended(number, epoch, measured(epoch))
            study.report(number, epoch, measured(epoch))
        folder = self.home.trial(number)
        write_epochs(folder, {epoch: measured(epoch) for epoch in range(1, EPOCHS + 1)}, {})
        best = {"epoch": EPOCHS, **measured(EPOCHS)}
        delta = b"delta"
        card = {"metric": best, "delta_sha256": hashlib.sha256(delta).hexdigest()}
        (folder / MODEL_FOLDER).mkdir()
        (folder / MODEL_FOLDER / "delta.safetensors").write_bytes(delta)
        (folder / MODEL_FOLDER / "model.json").write_text(json.dumps(card))
        tracker.trial_ended(number, Ending.COMPLETED, best, "")
        study.end(number, Ending.COMPLETED, best, run=None)

    def run(self, number: int) -> str:
        (run,) = self.client.search_runs([self.experiment], f"tags.`transfer_search.trial` = '{number}'")
        return str(run.info.run_id)

    def sql(self, database: Path, *commands: str) -> None:
        with closing(sqlite3.connect(database)) as connection:
            for command in commands:
                connection.execute(command)
            connection.commit()

    def mlflow(self, *commands: str) -> None:
        self.sql(self.home.root.parent.parent / "mlflow.db", *commands)

    def optuna(self, *commands: str) -> None:
        self.sql(self.home.root / "study.db", *commands)

    def model(self, number: int) -> Any:
        (model,) = self.client.search_logged_models(
            [self.experiment], filter_string=f"source_run_id = '{self.run(number)}'"
        )
        return model

    def optuna_trial(self, number: int) -> str:
        return f"(select trial_id from trials where number = {number})"


MENDED = {
    0: "no point of epoch 2",
    1: "another value at epoch 2",
    2: "two points of epoch 2",
    3: "has lr 123",
    4: "has lr not",
    5: "but its run is RUNNING",
    6: "but its run says PRUNED",
    7: "has 0 runs in MLflow",  # deleted
    8: "has 2 runs in MLflow",
    9: "has a model that MLflow does not have",
    10: "was never finished",
    11: "has 2 models",
    12: "is not the one that model.json was written with",
    13: "says that epoch 1 is best, not 3",
    14: "a point of epoch 9, of which Optuna knows nothing",
    15: "has ended, but",  # a state that is left
    16: "the outbox holds 00016.jsonl",
}
NAMED = {
    17: "in Optuna, but 0.2 in its folder",
    18: "its value is 0.9 in Optuna",
    19: "delta.safetensors is not the one",
    20: "epochs.json is not what was written",
    21: "its model has val_loss 0.7",
    22: "Optuna lacks epoch 2 of 3",
}
OF_ALL = ("the search's run in MLflow is RUNNING", "is of a trial that Optuna does not have")


def plant(planted: Planted) -> None:
    """Spoils what the tables above say."""
    home, client = planted.home, planted.client
    runs = {number: planted.run(number) for number in range(23)}
    at = client.get_run(runs[2]).info.start_time
    planted.mlflow(
        f"delete from metrics where run_uuid = '{runs[0]}' and key = 'val_accuracy' and step = 2",
        f"update metrics set value = 0.99 where run_uuid = '{runs[1]}' and key = 'val_macro_f1' and step = 2",
        f"update params set value = '123' where run_uuid = '{runs[3]}' and key = 'lr'",
        f"delete from params where run_uuid = '{runs[4]}' and key = 'lr'",
    )
    client.log_batch(runs[2], metrics=[Metric("val_loss", 0.5, at + 999, 2)])
    client.update_run(runs[5], status="RUNNING")
    client.set_tag(runs[6], "state", "PRUNED")
    client.delete_run(runs[7])
    tags = client.get_run(runs[8]).data.tags
    client.create_run(planted.experiment, tags={k: v for k, v in tags.items() if "." in k})
    client.delete_logged_model(planted.model(9).model_id)
    planted.mlflow(f"update logged_models set status = 1 where model_id = '{planted.model(10).model_id}'")
    client.create_logged_model(
        planted.experiment,
        source_run_id=runs[11],
        tags={key: value for key, value in tags.items() if key.startswith("transfer_search")},
    )
    location = planted.model(12).artifact_location.removeprefix("file://")
    (Path(location) / "data" / "delta.safetensors").write_bytes(b"delta of another")
    client.set_tag(runs[13], "best_epoch", "1")
    client.log_batch(runs[14], metrics=[Metric("val_loss", 0.5, at, 9)])
    (home.trial(15) / STATE_FILE).write_bytes(b"")
    start = Start(trial=16, at=1, begun=1, params={})
    (home.outbox / "00016.jsonl").write_text(start.line() + "half a line")
    planted.optuna(
        f"update trial_intermediate_values set intermediate_value = 0.77 "
        f"where step = 2 and trial_id = {planted.optuna_trial(17)}",
        f"update trial_values set value = 0.9 where trial_id = {planted.optuna_trial(18)}",
        f"delete from trial_intermediate_values where step = 2 and trial_id = {planted.optuna_trial(22)}",
    )
    (home.trial(19) / MODEL_FOLDER / "delta.safetensors").write_bytes(b"torn")
    record = home.trial(20) / EPOCHS_FILE
    record.write_text(record.read_text().replace("0.2", "0.3"))
    card = home.trial(21) / MODEL_FOLDER / "model.json"
    told = json.loads(card.read_text())
    card.write_text(json.dumps({**told, "metric": {**told["metric"], "val_loss": 0.7}}))
    client.update_run(planted.parent, status="RUNNING")
    (home.checkpoints / "00077").mkdir()


def test_every_planted_disagreement_is_noticed_and_mended_or_named(folder: Path) -> None:
    planted = Planted(folder, 23)
    assert examine(Search.open(planted.home)) == []
    plant(planted)
    found = "\n".join(examine(Search.open(planted.home)))
    for number, text in {**MENDED, **NAMED}.items():
        lines = [line for line in found.splitlines() if text in line]
        assert any(f"trial {number}" in line or f"{number:05d}" in line for line in lines), (
            number,
            text,
            found,
        )
    assert all(text in found for text in OF_ALL)
    told: list[str] = []
    left = examine(Search.open(planted.home), repair=True, tell=told.append)
    for text in MENDED.values():
        assert any(text in line for line in told), text
    for number in MENDED:
        assert not [line for line in left if f"trial {number} " in line or f"trial {number}," in line], left
    for text in NAMED.values():
        assert any(text in line for line in left), (text, left)
    assert not any("RUNNING" in line for line in left)
    for number in range(17):
        points = planted.client.get_metric_history(planted.run(number), "val_loss")
        assert sorted((point.step, point.value) for point in points) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    shutil.rmtree(planted.home.checkpoints / "00077")
