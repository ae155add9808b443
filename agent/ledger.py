"""The ledger: the SQLite journal of one night, append only, and the only source of truth.

One writer, held by a file lock; any number of readers. An event is durable when `append` returns, together with the
texts that it names. Nothing is ever changed: events of an older schema are upgraded when they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from agent.errors import Failure
from agent.events import KINDS, Event
from agent.night import Night, OutOfOrder
from agent.storage import Reserve, disk_full, is_full, journal_mode
from agent.typed import typed

BUSY = sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL
PATIENCE = 0.25  # seconds that one try waits for a lock: signals are heard in between
CACHE_KIB = 256  # of each connection
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

    `held`: the lock of the night, where the caller has it already; `name`: of the file, for a copy. Raises Failure
    where another process has it, where there is nothing to read, or where the night was written before version 0.2.
    """

    def __init__(self, home: Path, readonly: bool = False, held: FileLock | None = None, name: str = "ledger.db"):
        self.path, self.lock = home / name, held
        if readonly:
            if not self.path.exists():
                raise Failure(f"there is no night at {home}: start one with `{typed('run')}`")
        else:
            home.mkdir(parents=True, exist_ok=True)
            self.lock = held or lock(home)
            self.reserve = Reserve(home)
        try:
            if is_old(self.path):
                raise Failure(f"{home.name} was made by version 0.1: `report` shows it, a new --tag goes on")
            self.db = connect(self.path, readonly)
            self.waiting: dict[str, bytes] = {}  # texts that go in with the next event
            if not readonly:
                self.open()
            elif not has_tables(self.path, "journal"):
                again = typed(f"run --tag {home.name}")
                raise Failure(f"{self.path} is empty: `{again}` puts its copy back where there is one, or begins it")
        except sqlite3.DatabaseError as error:
            self.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise Damaged(self.path, str(error)) from None
        except Failure:
            self.close()
            raise

    def open(self) -> None:
        execute(self.db, f"PRAGMA journal_mode={journal_mode(self.path.parent)}")
        execute(self.db, "PRAGMA synchronous=FULL")
        for statement in SCHEMA.split(";"):
            execute(self.db, statement)
        if execute(self.db, "SELECT version FROM schema").fetchone() is None:
            execute(self.db, "INSERT INTO schema VALUES (?)", (VERSION,))
        self.reserve.make()

    def close(self) -> None:
        if hasattr(self, "db"):
            if self.lock:  # whoever copies the file has all of it; readers may hold the last pages back
                with contextlib.suppress(sqlite3.Error):
                    self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.db.close()
        if self.lock:
            self.reserve.free()
            self.lock.release()

    def save(self, to: Path) -> None:
        """A copy of this journal, whatever became of its file; put in place by a rename."""
        backup(self.db, to)

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
                raise Damaged(self.path, f"the text {key} is missing")
            waiting = row[0]
        return zlib.decompress(waiting).decode("utf-8", "surrogatepass")

    def append(self, event: Event) -> None:
        """The event and the texts put before it, all or none; durable on return. Waits as long as another process
        holds the journal. Raises MachineFault where the disk is full, and what was set aside for that is used up."""
        try:
            try:
                self.write(event)
            except sqlite3.Error as error:
                if not is_full(error, self.path.parent) or not self.reserve.free():
                    raise
                self.write(event)
        except sqlite3.Error as error:
            if is_full(error, self.path.parent):
                raise disk_full(self.path.parent) from None
            raise
        self.waiting.clear()

    def write(self, event: Event) -> None:
        execute(self.db, "BEGIN IMMEDIATE")
        try:
            self.db.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", self.waiting.items())
            row = VERSION, type(event).__name__, encode(event)
            self.db.execute("INSERT INTO journal (version, kind, event) VALUES (?, ?, ?)", row)
            execute(self.db, "COMMIT")
        except BaseException:
            if self.db.in_transaction:  # a full disk may have rolled it back already
                self.db.execute("ROLLBACK")
            raise

    def events(self, after: int = 0) -> Iterator[tuple[int, Event]]:
        """The journal from its beginning, or from behind a number; oldest first, each with its number."""
        wanted = "SELECT number, version, kind, event FROM journal WHERE number > ? ORDER BY number"
        rows = execute(self.db, wanted, (after,)).fetchall()
        return ((number, self.decoded(number, *row)) for number, *row in rows)

    def decoded(self, number: int, version: int, kind: str, text: str) -> Event:
        try:
            return decode(version, kind, text)
        except (ValueError, KeyError) as error:
            raise Damaged(self.path, f"event {number}: {str(error).partition(chr(10))[0]}") from None

    def nights(self, night: Night = Night(), after: int = 0) -> Iterator[tuple[int, Event, Night]]:  # noqa: B008
        """Each event with its number, and the night with it; from the beginning, or on from `night`, whose last event
        has the number `after`. Raises Damaged where events are missing."""
        for number, event in self.events(after):
            try:
                night = night.after(event)
            except OutOfOrder as error:
                raise Damaged(self.path, f"event {number}: {error}") from None
            yield number, event, night

    def night(self) -> Night:
        """The sum of all events."""
        night = Night()
        for *_, night in self.nights():  # noqa: B007
            pass
        return night


def connect(path: Path, readonly: bool) -> sqlite3.Connection:
    """A connection with a small cache: each observer has one, and what is read is read once."""
    where = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
    db = sqlite3.connect(where, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=not readonly)
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return db


def execute(db: sqlite3.Connection, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
    """As db.execute; where another process holds the file, however long, it only waits."""
    while True:
        try:
            return db.execute(statement, values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in BUSY:
                raise
            time.sleep(0.01)


def lock(home: Path) -> FileLock:
    """The right to write this night, until this process ends. Raises Failure where another one has it."""
    held = FileLock(home / "lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise Failure(f"{home.name} is already being worked on by another loop: choose another --tag") from None
    except PermissionError as error:
        raise Failure(f"{home} can't be written ({error.strerror}): give the command as its owner") from None
    except (OSError, NotImplementedError) as error:
        raise Failure(
            f"files can't be locked in {home} ({error}): clone the repository onto a local disk, and start there"
        ) from None
    return held


def is_old(path: Path) -> bool:
    """Whether this is the ledger of a night of version 0.1 (tables in place of a journal). Raises Failure where it is
    damaged."""
    if not path.exists():
        return False
    try:
        return has_tables(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise Damaged(path, str(error)) from None


def has_tables(path: Path, name: str = "experiments") -> bool:
    """Whether this one is among them; the default: of a night of version 0.1."""
    with contextlib.closing(connect(path, readonly=True)) as db:
        return execute(db, "SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone() is not None


def damage(path: Path) -> str:
    """What is wrong with this ledger, by SQLite's own check; "" where it is whole."""
    if not path.exists():
        return "it is missing"
    try:
        with contextlib.closing(connect(path, readonly=True)) as db:
            if (said := execute(db, "PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                return said.replace("\n", " ")
            if has_tables(path):
                return ""
            empty = execute(db, "SELECT 1 FROM journal LIMIT 1").fetchone() is None
    except sqlite3.DatabaseError as error:
        return "it is empty" if path.stat().st_size == 0 else str(error)
    return "it is empty" if empty else ""


def copy(path: Path, to: Path) -> None:
    """A whole copy of a ledger, also while it is written; put in place by a rename."""
    with contextlib.closing(connect(path, readonly=True)) as source:
        backup(source, to)


def backup(source: sqlite3.Connection, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = to.with_name(f"{to.name}.part")
    aside.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(aside)) as db:
        source.backup(db)
    os.replace(aside, to)


class Damaged(Failure):
    """A journal that is not whole, and why."""

    def __init__(self, path: Path, why: str):
        self.why = why
        super().__init__(
            f"{path} is damaged ({why}): put a copy of it back, or move {path.parent} away and choose another --tag"
        )
