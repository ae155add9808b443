"""What a process that was killed has left behind, found and removed by the next one: folders by their names, which say
who made them, and processes by what only this program starts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from agent.run.process import reap
from agent.run.syscalls import USERS
from agent.run.task import Task

PREFIX = "overnight-"
DAY = 86400.0
OWN_PROGRAMS = ("agent.run.worker", "/agent/run/guard.py", "/agent/run/wall.py", "/agent/run/kernel_probe.py")


@contextlib.contextmanager
def temporary(folder: Path | None = None) -> Iterator[Path]:
    """An empty folder that goes with the block, or else by `sweep`. None: where the system has such folders."""
    place = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{signature()}-", dir=folder))
    try:
        yield place
    finally:
        remove(place)


def signature() -> str:
    """Names this process for as long as this machine, or container, runs."""
    return f"{namespace()}-{os.getpid()}-{int(psutil.Process().create_time())}"


def namespace() -> str:
    """Process ids mean something only within it."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


def clear(home: Path) -> str:
    """At the start of a process that holds the lock of this night: nothing of the one before it is left. What there
    was, for the person; "": nothing."""
    processes = reap(home) + end_strays(home)
    folders = sweep(home)
    for slot in home.glob("slots/*"):
        clear_slot(home, slot)
    for part in (*home.glob("*/*.part"), *home.glob("*/.*.part"), *home.glob("*.tmp"), *home.glob("live/*.json"),
                 *home.glob("modules.*"), *home.glob("compiled/*/*.*")):  # fmt: skip
        remove(part)
    if not processes and not folders:
        return ""
    return f"removed what a killed loop had left: {processes} processes, {folders} temporary folders"


def clear_slot(home: Path, slot: Path) -> None:
    """The files of a trial that was cut off, and what it has saved; what a measured trial has saved stays."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        task = Task.from_json((slot / "task.json").read_text())
        if task.what == "train" and (home / "live" / f"{slot.name}.json").exists():
            remove(home / "outputs" / task.output.name)
    remove(slot)


def sweep(*folders: Path) -> int:
    """Remove what `temporary` has made in these folders for processes that have ended. How many there were."""
    removed = 0
    for folder in (*folders, Path(tempfile.gettempdir())):
        for path in folder.glob(f"{PREFIX}*-*-*-*"):
            with contextlib.suppress(OSError, ValueError, subprocess.CalledProcessError):
                if path.lstat().st_uid == os.getuid() and abandoned(path):
                    remove(path)
                    removed += 1
    return removed


def abandoned(path: Path) -> bool:
    """Whether its maker has ended. Raises ValueError for a name that `temporary` does not give."""
    where, pid, created = path.name.removeprefix(PREFIX).split("-")[:3]
    if where != namespace():  # another container, or this one before its last start
        return time.time() - path.lstat().st_mtime > DAY
    with contextlib.suppress(psutil.Error):
        return abs(psutil.Process(int(pid)).create_time() - int(created)) > 2
    return True


def end_strays(home: Path) -> int:
    """End processes that run for the night in `home` though no loop does: the caller holds its lock. How many.

    They are ours where the user is, no terminal belongs to them, and either the command line is one of this program's
    own with the night's folder in it, or they work in a folder that only trials are started in.
    """
    mine = {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}
    strays = [p for p in psutil.process_iter() if p.pid not in mine and is_stray(p, f"{home.resolve()}{os.sep}")]
    for process in strays:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(strays, timeout=5)
    return len(strays)


def is_stray(process: psutil.Process, folder: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        user = process.uids().real
        if (user != os.getuid() and user not in USERS) or process.terminal():
            return False
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        argv = process.cmdline()
        own = bool(argv) and (
            os.path.basename(argv[0]) == "bwrap" or any(part.endswith(OWN_PROGRAMS) for part in argv[1:6])
        )
        if own and any(folder in part for part in argv):
            return True
        cwd = process.cwd()
        return cwd.startswith((f"{folder}slots/", f"{folder}{PREFIX}"))
    return False


def remove(path: Path) -> None:
    """Delete a folder or file, whatever a trial has made of it: any modes, any depth, any names."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        try:
            shutil.rmtree(path)
        except (OSError, RecursionError):
            subprocess.run(["chmod", "-R", "u+rwX", "--", path], check=False, stderr=subprocess.DEVNULL)
            subprocess.run(["rm", "-rf", "--one-file-system", "--", path], check=True)
