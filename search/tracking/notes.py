"""What MLflow's pages say of a search in words, and how they first show its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from search.spec.search_spec import SearchSpec
from search.study.trials import Ending
from search.tracking.client import SEARCH_TAG, STATE_TAG

__all__ = ["NOTE_TAG", "ensemble_note", "refit_note", "search_note", "shared_view", "trial_note"]

NOTE_TAG = "mlflow.note.content"
_VIEW_TAG = "mlflow.sharedViewState."
_COLUMNS = ("policy", "strategy", "lr", "backbone")


def search_note(spec: SearchSpec, tags: Mapping[str, Any]) -> str:
    """The description of a search's run, in Markdown.

    Args:
        spec: the search's.
        tags: of the run: `best_trial`, `best_value`, `winner`, `verdict` and so on, as far as they are known.
    """
    metric, direction = next(iter(spec.search.objective.items()))
    sampled = [name for name, domain in spec.space.items() if domain.sampled]
    parts = [
        f"**{spec.name}** searched {spec.search.trials} trials of at most {spec.search.max_epochs} epochs on "
        f"`{spec.data.source}` to {direction} `{metric}`, over {', '.join(f'`{name}`' for name in sampled)}."
    ]
    if "winner" in tags:
        parts.append(f"**Winner: trial {tags['winner']}** among the finalists: {tags.get('verdict', '')}.")
    if "best_trial" in tags:
        parts.append(f"Best trial of the search: {tags['best_trial']} with `{metric}` {tags['best_value']}.")
    if "won" in tags:
        parts.append(f"What `export` gives: the {tags['won']}.")
    parts.append(
        "```sh\n"
        f"transfer-search export {spec.name} --to exports/{spec.name}   # take the model away\n"
        f"transfer-search report {spec.name}                 # all of it as one page\n"
        f"transfer-search resume {spec.name} --trials {2 * spec.search.trials}    # search on\n"
        "transfer-search launch spec.yaml             # repeat it, from this run's artifact\n"
        "```"
    )
    return "\n\n".join(parts)


def ensemble_note(spec: SearchSpec) -> str:
    """The description of an ensemble's run."""
    return (
        f"Ensemble of the best trials of `{spec.name}`: their probabilities averaged. Its validation scores "
        "are of the images that its members were chosen on; `best_` is what ensembles have on images that "
        "did not choose them. The parameters are those of the member with the largest share."
    )


def refit_note(spec: SearchSpec, ending: Ending, reason: str) -> str:
    """The description of the run of a winner's refit."""
    told = (
        f"{ending.value.capitalize().replace('_', ' ')} refit of the winner of `{spec.name}`: the same "
        "configuration on training and validation images together. It has seen the validation images, so the "
        "scores called `seen_` say nothing of new ones; those on the test split do."
    )
    return f"{told}\n\n{_last(reason)}" if reason and ending is not Ending.COMPLETED else told


def trial_note(spec: SearchSpec, ending: Ending, reason: str, best: Mapping[str, float] | None) -> str:
    """The description of a trial's run, in a sentence or two."""
    metric = next(iter(spec.search.objective))
    told = f"{ending.value.capitalize().replace('_', ' ')} trial of `{spec.name}`."
    if best:
        told += f" Best epoch {int(best['epoch'])}: `{metric}` {best[metric]:.4f}."
    if reason and ending is not Ending.COMPLETED:
        told += f"\n\n{_last(reason)}"
    return told


def _last(reason: str) -> str:
    return reason.strip().splitlines()[-1][-500:]


def shared_view(spec: SearchSpec, search_id: str) -> tuple[str, str]:
    """The tag of an experiment, and its value, that shows a search's trials with the best first."""
    metric, direction = next(iter(spec.search.objective.items()))
    sampled = [name for name, domain in spec.space.items() if domain.sampled]
    shown = list(dict.fromkeys([*(name for name in _COLUMNS if name in spec.space), *sampled]))[:6]
    state = {
        "searchFilter": f"tags.`{SEARCH_TAG}` = '{search_id}'",
        "orderByKey": f"metrics.`best_{metric}`",
        "orderByAsc": direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            f"metrics.`best_{metric}`",
            *(f"params.`{name}`" for name in shown),
            f"tags.`{STATE_TAG}`",
        ],
        "viewMaximized": True,
    }
    return f"{_VIEW_TAG}{search_id}", json.dumps(state)
