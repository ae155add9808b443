"""Weights & Biases, online or (WANDB_MODE=offline) on disk: a run of the project, whose id is the experiment's key."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from agent.errors import Failure
from agent.observers.trackers.protocol import Run


class WandB:
    package = "wandb"

    def __init__(self, where: str, project: Path, home: Path):
        self.project, self.home = where or os.environ.get("WANDB_PROJECT") or project.name, home

    @classmethod
    def check(cls) -> None:
        """`wandb login` writes the key into a netrc file; whether it is one for this server its library alone knows."""
        if mode() == "disabled":
            raise Failure("WANDB_MODE=disabled lets wandb take nothing: unset it, or set WANDB_MODE=offline")
        files = (os.environ.get("NETRC") or Path.home() / name for name in (".netrc", "_netrc"))
        known = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
        if not (known or offline() or any(os.path.exists(file) for file in files)):
            raise Failure("--track wandb has no key: `wandb login` first, or set WANDB_MODE=offline")

    def place(self) -> str:
        folder = self.home / "wandb"
        later = f"; on disk, until `wandb sync {folder}/offline-run-*`" if offline() else ""
        return f"wandb: project {self.project}{later}"

    def log(self, run: Run) -> None:
        """Its history is a row for each point, so that rows which are there already are not taken again."""
        for older in self.home.glob(f"wandb/offline-run-*-{run.key}"):
            shutil.rmtree(older, ignore_errors=True)
        import wandb  # pyright: ignore[reportMissingImports]

        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )
        one = wandb.init(
            project=self.project, id=run.key, name=run.name, group=run.params["night"], config=dict(run.params),
            tags=[f"{name}:{value}"[:64] for name, value in run.tags.items()], notes=run.text, dir=str(self.home),
            resume=None if offline() else "allow", reinit="finish_previous", settings=settings, allow_val_change=True,
        )  # fmt: skip
        for row, (name, step, value) in enumerate(run.points):
            axis = "budget_permille" if name.startswith("training_loss/") else "trial"
            one.log({name: value, axis: step}, step=row)
        one.summary.update({**run.summary, **run.tags})
        one.finish()


def mode() -> str:
    return os.environ.get("WANDB_MODE", "").lower()


def offline() -> bool:
    return mode() in ("offline", "dryrun")
