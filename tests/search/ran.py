"""Searches whose trials ran in this process, without Ray and MLflow: all that their homes hold is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.home import Home
from search.run.planning import plan, samples, trial_config
from search.run.premises import Premises
from search.search import Search
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.study.trials import Ending
from trainables.training.loop import Training
from trainables.trial import TrialConfig, begun

Report = Callable[[Training], None]


def ran(spec: SearchSpec, trials: Sequence[dict[str, Any]], home: Home | None = None) -> Search:
    """A search whose trials were given these knobs in place of what was drawn, and have all completed."""
    home = home or Home.of(spec.name)
    home.make()
    study = SearchStudy.create(spec, home)
    planned = plan(spec, home)
    Premises.of(spec, planned).keep(study)
    study.samples = samples(planned.data)
    home.keep(spec.to_yaml(home.root))
    for knobs in trials:
        _run(spec, home, study, knobs)
    return Search.open(home)


def _run(spec: SearchSpec, home: Home, study: SearchStudy, knobs: dict[str, Any]) -> None:
    assignment = study.ask()
    number, hparams = assignment.number, replace(assignment.hparams, **knobs)
    study._start(replace(assignment, hparams=hparams), "")
    folder = Path(home.trial(number))
    folder.mkdir(parents=True)
    config = {**trial_config(spec), "number": number, "hparams": hparams.to_dict(), "folder": str(folder)}
    training, _ = begun(TrialConfig(**config), folder, set())  # type: ignore[typeddict-item]
    while not training.finished:
        metrics = training.run_epoch()
        training.save_record(folder)
        training.save_model(folder)
        study.report(number, training.epoch, metrics)
    study.end(number, Ending.COMPLETED, training.best)
