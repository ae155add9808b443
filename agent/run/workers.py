"""The worker processes of a slot, one after the other; see worker.py for what they do."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from agent.run.syscalls import PARENT

PACKAGE = Path(__file__).parents[2]
LONGEST_LINE = 16 << 20  # bytes of a worker's answer
TAIL = 4000  # characters of what a broken worker said


class Worker:
    """A process that waits for a task, and then does it. Raises OSError where it can't be started."""

    def __init__(self, folder: Path, root: Path):
        path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "agent.run.worker", f"{folder}{os.sep}"],  # -P: nothing of the repository
            cwd=root,
            env=os.environ | {"PYTHONPATH": path, PARENT: str(os.getpid())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def waits(self) -> bool:
        """Whether it is still there."""
        return self._process.poll() is None

    def begin(self, task: Path) -> None:
        self.write(os.fsencode(task) + b"\n")

    def write(self, message: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended by itself
            assert self._process.stdin
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def wait(self) -> tuple[int, bytes, str]:
        """Its exit code, the last line of its stdout, and the end of its stderr."""
        said: list[str] = []
        errors = threading.Thread(target=_keep_tail, args=(self._process.stderr, said), daemon=True)
        errors.start()
        assert self._process.stdout
        lines = self._process.stdout.read(LONGEST_LINE).splitlines()
        code = self._process.wait()
        errors.join(5)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return code, lines[-1] if lines else b"", "".join(said)

    def kill(self) -> None:
        """With all that it has started; nothing where it has ended."""
        self._process.kill()

    def dismiss(self) -> None:
        """End one that waits."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        self.wait()


class Slot:
    """Does one thing at a time in a thread of its own, which stays to the end: the kernel ends a worker together with
    the thread that started it. One worker is started ahead, while another is at work: a start takes 90 ms."""

    def __init__(self, folder: Path, root: Path):
        self._folder, self._root = folder, root
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ahead: Worker | None = None
        self._closed, self._left = False, threading.Event()
        threading.Thread(target=self._serve, name=folder.name, daemon=True).start()

    def do(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def worker(self) -> Worker:
        """One that waits. Only within a job. Raises OSError."""
        ahead, self._ahead = self._ahead, None
        return ahead if ahead and ahead.waits else Worker(self._folder, self._root)

    def start_ahead(self) -> None:
        """The next one. Only within a job."""
        if self._ahead is None and not self._closed:
            with contextlib.suppress(OSError):  # it is tried again when it is needed, and its failure told then
                self._ahead = Worker(self._folder, self._root)

    def close(self) -> threading.Event:
        """Start no worker ahead any more, and end the one that waits, after what is done now; set when that is so."""
        self._closed = True
        self.do(self._dismiss)
        return self._left

    def _dismiss(self) -> None:
        if self._ahead:
            self._ahead.dismiss()
            self._ahead = None
        self._left.set()

    def _serve(self) -> None:
        while True:
            self._jobs.get()()


def _keep_tail(pipe: IO[bytes] | None, said: list[str]) -> None:
    """The end of what is written to a pipe, as one text in `said`."""
    tail = b""
    while pipe and (block := os.read(pipe.fileno(), 1 << 16)):
        tail = (tail + block)[-TAIL:]
    said.append(tail.decode(errors="replace"))
