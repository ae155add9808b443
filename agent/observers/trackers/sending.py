"""Sends the experiments of a night that have a verdict to a tracker, each once, and again where it has changed since.

What was sent is written down beside the night; where that is lost, or a process died in between, an experiment is sent
again, which changes nothing there: trackers find a run by its key.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from agent import state
from agent.errors import Failure
from agent.history import History
from agent.ledger import Ledger, digest
from agent.night import Night
from agent.observers.trackers import TRACKERS
from agent.observers.trackers.protocol import Run, run_of
from agent.redact import hidden

FIRST_PAUSE, LONGEST_PAUSE = 15.0, 900.0  # after a failure; each further one is twice as long


class Sending:
    """`say` tells the person. Raises Failure where another process sends this night to the same tracker."""

    def __init__(self, home: Path, name: str, where: str, say: Callable[[str], None]):
        self.home, self.name, self.say = home, name, say
        self.tracker = TRACKERS[name](where, home.parents[1], home)
        self.ledger = Ledger(home, readonly=True)
        self.history, self.night, self.cursor, self.began = History(self.ledger.text), Night(), 0, 0.0
        self.seen: dict[int, state.Experiment] = {}
        self.book = home / "trackers" / f"{name}-{digest(where)[:12]}.json"
        self.book.parent.mkdir(exist_ok=True)
        self.lock = FileLock(self.book.with_suffix(".lock"))
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise Failure(f"{home.name} is being sent to {name} already: try again when that is done") from None
        self.sent: dict[str, str] = self.read()
        self.failures, self.next, self.told = 0, 0.0, ""

    def read(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(self.book.read_text(encoding="utf-8")))
        return {}

    def write(self) -> None:
        aside = self.book.with_suffix(".part")
        aside.write_text(json.dumps(self.sent), encoding="utf-8")
        os.replace(aside, self.book)

    def due(self) -> Iterator[tuple[state.Experiment, Run]]:
        """What has to be sent, in the order of the verdicts."""
        for number, event in self.ledger.events(after=self.cursor):
            self.began = self.began or event.at
            self.night, self.cursor = self.night.after(event), number
        for number in self.night.order:
            e = self.night.experiments[number]
            if self.seen.get(number) is not e:
                program = self.history.program(self.night.contract)
                yield e, run_of(self.history.whole(e), program, self.home.name, self.began)

    def send(self) -> int:
        """All that is due; how many runs. Raises what the tracker raises."""
        count = 0
        for e, run in self.due():
            key, now = str(e.number), digest(run.model_dump_json())
            if self.sent.get(key) != now:
                self.tracker.log(run)
                self.sent[key] = now
                self.write()
                count += 1
            self.seen[e.number] = e
        return count

    def attempt(self, last: bool = False) -> None:
        """As `send`; what goes wrong is told once, and tried again later, less and less often."""
        if not last and time.monotonic() < self.next:
            return
        try:
            self.send()
        except Exception as error:  # whatever the library raises
            self.failures += 1
            self.next = time.monotonic() + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.failures - 1))
            reason = reason_of(error)
            if reason != self.told:
                self.say(f"{self.name} takes nothing now: {reason}; it is tried again, and the night goes on")
            self.told = reason
            return
        if self.told:
            self.say(f"{self.name} takes runs again")
        self.failures, self.next, self.told = 0, 0.0, ""


def reason_of(error: BaseException) -> str:
    """In one line, without keys, and without the passwords of addresses."""
    said = " ".join(str(error).split())
    if not isinstance(error, Failure):  # whose text says all
        said = f"{type(error).__name__}: {said}"
    return hidden(re.sub(r"//[^/\s@]+@", "//", said))[:300].strip(": ")
