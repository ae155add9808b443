"""Runs observers: each reads the journal by itself, from where it was."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from agent.events import Event, Published
from agent.history import History
from agent.ledger import Ledger
from agent.night import Night
from agent.records import Verdict, VerdictKind
from agent.state import Experiment, replace

RECENT = 50  # experiments that an observer finds whole in its night; older ones only where they were kept
TICK = 0.5  # seconds between two looks where nobody says that there is news
GOODBYE, SHORT_GOODBYE = 10.0, 1.0  # seconds that the end of a night waits for observers; where a person stops it


class Observer(Protocol):
    name: str

    def start(self, night: Night, history: History) -> None:
        """The night as it is when the observer begins to look."""
        ...

    def see(self, event: Event, night: Night, history: History) -> None:
        """One event, and the night with it; see RECENT."""
        ...

    def tick(self) -> None:
        """About twice a second; for what is not an event, like progress."""
        ...

    def close(self) -> None: ...


def without_details(night: Night, number: int) -> Night:
    """What was decided long ago, and not kept, is told by the kind of its verdict alone: observers add up to several
    nights in memory."""
    e = night.experiments[number]
    if e.kept or e.verdict is None or e.verdict.kind == "held":
        return night
    return replace(night, experiments={**night.experiments, number: decided(number, e.verdict.kind)})


@cache
def decided(number: int, kind: VerdictKind) -> Experiment:
    """The same record for all observers."""
    return Experiment(number, parent="", created=0.0, state="published", verdict=Verdict(kind=kind, reason=""))


class Follower(threading.Thread):
    """One observer at work. What it raises is written to logs/observer-<name>.log, and ends it alone."""

    def __init__(self, home: Path, observer: Observer):
        super().__init__(name=f"observer {observer.name}", daemon=True)
        self.home, self.observer = home, observer
        self.news, self.leaving = threading.Event(), threading.Event()

    def run(self) -> None:
        try:
            self.follow()
        except Exception:
            log = self.home / "logs" / f"observer-{self.observer.name}.log"
            log.parent.mkdir(exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")

    def follow(self) -> None:
        ledger = Ledger(self.home, readonly=True)
        try:
            history, night, cursor = History(ledger.text), Night(), 0
            for number, event in ledger.events():
                night, cursor = night.after(event), number
            self.observer.start(night, history)
            for number in night.order[:-RECENT]:
                night = without_details(night, number)
            while True:
                last = self.leaving.is_set()
                self.news.clear()
                for number, event in ledger.events(after=cursor):
                    night, cursor = night.after(event), number
                    self.observer.see(event, night, history)
                    if isinstance(event, Published) and len(night.order) > RECENT:
                        night = without_details(night, night.order[-RECENT - 1])
                if last:
                    return
                self.observer.tick()
                self.news.wait(TICK)
        finally:
            self.observer.close()
            ledger.close()

    def leave(self) -> None:
        """Let it see all that is there, and then end."""
        self.leaving.set()
        self.news.set()


def say_goodbye(followers: Sequence[Follower], stopping: bool) -> None:
    """Wait for all of them, but not for ever: one that hangs dies with this process."""
    until = time.monotonic() + (SHORT_GOODBYE if stopping else GOODBYE)
    for follower in followers:
        follower.leave()
    for follower in followers:
        follower.join(max(0.0, until - time.monotonic()))
