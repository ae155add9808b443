"""Run one command to its very end: read all it says, hold it to its limits, leave nothing of it behind.

What belongs to a command is found in four ways, because code under test may hide from any one of them:
its process group, its session, its descendants as they were seen while it ran, and a mark in the
environment that children inherit. In a sandbox the pid namespace does the same once more.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from agent import uptime
from agent.run.log import Lines, Log
from agent.run.syscalls import PARENT

STOP_GRACE = 0.5  # seconds for what is stopped by a person: its results are thrown away, and somebody waits
MARK = "RESEARCH_TRIAL"  # environment variable: the unique id of the command a process belongs to
CHUNK = 1 << 16
# Linux only: the kernel kills the command when the thread that started it dies. A wrapper that becomes the
# command, because running Python between fork and exec (preexec_fn) is not safe in a program with threads.
START = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"can't run {sys.argv[2]!r}: {error.strerror}")
"""


class Limit:
    """A deadline and what to say when it passes; may be moved while the command runs. Time in which this program was
    stopped does not count."""

    def __init__(self, seconds: float, why: str):
        self.within(seconds, why)

    def within(self, seconds: float, why: str) -> None:
        """From now on, `seconds` are left (0: end it at once)."""
        self.at, self.why = uptime.now() + seconds, why


class Cancel:
    """Ends a command from another thread. Made before it starts, closed after it has ended."""

    def __init__(self):
        self.asked = self.now = False
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._lock = threading.Lock()

    def ask(self, now: bool = False) -> None:
        """SIGTERM and a grace; `now`: SIGKILL. May be called again, and after the end."""
        with self._lock:
            self.asked, self.now = True, self.now or now
            if self._writer >= 0:
                os.write(self._writer, b"x")

    def wait(self, seconds: float) -> None:
        """At most so long; a request ends the wait."""
        select.select([self.reader], [], [], seconds)

    def close(self) -> None:
        with self._lock:
            for end in (self.reader, self._writer):
                os.close(end)
            self.reader = self._writer = -1


class Tree:
    """All processes that belong to one command. `top`: the command's own; None: it is gone."""

    def __init__(self, top: psutil.Process | None, mark: str):
        self.top, self.mark = top, mark
        self.pid = top.pid if top else None
        self.seen: set[psutil.Process] = set()

    def look(self) -> int:
        """Remember the descendants that live now; the memory they and the command hold, in bytes."""
        held, family = 0, [self.top] if self.top else []
        with contextlib.suppress(psutil.Error):  # psutil knows when the pid has a new owner
            family += self.top.children(recursive=True) if self.top else []
        self.seen.update(family[1:])
        for process in family:
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss
        return held

    def signal_group(self, number: int) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def kill(self, seconds: float = 10.0) -> int:
        """SIGKILL everything, again until nothing is left or `seconds` have passed. How many there were."""
        self.look()
        ended, until = set(), time.monotonic() + seconds
        while True:
            self.signal_group(signal.SIGKILL)
            left = self._strays()
            if not left or time.monotonic() > until:
                return len(ended)
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            ended.update(left)
            psutil.wait_procs(left, timeout=0.5)

    def _strays(self) -> list[psutil.Process]:
        found = []
        for pid in psutil.pids():
            if pid in (self.pid, os.getpid()):
                continue
            with contextlib.suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                mine = process in self.seen or (self.pid is not None and os.getsid(pid) == self.pid)
                mine = mine or process.environ().get(MARK) == self.mark
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code; negative: the signal."""
    stopped: str
    """Why it was stopped: what the limit said, or "interrupted"; empty when it ended by itself."""
    seconds: float
    peak_bytes: int
    """Most memory that its processes held together, as sampled about once a second."""


def run_process(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Log,
    limit: Limit,
    cancel: Cancel,
    on_line: Callable[[str], None] = lambda line: None,
    apart: bool = False,
    sample: Callable[[set[int]], None] = lambda pids: None,
    record: Path | None = None,
    grace: float = 5.0,
    guarded: bool = False,
    stdin: int = subprocess.DEVNULL,
) -> Ended:
    """Run `argv` until it ends, its limit passes or it is cancelled; then end all that is left of it.

    `on_line` gets each cleaned line of its output; where `apart`, of stdout alone, and stderr goes to the log
    only. `sample` gets the ids of its processes about once a second. Where `guarded`, the command is a guard that ends
    all it has started on SIGHUP, and is given time to. At the limit: SIGTERM to the group, `grace` seconds, SIGKILL
    to everything; when it is cancelled, at most STOP_GRACE seconds.
    `record` names the command on disk while it runs, so that `reap` can end it after a crash
    of this program. The calling thread stays here all the while: the kernel ties the command to it.
    """
    mark, started = uuid.uuid4().hex, uptime.now()
    _note(record, mark)
    stderr = subprocess.PIPE if apart else subprocess.STDOUT
    process = start(argv, cwd, env, mark, guarded, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr)
    tree, seconds = Tree(psutil.Process(process.pid), mark), 0.0  # not reaped yet, so it is there
    with _Reader(process, log, on_line, cancel) as reader:
        try:
            _note(record, mark, process.pid)
            stopped, peak = _watch(process, tree, reader, limit, cancel, sample, grace)
        finally:
            seconds = uptime.now() - started
            if guarded:
                hang_up(process.pid)
            if not guarded or process.poll() is None or process.returncode < 0:  # a guard has left nothing
                tree.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # unkillable only inside a driver
                process.wait(10)
            reader.rest()
            if record:
                record.unlink(missing_ok=True)
    code = process.returncode if process.returncode is not None else -signal.SIGKILL
    return Ended(code, stopped, seconds, peak)


def _watch(
    process: subprocess.Popen[bytes],
    tree: Tree,
    reader: _Reader,
    limit: Limit,
    cancel: Cancel,
    sample: Callable[[set[int]], None],
    grace: float,
) -> tuple[str, int]:
    """Read what it says until it ends, or has to be ended: why it was stopped, and the peak of its memory in bytes."""
    stopped, peak, kill_at, look_at = "", 0, float("inf"), uptime.now() + 0.1
    while process.poll() is None and uptime.now() < kill_at:
        reader.read(min(look_at, kill_at if stopped else limit.at) - uptime.now())
        if (now := uptime.now()) >= look_at:
            peak = max(peak, tree.look())
            sample({process.pid, *(seen.pid for seen in tree.seen)})
            look_at = now + max(1.0, 50 * (uptime.now() - now))  # at most 2% of a core
        if not stopped and (cancel.asked or now >= limit.at):
            stopped = "interrupted" if cancel.asked else limit.why
            kill_at = now + (min(grace, STOP_GRACE) if cancel.asked else grace)
            tree.signal_group(signal.SIGTERM)
        if cancel.now:
            break
    return stopped, peak


def start(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], mark: str, guarded: bool, **streams: Any
) -> subprocess.Popen[bytes]:
    """A process that carries `mark`, in a session of its own, which the kernel ends with the calling thread."""
    wrapper = [] if guarded else [sys.executable, "-ISc", START, str(os.getpid())]  # a guard sees to that itself
    told = {MARK: mark} | ({PARENT: str(os.getpid())} if guarded else {})
    return subprocess.Popen[bytes](
        [*wrapper, *argv], cwd=cwd, env={**env, **told}, bufsize=0, start_new_session=True, **streams
    )


def hang_up(pid: int, seconds: float = 12.0) -> None:
    """SIGHUP to a guard, and wait until it has ended what it guards and itself, or `seconds` have passed."""
    with contextlib.suppress(psutil.Error):
        guard = psutil.Process(pid)
        if guard.status() != psutil.STATUS_ZOMBIE:
            guard.send_signal(signal.SIGHUP)
            ended = os.pidfd_open(pid)
            try:
                select.select([ended], [], [], seconds)
            finally:
                os.close(ended)


class _Reader:
    """The one reader of a command's output; also wakes when it ends and when it is cancelled."""

    def __init__(self, process: subprocess.Popen[bytes], log: Log, on_line: Callable[[str], None], cancel: Cancel):
        self._log, self._on_line, self._stdout = log, on_line, process.stdout
        self._pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe]
        self._selector = selectors.DefaultSelector()
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, Lines())
        self._selector.register(cancel.reader, selectors.EVENT_READ)
        self._pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
        if self._pidfd >= 0:
            self._selector.register(self._pidfd, selectors.EVENT_READ)

    def read(self, seconds: float) -> bool:
        """Wait for something at most so long; take one chunk of each stream. False: no stream had any."""
        heard = False
        wait = max(0.0, seconds if self._pidfd >= 0 else min(seconds, 0.1))
        for key, _ in self._selector.select(wait):
            if isinstance(key.data, Lines):
                heard = True
                self._take(key)
            elif key.fd != self._pidfd:
                os.read(key.fd, CHUNK)
        return heard

    def _take(self, key: selectors.SelectorKey) -> None:
        chunk = os.read(key.fd, CHUNK)
        self._log.write(chunk)
        if not chunk:
            self._selector.unregister(key.fileobj)
        for line, overwritten in key.data.feed(chunk or b"\n"):  # the end completes the last line
            self._log.line(line, overwritten)
            if line and key.fileobj is self._stdout:
                self._on_line(line)

    def rest(self) -> None:
        """What was still in the pipes, for a second at most: a stray that got away may hold them open."""
        until = time.monotonic() + 1
        if self._pidfd >= 0:
            self._selector.unregister(self._pidfd)
        while time.monotonic() < until and self.read(0):
            pass

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for pipe in self._pipes:
            pipe.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)


def _note(record: Path | None, mark: str, pid: int | None = None) -> None:
    """Write down, atomically, which command is running."""
    if record is None:
        return
    created = psutil.Process(pid).create_time() if pid is not None else None
    part = record.with_suffix(".part")
    part.write_text(json.dumps({"mark": mark, "pid": pid, "created": created}))
    os.replace(part, record)


def reap(home: Path) -> int:
    """End what commands recorded below `home` left behind when this program was killed. How many processes.

    A process is taken for the recorded one only if pid and start time agree; its children by the mark.
    """
    ended = 0
    for record in sorted(home.glob("slots/*/process.json")):
        with contextlib.suppress(json.JSONDecodeError, KeyError):
            noted = json.loads(record.read_text())
            top = None
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(noted["pid"]) if noted["pid"] else None
                if process and abs(process.create_time() - noted["created"]) < 2:
                    top = process
                    hang_up(process.pid)  # a guard ends what it guards; any other command just ends
            ended += Tree(top, noted["mark"]).kill() + (top is not None)
            if top:
                psutil.wait_procs([top], timeout=10)
        record.unlink()
    return ended
