"""What MLflow knows of a search's trials."""

from __future__ import annotations

from dataclasses import dataclass

from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.tracking.client import STATE_TAG, all_runs, connect, number_tag
from search.tracking.links import Links

__all__ = ["ChildRun", "child_runs"]


@dataclass(frozen=True)
class ChildRun:
    """What MLflow knows of a trial: status, state tag, whether it has a model, a metric told twice."""

    run_id: str
    status: str
    state: str
    model: bool
    repeated: str


def child_runs(spec: SearchSpec, study: SearchStudy) -> dict[int, list[ChildRun]]:
    """The child runs of a study, by trial number."""
    client, links = connect(spec.tracking_uri), Links(spec, study)
    found: dict[int, list[ChildRun]] = {}
    for run in all_runs(client, spec, study):
        number = run.data.tags.get(number_tag(study.role))
        if number is None:
            continue
        repeated = ""
        for metric in ("val_loss",):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            repeated = metric if len(set(steps)) < len(steps) else repeated
        found.setdefault(int(number), []).append(
            ChildRun(
                run_id=run.info.run_id,
                status=run.info.status,
                state=run.data.tags.get(STATE_TAG, ""),
                model=links.model(run.info.run_id) is not None,
                repeated=repeated,
            )
        )
    return found
