"""A search's ensemble: chosen, built, scored, and told as a run of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from search.run.planning import load_data
from search.run.scoring import logits_of
from search.search import Search
from search.study.ensemble import EnsembleStudy, made_of
from search.study.refit import Winner, affordable
from search.study.trials import Ending
from search.tracking.tracker import Tracker
from trainables.files.trial_folder import write_epochs
from trainables.modality import Data
from trainables.record import MODEL_FOLDER
from trainables.training.card import Card
from trainables.training.delta import Part, card_of, save_ensemble
from trainables.training.keeping import expected_name
from trainables.training.selection import Selection, select

__all__ = ["make_ensemble"]

_SHORT = {"validation": "val", "test": "test"}


def make_ensemble(
    search: Search,
    config: Mapping[str, Any],
    within: Tracker,
    console: Console,
    refit: Callable[[Sequence[Winner]], bool],
    *,
    at_once: int,
    until: float | None,
) -> Tracker | None:
    """Makes the ensemble of a search's best trials where it pays; the tracker that was told of it, if any.

    Args:
        search: whose budget is met, or whose time is over.
        config: as `planning.trial_config` gives it.
        within: the search's own tracker.
        console: is told what was found.
        refit: refits members, and says whether that came to its end; if not, there is no ensemble yet.
        at_once: how many refits run at a time.
        until: when there is no more time for them, on the monotonic clock; None: never.
    """
    began, pool = time.perf_counter(), search.pool
    folders = {number: search.home.trial(number) / MODEL_FOLDER for number in pool}
    with tempfile.TemporaryDirectory(prefix="ensemble-") as temporary:
        place = Path(temporary)
        alike = _alike(folders)
        save_ensemble(place, [_part(folders[number], number, 1.0, 1.0) for number in alike], {})
        data = load_data(search.spec)
        logits = logits_of(search.spec, config, place, "validation", by_member=True)
        chosen = select(logits, data.labels[data.splits["validation"]])
        shares = {alike[index]: share for index, share in chosen.shares.items()}
        told = _told(chosen, shares, alike)
        left = None if until is None else until - time.monotonic()
        are_refitted = search.study.is_refitted and chosen.pays
        which = affordable(search.study, list(shares), at_once, left) if are_refitted else []
        members = search.members(which)
        if are_refitted and not members:
            told = "ensemble: there is no time to refit its members, and the winner's refit is worth more"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
        if not chosen.pays or (are_refitted and not members):
            search.study.ensemble = {"pool": pool, "told": told}
            return None
        if members and not refit(members):
            return None
        refits = search.refit_folders(members)
        parts = [
            _part((folders | refits)[alike[index]], alike[index], share, chosen.factors[index])
            for index, share in chosen.shares.items()
        ]
        card = save_ensemble(place, parts, {})
        best = _scores(search, config, place, data, chosen)
        study = search.begin_ensemble(pool, shares, list(refits))
        tracker = Tracker(search.spec, search.home.ensemble, study, within=within)
        _recorded(search, study, tracker, parts, card, best, time.perf_counter() - began)
        search.study.ensemble = {"pool": pool, "told": told}  # the last of it: until then it is made anew
    return tracker


def _alike(folders: Mapping[int, Path]) -> list[int]:
    """The trials whose models take the same inputs as that of the first."""
    cards = {number: card_of(folder) for number, folder in folders.items()}
    wanted = next(iter(cards.values())).preprocessing
    return [number for number, card in cards.items() if card.preprocessing == wanted]


def _part(folder: Path, number: int, share: float, factor: float) -> Part:
    return Part(folder=folder, name=f"trial {number}", share=share, factor=factor)


def _scores(
    search: Search, config: Mapping[str, Any], place: Path, data: Data, chosen: Selection
) -> dict[str, float]:
    """What the ensemble has on validation images, what it is expected to have, and its test scores.

    What it is expected to have is by its members as they were chosen, of images that they were not chosen on.
    """
    modality = search.spec.modality
    best: dict[str, float] = {"epoch": 1.0}
    for split, short in _SHORT.items():
        labels = data.labels[data.splits[split]]
        if len(labels):
            best |= modality.scores(logits_of(search.spec, config, place, split), labels).named(short)
    held = modality.scores(chosen.logits, data.labels[data.splits["validation"]])
    return best | {expected_name(name): value for name, value in held.named("val").items()}


def _recorded(
    search: Search,
    study: EnsembleStudy,
    tracker: Tracker,
    parts: Sequence[Part],
    card: Card,
    best: Mapping[str, float],
    seconds: float,
) -> None:
    """Writes the model and its record into the home, and tells the study and MLflow.

    Where it has seen the validation images, its record has what it is expected to have of them instead.
    """
    left = study.interrupted()
    assignment = study.continue_trial(left[0]) if left else study.ask()
    number = assignment.number
    folder = search.home.ensemble.trial(number)
    tracker.trial_started(assignment)
    measured = {name: value for name, value in best.items() if name.startswith("val_")}
    told = {name: best[expected_name(name)] for name in measured} if card.has_seen_validation else measured
    metrics = told | {"epoch_seconds": seconds}
    best = {**best, **told}
    save_ensemble(folder / MODEL_FOLDER, parts, {"epoch": best["epoch"], **measured})
    write_epochs(folder, {1: metrics}, assignment.hparams.to_dict())
    tracker.epoch_ended(number, 1, metrics)
    study.report(number, 1, metrics)
    tracker.trial_ended(number, Ending.COMPLETED, best, "")
    study.end(number, Ending.COMPLETED, best)
    tracker.learn_runs()


def _told(chosen: Selection, shares: Mapping[int, float], pool: Sequence[int]) -> str:
    """What was chosen and why, or why not."""
    accuracies = f"accuracy {chosen.accuracy:.4f} against {chosen.winner_accuracy:.4f}"
    gain = (
        f"cross-entropy lower by {chosen.gain:.4f} ± {chosen.error:.4f}, {accuracies}, on what was left out"
    )
    if len(shares) == 1:
        return f"ensemble: none of the best {len(pool)} trials adds anything to trial {next(iter(shares))}"
    if not chosen.pays:
        return f"ensemble: not better than the winner alone beyond chance ({gain})"
    return f"{made_of(EnsembleStudy.role, pool[0], shares)}: {gain}"
