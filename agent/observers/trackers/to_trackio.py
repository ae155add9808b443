"""trackio, in its store on this machine; `trackio sync` brings that to a Space."""

from __future__ import annotations

import os
from pathlib import Path

from agent.observers.trackers.protocol import Run

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # there a run that was half sent can't be taken back


class Trackio:
    package = "trackio"

    def __init__(self, where: str, project: Path, home: Path):
        self.project = where or project.name

    @classmethod
    def check(cls) -> None: ...

    def place(self) -> str:
        return f"trackio: look at it with `trackio show --project {self.project}`"

    def log(self, run: Run) -> None:
        for name in ELSEWHERE:
            os.environ.pop(name, None)
        import trackio  # pyright: ignore[reportMissingImports]

        try:
            known = [one for one in trackio.Api().runs(self.project) if one.name == run.name]
        except ValueError:  # there is no such project yet
            known = []
        for one in known:
            if (one.config or {}).get("key") == run.key:
                one.delete()
        config = {**run.params, **run.tags, "key": run.key}
        trackio.init(self.project, name=run.name, group=run.params["night"], config=config,
                     auto_log_gpu=False, auto_log_cpu=False)  # fmt: skip
        for name, step, value in run.points:
            trackio.log({name: value}, step=step)
        trackio.log(run.summary, step=0)
        trackio.finish()
