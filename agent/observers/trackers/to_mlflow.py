"""MLflow: a run in the experiment of the project's name. It is found again by the tag overnight.key."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from agent.observers.trackers.protocol import Run
from agent.run.leftovers import temporary

LONGEST = 5000  # characters of a parameter or a tag; the store refuses a little more
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Its own patience is minutes; here everything is sent again later."""
BATCH = 1000  # metrics in one request, at most; so many parameters are in none


class MLflow:
    package = "mlflow"

    def __init__(self, where: str, project: Path, home: Path):
        self.home, self.store = home, home.parent / "mlflow.db"
        self.uri = where or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.store}"
        self.project, self.artifacts = project.name, (home.parent / "mlflow-artifacts").as_uri()
        self.local = self.uri == f"sqlite:///{self.store}"

    @classmethod
    def check(cls) -> None: ...

    def place(self) -> str:
        if self.local:
            return f"mlflow: experiment {self.project}; look at it with `mlflow ui --backend-store-uri {self.uri}`"
        return f"mlflow: experiment {self.project} of the tracking server"

    @cached_property
    def client(self) -> Any:
        for name, value in IMPATIENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if self.local and not self.store.exists():
            self.make_store(MlflowClient)
        return MlflowClient(self.uri)

    def make_store(self, client: Any) -> None:
        """Aside, and put in place whole: one whose making was cut off can't be opened again."""
        with temporary(self.home) as scratch, contextlib.suppress(FileExistsError):
            client(f"sqlite:///{scratch / 'made.db'}").search_experiments()
            shutil.copyfile(scratch / "made.db", scratch / "copy.db")
            os.link(scratch / "copy.db", self.store)

    @cached_property
    def experiment(self) -> str:
        """The id of MLflow's experiment."""
        found = self.client.get_experiment_by_name(self.project)
        if found:
            return found.experiment_id
        return self.client.create_experiment(self.project, self.artifacts if self.local else None)

    def log(self, run: Run) -> None:
        from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]

        found = self.client.search_runs([self.experiment], f"tags.`overnight.key` = '{run.key}'")
        began, ended = round(1000 * run.began), round(1000 * run.ended)
        if not found:
            tags = {"overnight.key": run.key}
            found = [self.client.create_run(self.experiment, began, tags=tags, run_name=run.name)]
        one = found[0].info.run_id
        params = [Param(name, value[:LONGEST]) for name, value in run.params.items()]
        told = {**run.tags, "mlflow.note.content": run.text}
        self.client.log_batch(one, params=params, tags=[RunTag(name, text[:LONGEST]) for name, text in told.items()])
        values = [(plain(p.name), p.step, p.value) for p in run.points]
        values += [(plain(name), 0, value) for name, value in run.summary.items()]
        there = self.there(one, {name for name, _, _ in values}) if found[0].data.metrics else set()
        new = [Metric(name, value, began, step) for name, step, value in values if (name, step) not in there]
        for start in range(0, len(new), BATCH):
            self.client.log_batch(one, metrics=new[start : start + BATCH])
        self.client.set_terminated(one, end_time=ended)

    def there(self, run_id: str, names: set[str]) -> set[tuple[str, int]]:
        """What an earlier process has sent of it."""
        return {(m.key, m.step) for name in names for m in self.client.get_metric_history(run_id, name)}


def plain(name: str) -> str:
    """As MLflow takes names of metrics."""
    return re.sub(r"[^\w\-./ ]", "_", name)
