"""TensorBoard: a folder of event files for each experiment, written aside and put in place whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from agent.errors import Failure
from agent.observers.trackers.protocol import Run


class TensorBoard:
    package = "tensorboardX"

    def __init__(self, where: str, project: Path, home: Path):
        self.folder = Path(where).expanduser().resolve() if where else home.parent / "tensorboard"
        self.scratch = home / "trackers"

    @classmethod
    def check(cls) -> None: ...

    def place(self) -> str:
        return f"tensorboard: look at it with `tensorboard --logdir {self.folder}`"

    def log(self, run: Run) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"{self.folder} can't be made ({error.strerror}): name another folder") from None
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        place = self.folder / run.key
        aside = self.scratch / f"{run.key}.new"
        shutil.rmtree(aside, ignore_errors=True)
        writer = SummaryWriter(str(aside), flush_secs=3600)
        for name, step, value in run.points:
            writer.add_scalar(name, value, step, walltime=run.began)
        for name, value in run.summary.items():
            writer.add_scalar(name, value, 0, walltime=run.began)
        table = "".join(f"| {name} | {cell(value)} |\n" for name, value in {**run.params, **run.tags}.items())
        writer.add_text("experiment", f"| | |\n| --- | --- |\n{table}", 0, walltime=run.began)
        writer.close()
        shutil.rmtree(place, ignore_errors=True)
        shutil.move(aside, place)


def cell(text: str) -> str:
    """For a table in Markdown, which TensorBoard cleans of markup."""
    return " ".join(text.split()).replace("|", "\\|")
