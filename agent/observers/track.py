"""`--track`: a night in an experiment tracker. The observer starts the process that sends it, tells the person what
that one says, and lets it send the rest at the end; see agent/observers/trackers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from agent.errors import Failure
from agent.events import Event
from agent.history import History
from agent.night import Night
from agent.observers.trackers import TRACKERS
from agent.run.process import START

PACKAGE = Path(__file__).parents[2]
GOODBYE = 8.0  # seconds for what is left at the end of a night


def parse(text: str) -> tuple[str, str]:
    """`mlflow`, `mlflow:http://host:5000` -> name and the rest. Raises Failure, also where its library is missing."""
    name, _, where = text.partition(":")
    if name not in TRACKERS:
        raise Failure(f"there is no tracker {name!r}: choose from {', '.join(TRACKERS)}, like mlflow or mlflow:URI")
    if importlib.util.find_spec(TRACKERS[name].package) is None:
        package = TRACKERS[name].package
        raise Failure(f"{name} needs {package}: pip install 'overnight[{name}]', or pip install {package}")
    TRACKERS[name].check()
    return name, where


class Track:
    """One tracker."""

    def __init__(self, home: Path, project: Path, name: str, where: str, say: Callable[[str], None]):
        self.home, self.where, self.say = home, where, say
        self.tracker, self.name = name, f"track-{name}"
        self.place = TRACKERS[name](where, project, home).place()
        self.process: subprocess.Popen[str] | None = None
        self.ended = False

    def start(self, night: Night, history: History) -> None:
        self.say(self.place)
        path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
        begin = [sys.executable, "-ISc", START, str(os.getpid())]  # it ends with the thread that calls this
        log = self.home / "logs" / f"observer-{self.name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [*begin, sys.executable, "-P", "-m", "agent.observers.trackers", str(self.home), self.tracker],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
                env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
        assert self.process.stdin
        with contextlib.suppress(OSError):
            print(self.where, file=self.process.stdin, flush=True)
        threading.Thread(target=self.listen, args=(self.process,), daemon=True).start()

    def listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self.say(line.strip())

    def see(self, event: Event, night: Night, history: History) -> None: ...

    def tick(self) -> None:
        if self.process and self.process.poll() is not None and not self.ended:
            self.ended = True
            log = f"logs/observer-{self.name}.log"
            self.say(f"what sends to {self.tracker} has died ({log} says why); the night goes on. {self.later()}")

    def later(self) -> str:
        return f"`export --to {self.tracker}` sends what is missing"

    def close(self) -> None:
        if self.process is None or self.ended:
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            code = self.process.wait(GOODBYE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code:
            self.say(f"not all of the night has reached {self.tracker}: {self.later()}")
