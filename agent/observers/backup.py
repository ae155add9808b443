"""Copies the ledger into .git with every keep, and at the end of a process (agent/backup.py says why)."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from agent.events import Event
from agent.history import History
from agent.ledger import copy
from agent.night import Night
from agent.observers.push import moves_the_branch


class Backup:
    """Keeps the copy at `to`. Where that fails, as on a full disk, the next keep tries again."""

    name = "backup"

    def __init__(self, home: Path, to: Path):
        self.path, self.to = home / "ledger.db", to
        self.due = self.behind = False

    def start(self, night: Night, history: History) -> None:
        self.due = bool(night.kept)

    def see(self, event: Event, night: Night, history: History) -> None:
        self.behind = bool(night.kept)
        self.due = self.due or moves_the_branch(event, night)

    def tick(self) -> None:
        if self.due:
            try:
                copy(self.path, self.to)
            except (OSError, sqlite3.Error):
                return
            self.due = self.behind = False

    def close(self) -> None:
        self.due = self.due or self.behind
        self.tick()
