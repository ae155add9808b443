"""Training data by a pipe: the command that `feed:` in program.md names hands it in, from a room of its own.

So the data lies nowhere in the room that trains: it gets what it is given, in an order of the harness's seed, and
nothing before its budget starts. The training command reads it from stdin: first a line that describes the data, at
once; when it is ready to train it prints the line `ready`, and gets the line `go` and the data. The feeding command
gets the line `go` on its own stdin at that moment, and ends when it has handed out what the budget allows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import uuid
from collections.abc import Sequence

import psutil

from agent.run.process import Tree, hang_up, start
from agent.run.sandbox import Room

READY = "ready"
AHEAD = 1 << 20  # bytes that wait in the pipe, so that training never waits for the next ones


class Feed:
    """The feeding command of one trial, from its start to its end. `stdin` is for the training command."""

    def __init__(self, argv: Sequence[str], room: Room, guarded: bool):
        self.stdin, out = os.pipe()
        self._said, self._guarded, mark = room.scratch / "said", guarded, uuid.uuid4().hex
        with contextlib.suppress(OSError):  # an ordinary user may have too many large pipes already
            fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, AHEAD)
        with self._said.open("wb") as said:
            streams = {"stdin": subprocess.PIPE, "stdout": out, "stderr": said}
            self._process = start(argv, room.workdir, room.env, mark, guarded, **streams)
        os.close(out)
        self._tree = Tree(psutil.Process(self._process.pid), mark)

    def go(self) -> None:
        """The budget starts now."""
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it has failed, which the training command finds out
            self._process.stdin.write(b"go\n")

    def close(self) -> str:
        """End it. Why it had failed, by itself: until here its pipe had a reader; "" where it had not."""
        failed = self._process.poll() not in (None, 0)
        os.close(self.stdin)
        if self._guarded:
            hang_up(self._process.pid)
        self._tree.kill()
        self._process.communicate()
        lines = self._said.read_text(errors="replace").strip().splitlines()
        return f"feed: {lines[-1] if lines else f'exit code {self._process.returncode}'}"[:300] if failed else ""
