"""The ledger: the SQLite journal of one night, append only, and the only source of truth.

One writer, held by a file lock; any number of readers. An event is durable when `append` returns, together with the
texts that it names. Nothing is ever changed: events of an older schema are upgraded when they are read.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from agent.errors import Failure
from agent.events import KINDS, Event
from agent.night import Night

VERSION = 1
"""Of the events in the journal. A change that makes old ones unreadable counts it up and adds an upgrade."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS schema (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS journal (
    number INTEGER PRIMARY KEY, version INTEGER NOT NULL, kind TEXT NOT NULL, event TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS texts (hash TEXT PRIMARY KEY, text BLOB NOT NULL);
"""
Upgrade = Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]
UPGRADES: dict[int, Upgrade] = {}
"""Version -> what makes (kind, event) of this version one of the next. Each has a fixture in tests/journals/."""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def encode(event: Event) -> str:
    """The event as it lies in the journal."""
    return event.model_dump_json(exclude_defaults=True)


def decode(version: int, kind: str, text: str) -> Event:
    """The event, of whatever version it was written in."""
    if version > VERSION:
        raise Failure("this night was written by a newer version of this program: use that one")
    values = json.loads(text)
    for step in range(version, VERSION):
        kind, values = UPGRADES[step](kind, values)
    return KINDS[kind].model_validate(values)


class Ledger:
    """Opens `home/ledger.db`, making it where it is missing; `readonly` for reports and observers.

    Raises Failure where another process holds the night, where there is nothing to read, or where the night was
    written by a version before 0.2.
    """

    def __init__(self, home: Path, readonly: bool = False):
        self.path, self.lock = home / "ledger.db", None
        if readonly:
            if not self.path.exists():
                raise Failure(f"there is no night at {home}: start one with `python -m agent.loop`")
        else:
            home.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(home / "lock")
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                raise Failure(
                    f"{home.name} is already being worked on by another loop: choose another --tag"
                ) from None
        if is_old(self.path):
            self.close()
            raise Failure(f"{home.name} was made by version 0.1: `report` shows it, a new --tag goes on")
        self.db = connect(self.path, readonly)
        self.waiting: dict[str, bytes] = {}  # texts that go in with the next event
        if not readonly:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
            self.db.executescript(SCHEMA)
            if self.db.execute("SELECT version FROM schema").fetchone() is None:
                self.db.execute("INSERT INTO schema VALUES (?)", (VERSION,))

    def close(self) -> None:
        if hasattr(self, "db"):
            if self.lock:  # whoever copies the file has all of it; readers may hold the last pages back
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.db.close()
        if self.lock:
            self.lock.release()

    def put(self, text: str) -> str:
        """Keep a text: its hash. It is durable with the next event, which is the one that names it."""
        key = digest(text)
        self.waiting[key] = zlib.compress(text.encode("utf-8", "surrogatepass"), 1)
        return key

    def text(self, key: str) -> str:
        """The text with this hash."""
        if (waiting := self.waiting.get(key)) is None:
            row = self.db.execute("SELECT text FROM texts WHERE hash = ?", (key,)).fetchone()
            if row is None:
                raise Failure(f"{self.path} is damaged: the text {key} is missing; restore it from a backup")
            waiting = row[0]
        return zlib.decompress(waiting).decode("utf-8", "surrogatepass")

    def append(self, event: Event) -> None:
        """The event and the texts put before it, all or none; durable on return."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            self.db.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", self.waiting.items())
            row = VERSION, type(event).__name__, encode(event)
            self.db.execute("INSERT INTO journal (version, kind, event) VALUES (?, ?, ?)", row)
            self.db.execute("COMMIT")
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.waiting.clear()

    def events(self, after: int = 0) -> Iterator[tuple[int, Event]]:
        """The journal from its beginning, or from behind a number; oldest first, each with its number."""
        rows = self.db.execute(
            "SELECT number, version, kind, event FROM journal WHERE number > ? ORDER BY number", (after,)
        )
        return ((number, decode(version, kind, event)) for number, version, kind, event in rows.fetchall())

    def night(self) -> Night:
        """The sum of all events."""
        night = Night()
        for _, event in self.events():
            night = night.after(event)
        return night


def connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if readonly:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    return sqlite3.connect(path, isolation_level=None)


def is_old(path: Path) -> bool:
    """Whether this is the ledger of a night of version 0.1 (tables in place of a journal)."""
    if not path.exists():
        return False
    db = connect(path, readonly=True)
    try:
        return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone() is not None
    finally:
        db.close()
