"""What reaches a loop at work: results of its workers, and requests of a person from other processes.

A request is a file of its own in `requests/`, written aside and renamed, so that a reader sees it whole or not at
all. It is deleted when it is in the journal, which knows its id: however often it is read, it counts once. The lock
of the ledger bars a second writer, so the loop alone appends.
"""

from __future__ import annotations

import os
import queue
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.events import Event, Requested, RequestKind
from agent.limits import GO_ON

POLL = 0.25  # seconds between two looks for requests
BEFORE_THE_START = frozenset({"stop", "finish", "limits"})
"""What was not said to the next process: to end one that is gone, and limits, over which its own flags go."""
STOP_FILE = "STOP"  # made by hand in the night's folder: nothing new is begun while it is there


def send(home: Path, what: RequestKind, **said: Any) -> Requested:
    """Leave a request for the loop that works on the night in `home`, or takes it up next; `said`: further fields."""
    request = Requested(id=f"{time.time_ns()}-{secrets.token_hex(4)}", what=what, **said)
    folder = home / "requests"
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{request.id}.part"
    with aside.open("w", encoding="utf-8") as file:
        file.write(request.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / f"{request.id}.json")
    return request


def unread(home: Path) -> Iterator[Requested]:
    """Every whole request in the folder of the night in `home`, oldest first; what is none is left alone."""
    for path in sorted((home / "requests").glob("*.json")):
        try:
            request = Requested.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            continue
        if request.id == path.stem:
            yield request


class RealClock:
    """Unix time as it was at the start, carried on by the monotonic clock: setting the clock of the machine in the
    middle of a night makes no hour longer."""

    def __init__(self):
        self.start = time.time() - time.monotonic()

    def now(self) -> float:
        return self.start + time.monotonic()


class SpoolInbox:
    """A queue for the workers' threads, and the folder `requests/` of one night. See protocols.Inbox."""

    def __init__(self, home: Path, clock: RealClock):
        self.home, self.clock = home, clock
        self.queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.left = [request.id for request in unread(home)]

    def put(self, event: Event) -> None:
        self.queue.put(event)

    def stale(self) -> list[Event]:
        found = (request for request in unread(self.home) if request.id in self.left)
        return [request for request in found if request.what in BEFORE_THE_START]

    def take(self) -> list[Event]:
        found: list[Event] = [*unread(self.home), *self.stop_file()]
        while True:
            try:
                found.append(self.queue.get_nowait())
            except queue.Empty:
                return found

    def wait(self, until: float | None) -> list[Event]:
        while until is None or self.clock.now() < until:
            left = POLL if until is None else min(POLL, max(0.0, until - self.clock.now()))
            try:
                return [self.queue.get(timeout=left), *self.take()]
            except queue.Empty:
                found: list[Event] = [*unread(self.home), *self.stop_file()]
                if found:
                    return found
        return []

    def done(self, event: Event) -> None:
        if isinstance(event, Requested):
            (self.home / "requests" / f"{event.id}.json").unlink(missing_ok=True)
            self.said_stop = self.said_stop or event.id.startswith(STOP_FILE)

    said_stop = False

    def stop_file(self) -> Iterator[Requested]:
        """The file counts once in each process."""
        path = self.home / STOP_FILE
        if not self.said_stop and path.exists():
            text, then = f"the file {path} is there", f"delete the file {STOP_FILE}, and {GO_ON}"
            yield Requested(id=f"{STOP_FILE}-{self.clock.start:.6f}", what="finish", text=text, then=then)
