"""The disk under a night: whether a journal can be kept there, and some room that is set aside for it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

from agent.errors import Failure, MachineFault
from agent.run.leftovers import temporary

RESERVE = 16 << 20  # bytes set aside for the journal: what a night may still write when others have filled the disk
LITTLE = 1 << 20  # with less free than this, an error of the disk is taken for a full one
LOCAL = frozenset(["btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"])
SHARED = frozenset(
    ["afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"]
)
"""Between machines: there SQLite's WAL, which needs shared memory, loses what was written."""
SECOND_PROCESS = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
count = db.execute("SELECT count(*) FROM t").fetchone()[0]
try:
    db.execute("BEGIN IMMEDIATE")
    print(count, "not held")
except sqlite3.OperationalError:
    print(count, "held")
"""


def journal_mode(folder: Path) -> str:
    """The SQLite journal mode that works in this folder. Raises Failure, with what to do, where none does."""
    kind = file_system(folder)
    if kind in LOCAL:
        return "WAL"
    said = ""
    for mode in ("TRUNCATE",) if kind in SHARED else ("WAL", "TRUNCATE"):
        if not (said := fault(folder, mode)):
            return mode
    raise Failure(
        f"no journal can be kept in {folder} ({kind or 'unknown file system'}: {said}): clone the repository onto a "
        "local disk, and start there"
    )


def fault(folder: Path, mode: str) -> str:
    """A small journal is written, and another process looks at it while it is locked; what is wrong, or ""."""
    with temporary(folder) as scratch:
        path = scratch / "test.db"
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as db:
                told = db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]
                if told.upper() != mode:
                    return f"journal mode {mode} is not to be had"
                db.execute("CREATE TABLE t (x)")
                db.execute("INSERT INTO t VALUES (1)")
                db.execute("BEGIN IMMEDIATE")
                second = [sys.executable, "-ISc", SECOND_PROCESS, str(path)]
                ran = subprocess.run(second, capture_output=True, text=True, timeout=60)
        except (OSError, sqlite3.Error, subprocess.TimeoutExpired) as error:
            return str(error)
        if ran.stdout.split() == ["1", "held"]:
            return ""
        return "locks do not hold" if "not held" in ran.stdout else (ran.stderr.strip().splitlines() or ["?"])[-1]


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Its type, as the kernel names it; "" where that can't be known."""
    found, wanted = (-1, ""), folder.resolve()
    with contextlib.suppress(OSError):
        for line in mounts.read_text(errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            place = Path(fields.split()[4].encode().decode("unicode_escape"))
            if wanted.is_relative_to(place) and len(place.parts) >= found[0]:  # a later mount lies over an earlier one
                found = len(place.parts), rest.split()[0]
    return found[1]


class Reserve:
    """A file in the night's folder that only takes room, until the disk is full and it is given up."""

    def __init__(self, home: Path):
        self.path = home / "reserve"

    def make(self) -> None:
        """Where there is room; a disk that is nearly full keeps none."""
        with contextlib.suppress(OSError):
            if not self.path.exists() and shutil.disk_usage(self.path.parent).free > 2 * RESERVE:
                with self.path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, RESERVE)

    def free(self) -> bool:
        """Give it up. False: there was none any more."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True

    def free_if_full(self) -> None:
        """At the start, before anything is written."""
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self.path.parent).free < RESERVE:
                self.free()


def is_full(error: sqlite3.Error | OSError, folder: Path) -> bool:
    """Whether this error means that the disk, or the person's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(error, "sqlite_errorcode", 0) or 0
    if code == sqlite3.SQLITE_FULL:
        return True
    return code & 0xFF == sqlite3.SQLITE_IOERR and shutil.disk_usage(folder).free < LITTLE


def disk_full(folder: Path) -> MachineFault:
    free = shutil.disk_usage(folder).free >> 20
    return MachineFault(f"the disk of {folder} is full ({free} MiB free): make room, and the same command goes on")
