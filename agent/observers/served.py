"""The live page beside a loop (`run --watch`): the command `watch` in a process of its own, which ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from agent.events import Event
from agent.history import History
from agent.night import Night
from agent.run.process import START
from agent.typed import CALLED, program

PACKAGE = Path(__file__).parents[2]


class Served:
    """`say` tells the person where the page is, or why there is none."""

    name = "watch"

    def __init__(self, home: Path, root: Path, port: int | None, say: Callable[[str], None]):
        self.home, self.root, self.port, self.say = home, root, port, say

    def start(self, night: Night, history: History) -> None:
        wanted = ["--port", str(self.port)] if self.port else []
        command = ["-P", "-m", "agent", "watch", "--repo", str(self.root), "--tag", self.home.name, *wanted]
        path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
        log = self.home / "logs" / "watch.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-ISc", START, str(os.getpid()), sys.executable, *command],
                cwd=self.root, env=os.environ | {"PYTHONPATH": path, CALLED: program()}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        assert self.process.stdout
        url = self.process.stdout.readline().strip()
        why = log.read_text().strip().splitlines()[-1:] or ["it ended"]
        self.say(f"page: {url}" if url else f"the page can't be shown: {why[0]}")

    def see(self, event: Event, night: Night, history: History) -> None: ...
    def tick(self) -> None: ...

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
