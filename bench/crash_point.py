"""The loop, killed by its own hand at one named point: `python -m bench.crash_point FILE POINT [flags of the loop]`.

POINT is `NAME#COUNT`: at the COUNT-th time that the point NAME is passed the process sends itself SIGKILL. With the
POINT `-` nothing is killed, and every point that was passed is written to FILE, one a line.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from agent import actions, backup, ledger, refs, storage, workspace
from agent.cli import beforehand, wiring
from agent.inbox import SpoolInbox
from agent.observers import tsv
from agent.run import leftovers, local, probe

FILE, POINT = Path(sys.argv[1]), sys.argv[2]
passed: Counter[str] = Counter()
turn = threading.Lock()


def point(name: str) -> None:
    with turn:
        passed[name] += 1
        here = f"{name}#{passed[name]}"
        if POINT == "-":
            with FILE.open("a") as file:
                file.write(f"{here}\n")
    if here == POINT:
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, told: str = "") -> None:
    """The process may die before and after each call of this; `told`: with the name of its first argument's type."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def call(*arguments: Any, **options: Any) -> Any:
        what = f"{name} {type(arguments[1]).__name__}" if told else name
        point(f"before {what}")
        value = real(*arguments, **options)
        point(f"after {what}")
        return value

    setattr(owner, name, call)


def main() -> None:
    around(ledger.Ledger, "append", "event")
    around(actions.Actions, "carry_out", "event")
    around(actions.Actions, "agree")
    for owner, names in {
        ledger.Ledger: ("write", "close"),
        refs.Refs: ("set", "claim", "clear_stale_locks"),
        workspace.Workspace: ("commit_files", "commit_tree", "export", "prepare_home"),
        local.LocalExecutor: ("submit", "forget", "discard"),
        SpoolInbox: ("done",),
        storage.Reserve: ("make", "free"),
        probe: ("_attempt", "_kernel", "_outlived"),
        wiring: ("open_ledger", "choose_sandbox"),
        beforehand: ("must_hold",),
        backup: ("clear",),
        leftovers: ("remove", "reap", "end_strays", "sweep"),
        tsv: ("write_lines",),
        os: ("replace", "fsync"),
    }.items():
        for name in names:
            around(owner, name)
    sys.argv = ["agent.loop", *sys.argv[3:]]
    from agent.cli import loop

    loop()


if __name__ == "__main__":
    main()
