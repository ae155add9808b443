"""Sends the night's refs and a copy of its ledger to a remote repository after each keep, so that a machine that is
taken away takes nothing with it: `--push REMOTE`.

On the remote the copy is the file ledger.db of the commit refs/experiments/<tag>/ledger. A push that fails is told once
and tried again later, less and less often; whatever happens there is nothing to the loop.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from agent.events import Event, Published, Requested
from agent.history import History
from agent.ledger import copy
from agent.night import Night
from agent.redact import hidden
from agent.run.leftovers import temporary
from agent.run.process import START
from agent.workspace import git_environment

SECONDS = 120.0  # for one command of git
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 900.0  # after a push that failed; each further one is twice as long


RUNNING: set[subprocess.Popen[str]] = set()


def end(process: subprocess.Popen[str]) -> None:
    """With what it has started, like git-remote-http and ssh."""
    if process in RUNNING:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        RUNNING.discard(process)


@atexit.register
def end_all() -> None:
    """Nothing that hangs outlives this program."""
    for process in list(RUNNING):
        end(process)


class Refused(Exception):
    """What git said, or what keeps this from pushing; one line."""


def moves_the_branch(event: Event, night: Night) -> bool:
    if isinstance(event, Requested):
        return event.what == "veto"
    return isinstance(event, Published) and night.experiments[event.experiment].kept


class Push:
    """`say` tells the person. One thread calls all of this (observers/follow.py)."""

    name = "push"

    def __init__(self, home: Path, root: Path, remote: str, say: Callable[[str], None]):
        self.home, self.root, self.remote, self.say = home, root, remote, say
        self.tag = home.name
        self.due, self.failed, self.next, self.told = False, 0, 0.0, ""
        self.kept: Collection[str] = ()

    def start(self, night: Night, history: History) -> None:
        self.kept, self.due = night.ever_kept, bool(night.kept)

    def see(self, event: Event, night: Night, history: History) -> None:
        if moves_the_branch(event, night):
            self.kept, self.due = night.ever_kept, True

    def tick(self) -> None:
        if self.due and time.monotonic() >= self.next:
            self.attempt()

    def close(self) -> None:
        if self.due:
            self.attempt()

    def attempt(self) -> None:
        try:
            self.push()
        except (Refused, OSError, subprocess.TimeoutExpired) as error:
            self.failed += 1
            self.next = time.monotonic() + min(LONGEST_PAUSE, FIRST_PAUSE * 2**self.failed)
            reason = "git took too long" if isinstance(error, subprocess.TimeoutExpired) else str(error)
            if reason != self.told:
                self.say(f"nothing could be pushed: {hidden(reason)}; it is tried again, and the night goes on")
            self.told = reason
            return
        if self.told:
            self.say("the night's refs and ledger are pushed again")
        self.due, self.failed, self.told = False, 0, ""

    def push(self) -> None:
        """Refs of this night only; a branch there that this night did not make is never moved. Raises Refused."""
        branch, pins = f"refs/heads/research/{self.tag}", f"refs/experiments/{self.tag}"
        there = self.git("ls-remote", self.remote, branch).split()
        if there and there[0] not in self.kept:
            raise Refused(f"the remote has a research/{self.tag} of another night: choose another --tag")
        with temporary(self.home) as scratch:
            copy(self.home / "ledger.db", scratch / "ledger.db")
            blob = self.git("hash-object", "-w", "--no-filters", str(scratch / "ledger.db"))
        tree = self.git("mktree", said=f"100644 blob {blob}\tledger.db\n")
        ledger = self.git("commit-tree", tree, "-m", f"Ledger of the night {self.tag}")
        wanted = [f"{branch}*:{branch}*", f"+{pins}/*:{pins}/*", f"+{ledger}:{pins}/ledger"]
        back = [f"--force-with-lease={branch}:{there[0]}"] if there else []  # a veto moves it back
        self.git("push", "--quiet", "--no-verify", *back, self.remote, *wanted)

    def git(self, *arguments: str, said: str = "") -> str:
        """git's answer. It ends with this process, asks nothing, and may reach the network. Raises Refused."""
        settings = ["-c", "protocol.allow=user"]
        command = [sys.executable, "-ISc", START, str(os.getpid()), "git", *settings, *arguments]
        ssh = os.environ.get("GIT_SSH_COMMAND", "ssh") + " -o BatchMode=yes"
        process = subprocess.Popen(
            command, cwd=self.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **git_environment(), "GIT_SSH_COMMAND": ssh}, start_new_session=True,
        )  # fmt: skip
        RUNNING.add(process)
        try:
            answer, errors = process.communicate(said, timeout=SECONDS)
        finally:
            end(process)
        if process.returncode:
            lines = [line for line in errors.splitlines() if line.strip()]
            raise Refused(next((x for x in lines if x.startswith(("fatal:", "error:", "!"))), (lines or ["?"])[-1]))
        return answer.strip()
