"""Rooms for the model, beside the evaluator's and not inside it, made when the evaluator asks.

The evaluator is given a command prefix in RESEARCH_MODEL_SANDBOX: `python ask_for_room.py SOCKET`. Put before a
command, it hands that command and its own open files to this side, which starts the command in a room of kind "model".
So neither process can see, trace or signal the other: all they share is the files that the evaluator left open.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from agent.run.sandbox import Room, Sandbox
from agent.run.syscalls import FILES, PARENT

CLIENT = Path(__file__).with_name("ask_for_room.py")
MOST_FILES = 64  # that one process of a model may be given
ABOVE = 1000  # received files are first moved above this number, out of the way of the numbers that they shall have
END_SECONDS = 15.0


class ModelRooms:
    """Listens at `folder`/rooms as long as it is open. `room` makes the room of each process of the model from its
    number: each has a scratch folder of its own."""

    def __init__(self, sandbox: Sandbox, room: Callable[[int], Room], folder: Path):
        self._sandbox, self._room, self._folder = sandbox, room, folder
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder.mkdir()
        with short(folder) as name:
            self._listener.bind(f"{name}/rooms")
        os.chmod(folder / "rooms", 0o777)  # the evaluator may be another user; the folder is below one of mode 700
        self._listener.listen(8)
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="model rooms", daemon=True)
        self._thread.start()

    def prefix(self) -> list[str]:
        """What the evaluator puts before a command."""
        return [sys.executable, "-I", "-S", str(CLIENT), str(self._folder)]

    def close(self) -> None:
        """End every process that was started here."""
        os.close(self._stop)
        self._thread.join()
        for thread in self._threads:
            thread.join(END_SECONDS)
        self._listener.close()
        os.close(self._wake)

    def _listen(self) -> None:
        while not select.select([self._listener, self._wake], [], [])[0].count(self._wake):
            asking, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(asking, len(self._threads)), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, asking: socket.socket, number: int) -> None:
        """One process, from the request to its end. This thread stays as long as the process does."""
        with asking:
            try:
                process = self._start(asking, number)
            except (OSError, ValueError, KeyError, TypeError) as error:
                with contextlib.suppress(OSError):
                    asking.sendall(json.dumps({"error": str(error)}).encode())
                return
            ended = os.pidfd_open(process.pid)
            select.select([asking, ended, self._wake], [], [])  # the asker speaks only to say that it shall end
            process.send_signal(signal.SIGHUP)
            code = process.wait()
            os.close(ended)
            with contextlib.suppress(OSError):
                asking.sendall(json.dumps({"code": code}).encode())

    def _start(self, asking: socket.socket, number: int) -> subprocess.Popen[bytes]:
        """Read the request, and start its command with the asker's files, which the guard gives their numbers there."""
        told, files = receive(asking)
        moved = []
        try:
            for file in files:
                moved.append(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, ABOVE))
                os.close(file)
            numbers = [int(n) for n in told["files"]]
            argv = [str(part) for part in told["argv"]]
            if len(numbers) != len(moved) or any(not 0 <= n < ABOVE for n in numbers):
                raise ValueError("the files do not fit their numbers")
            command = self._sandbox.wrap(argv, self._room(number))
            pairs = " ".join(f"{file}:{number}" for file, number in zip(moved, numbers, strict=True))
            env = {FILES: pairs, PARENT: str(os.getpid())}
            return subprocess.Popen(command, env=env, pass_fds=moved)  # which closes every other file
        finally:
            for file in moved:
                os.close(file)


def receive(asking: socket.socket) -> tuple[dict, list[int]]:
    """A length, a JSON object of that length, and the open files that came with the length. Raises ValueError."""
    data, extra, flags, _ = asking.recvmsg(4, socket.CMSG_SPACE(MOST_FILES * 4))
    files = array.array("i")
    for level, kind, block in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(block[: len(block) - len(block) % files.itemsize])
    if len(data) < 4 or flags & socket.MSG_CTRUNC:
        raise ValueError("no request, or too many open files")
    left, text = struct.unpack("I", data)[0], b""
    while len(text) < min(left, 1 << 20):
        block = asking.recv(min(left, 1 << 20) - len(text))
        if not block:
            raise ValueError("the request breaks off")
        text += block
    told = json.loads(text)
    if not isinstance(told, dict):
        raise ValueError("the request is no object")
    return told, list(files)


@contextlib.contextmanager
def short(folder: Path):
    """A short name of a folder, for sockets in it: the kernel takes 107 bytes of path at most."""
    opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{opened}"
    finally:
        os.close(opened)
