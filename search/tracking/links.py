"""Where a person or a program finds a search's runs and models in MLflow."""

from __future__ import annotations

from functools import cached_property

from search.processes import python
from search.spec.search_spec import SearchSpec
from search.study.search_study import SearchStudy
from search.tracking.client import SEARCH_TAG, all_models, connect

__all__ = ["Links", "ui_command"]


class Links:
    """Where a search's runs and models are; only for models MLflow is asked, when it first comes to them."""

    def __init__(self, spec: SearchSpec, study: SearchStudy) -> None:
        self._spec = spec
        self._search_id = study.search_id
        self._experiment = study.experiment

    def url(self, run: str | None) -> str | None:
        """Where a person sees a run: at the server, or at `transfer-search ui`."""
        if run is None or self._experiment is None:
            return None
        uri = self._spec.tracking_uri
        host = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{host}/#/experiments/{self._experiment}/runs/{run}"

    def model(self, run: str | None) -> str | None:
        """The URI under which MLflow loads the model of a run; None if it has none."""
        model = self._models.get(run or "")
        return None if model is None else f"models:/{model}"

    @cached_property
    def _models(self) -> dict[str, str]:
        if self._experiment is None:
            return {}
        condition = f"tags.`{SEARCH_TAG}` = '{self._search_id}'"
        found = all_models(connect(self._spec.tracking_uri), self._experiment, condition)
        return {model.source_run_id or "": model.model_id for model in found if model.status == "READY"}


def ui_command(uri: str, port: int) -> list[str]:
    """The command that serves MLflow's pages on a store, on this machine alone."""
    words = ("server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port))
    return python("mlflow", *words)
