"""TensorBoard: a folder of event files for each experiment, written aside and put in place whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from agent.observers.trackers.protocol import Run


class TensorBoard:
    package = "tensorboardX"

    def __init__(self, where: str, project: Path, home: Path):
        self.folder = Path(where).expanduser().resolve() if where else home.parent / "tensorboard"

    @classmethod
    def check(cls) -> None: ...

    def place(self) -> str:
        return f"tensorboard: look at it with `tensorboard --logdir {self.folder}`"

    def log(self, run: Run) -> None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        place = self.folder / run.key
        aside, old = (self.folder.parent / f".{self.folder.name}-{run.key}.{end}" for end in ("new", "old"))
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)
        writer = SummaryWriter(str(aside), flush_secs=3600)
        for name, step, value in run.points:
            writer.add_scalar(name, value, step, walltime=run.began)
        for name, value in run.summary.items():
            writer.add_scalar(name, value, 0, walltime=run.began)
        table = "".join(f"| {name} | {cell(value)} |\n" for name, value in {**run.params, **run.tags}.items())
        writer.add_text("experiment", f"| | |\n| --- | --- |\n{table}", 0, walltime=run.began)
        writer.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place.rename(old)
        aside.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def cell(text: str) -> str:
    """For a table in Markdown, which TensorBoard cleans of markup."""
    return " ".join(text.split()).replace("|", "\\|")
