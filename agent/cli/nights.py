"""Which nights there are in a repository, and which one a command means."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Set
from pathlib import Path

from agent.errors import Failure
from agent.ledger import Ledger, is_old


def choose_tag(root: Path, tag: str | None, today: str, new: bool, refs: Set[str] = frozenset()) -> str:
    """Without a `tag`: the newest night that is not finished, or today's date, counted up where there is one already,
    or a night of that name has left `refs`. `new`: another night, whatever became of the others. Raises Failure."""
    if tag and new and (root / ".research" / tag / "ledger.db").exists():
        raise Failure(f"there is a night called {tag} already: leave --new out, or choose another --tag")
    if tag:
        return tag
    home = newest(root)
    if not new and home is not None and not is_finished(home):
        return home.name
    taken = {path.name for path in nights(root)} | refs
    names = [today, *(f"{today}-{n}" for n in range(2, 1000))]
    return next(name for name in names if name not in taken)


def is_finished(home: Path) -> bool:
    """By its own experiments, target or plateau; a night of an older version is not gone on with."""
    try:
        if is_old(home / "ledger.db"):
            return True
        ended = Ledger(home, readonly=True).night().ended
    except (Failure, sqlite3.DatabaseError):  # it is damaged: to go on with it puts it right, or says what to do
        return False
    return ended is not None and ended.code == 0


def nights(root: Path) -> list[Path]:
    """Folders of all nights, oldest first. Raises Failure where they are hidden."""
    folder = root / ".research"
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise Failure(f"{folder} belongs to {folder.owner()}, and nobody else may look: give the command as that user")
    ledgers = sorted(folder.glob("*/ledger.db"), key=lambda path: path.stat().st_mtime)
    return [path.parent for path in ledgers]


def newest(root: Path) -> Path | None:
    return nights(root)[-1] if nights(root) else None


def check_quiet(root: Path) -> None:
    """Raises Failure where a loop trains in this project: what is measured beside it has not the machine to itself."""
    for home in nights(root):
        if is_worked_on(home):
            raise Failure(f"a loop works on {home.name}: `stop` it, or wait for its end, and give this command again")


def is_worked_on(home: Path) -> bool:
    """Whether a loop holds the night at this moment. Nothing is written: it may be somebody else's night."""
    try:
        file = os.open(home / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
