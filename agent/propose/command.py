"""Proposals from a program that reads the prompt on stdin and prints the reply: claude -p, codex exec, llm."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from agent.errors import Failure, ProposerError
from agent.propose.context import estimate_tokens
from agent.propose.reply import messages, reply_text
from agent.protocols import Request
from agent.records import Reply
from agent.uptime import TICK, now

DEADLINE = 900.0  # seconds for one reply
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
LONGEST_REPLY = 4_000_000  # bytes


Entered = tuple[list[str], "Path | None", "dict[str, str] | None"]


class Enclosure(Protocol):
    """A room around the command: agent/run/proposer_room.py."""

    def entered(self, argv: Sequence[str]) -> AbstractContextManager[Entered]:
        """The command in the room, the folder in which it is started, and its environment."""
        ...

    def close(self) -> None: ...


class CommandProposer:
    """Runs the command anew for each reply, without a shell: in a room where it has one (`enclosure`), else with all
    the rights of the person."""

    name = "command"
    converses = True
    reads = True
    enclosure: Enclosure | None = None

    def __init__(self, command: str, deadline: float = DEADLINE):
        """Raises Failure when the command can't be understood."""
        try:
            self.argv = shlex.split(command)
        except ValueError as error:
            raise Failure(f"--command {command!r}: {error}; quote it as for a shell") from None
        if not self.argv:
            raise Failure("--command is empty: write for example --command 'claude -p'")
        self.model = os.path.basename(self.argv[0])
        self.deadline = deadline
        self.running: set[subprocess.Popen[bytes]] = set()

    def check(self, request: Request) -> None:
        if shutil.which(self.argv[0]) is None:
            raise Failure(f"--command {self.argv[0]}: there is no such program: install it, or write its path")

    def close(self) -> None:
        for process in list(self.running):
            kill(process, signal.SIGHUP if self.enclosure else signal.SIGKILL)
        if self.enclosure:
            self.enclosure.close()

    def most_usd(self, request: Request) -> float | None:
        """A subscription or a key: the program alone knows."""
        return None

    def propose(self, request: Request) -> Reply:
        """Raises ProposerError; final when there is no such program. Tokens are estimates."""
        started = now()
        prompt = as_text(request)
        try:
            text = reply_text(self.run(prompt.encode(errors="replace")))
        except OSError as error:  # of a temporary file: no space, too many open files
            raise ProposerError(f"command {self.model}: {error.strerror or error}") from None
        if not text.strip():
            raise ProposerError(f"command {self.model}: it printed nothing")
        return Reply(
            text=text,
            proposer=self.name,
            model=self.model,
            input_tokens=estimate_tokens(prompt),
            output_tokens=estimate_tokens(text),
            usd=None,
            seconds=now() - started,
        )

    def run(self, prompt: bytes) -> str:
        """What the program prints. Raises ProposerError where it ends otherwise than well, and OSError."""
        # Files instead of pipes: a grandchild that keeps a pipe open can't hold the loop up.
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            self.entered() as (command, cwd, env),
        ):
            stdin.write(prompt)
            stdin.seek(0)
            try:
                process = subprocess.Popen(
                    command, stdin=stdin, stdout=out, stderr=err, cwd=cwd, env=env, start_new_session=True
                )
            except (OSError, ValueError) as error:  # ValueError: a NUL in its name
                why = error.strerror if isinstance(error, OSError) else error
                raise ProposerError(f"--command {self.argv[0]} can't be started: {why}", final=True) from None
            self.running.add(process)
            try:
                code = self.code_of(process)
            finally:
                end(process, enclosed=self.enclosure is not None)
                self.running.discard(process)
            out.seek(0)
            text = out.read(LONGEST_REPLY).decode("utf-8", "replace")
            if code != 0:
                err.seek(0)
                said = err.read(LONGEST_REPLY).decode("utf-8", "replace").strip() or text.strip() or "nothing"
                room = "; if it needs more than its room shows: --command-unsandboxed" if self.enclosure else ""
                raise ProposerError(f"command {self.model}: exit code {code}, last said: {last_line(said)}{room}")
            return text

    def entered(self) -> AbstractContextManager[Entered]:
        return self.enclosure.entered(self.argv) if self.enclosure else nullcontext((self.argv, None, None))

    def code_of(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code at its end. Raises ProposerError at the deadline, where a suspended program's time does not
        count."""
        until = now() + self.deadline
        while (left := until - now()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(min(left, TICK))
        raise ProposerError(f"command {self.model}: no reply within {self.deadline:g} s")


def as_text(request: Request) -> str:
    """The talk as one text, for a program that knows no roles."""
    titles = {"user": "# Request", "assistant": "# Your reply"}
    if len(request.turns) == 1:
        return f"{request.system}\n\n{request.turns[0].text}\n"
    turns = [f"{titles[message['role']]}\n\n{message['content']}" for message in messages(request)]
    return "\n\n".join([request.system, *turns]) + "\n"


def last_line(text: str) -> str:
    return "".join(c for c in text.splitlines()[-1] if c.isprintable())[:300]


def end(process: subprocess.Popen[bytes], enclosed: bool) -> None:
    """End what is left of the command's process group; the guard of a room ends all that is in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        for number in (signal.SIGTERM, *([signal.SIGHUP] if enclosed else [])):
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
                break
        kill(process)
    process.wait()


def kill(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
