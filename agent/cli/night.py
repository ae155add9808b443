"""Commands that make a night: run, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from agent import inbox
from agent.cli.checkup import Checkup, warn
from agent.cli.dry_run import preview
from agent.cli.flags import Flags, takes_flags
from agent.cli.nights import is_worked_on
from agent.cli.show import Repo, Tag, find_night, show_summary
from agent.cli.wiring import Parts, assemble, teller
from agent.errors import Failure
from agent.events import Ended, Requested
from agent.limits import GO_ON
from agent.storage import disk_full, is_full

SHOW_CURSOR = "\x1b[?25h"  # the live view hides it


@takes_flags
def run(flags: Flags) -> None:
    """Run the loop: propose, train, measure, keep or reset, until a limit or Ctrl-C."""
    if flags.hours == 0:
        raise Failure("--hours 0 leaves no time for anything: give it some, like 0.5, or leave it out")
    today = date.today().isoformat()
    if flags.dry_run:
        preview(flags, today, Console(highlight=False))
        return
    on_signals(signal.default_int_handler)  # until the loop listens, every signal ends it as Ctrl-C does, tidily
    try:
        parts = assemble(flags, today)
    except KeyboardInterrupt:
        print("stopped before anything was begun: the same command begins again", file=sys.stderr)
        raise typer.Exit(3) from None
    listen(parts)
    checkup = Checkup(flags.repo, flags.hours or 8.0, own=parts.home.name, contract=flags.contract)
    warn(checkup, teller(parts.console))
    ended = run_to_its_end(parts)
    if ended.code == 2:
        raise Failure(ended.reason)
    show_summary(parts.home, parts.console)
    raise typer.Exit(ended.code)


def run_to_its_end(parts: Parts) -> Ended:
    """The loop, and what it leaves behind in order; or a line of what to do, and exit code 3."""
    try:
        ended = parts.run()
        if lost := parts.rescue():
            print(f"error: {lost}", file=sys.stderr)
            raise typer.Exit(3)
        parts.close()
    except (OSError, sqlite3.OperationalError) as fault:  # the disk is full, or gone: what is journaled is safe
        parts.end_at_once()
        full = is_full(fault, parts.home)
        why = str(disk_full(parts.home)) if full else parts.rescue() or f"{fault}: once that is mended, {GO_ON}"
        print(f"error: {why}", file=sys.stderr)
        raise typer.Exit(3) from None
    return ended


def on_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """One that is ignored stays ignored: `nohup` and shells say so for what shall outlive a terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def listen(parts: Parts) -> None:
    """One signal stops: the trials are ended, the rest is journaled. A second one ends everything at once."""
    heard: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if len(heard) > 1:
            ending = threading.Thread(target=parts.end_at_once, daemon=True)  # this thread may hold what that needs
            ending.start()
            ending.join(1.0)  # processes that it can't end in this time die with this one
            with contextlib.suppress(OSError):
                os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}\nended at once: {GO_ON}\n".encode())
            os._exit(3)
        name = signal.Signals(number).name
        parts.inbox.put(Requested(id=f"{name}-{os.getpid()}-{time.time_ns()}", what="stop", text=name))

    on_signals(stop)


def stop(
    repo: Repo = Path("."),
    tag: Tag = None,
    after: Annotated[
        bool, typer.Option("--after", help="Let what has begun come to its end; begin nothing new.")
    ] = False,
) -> None:
    """Stop the loop that works on a night; the same command goes on later."""
    home = find_night(repo, tag)
    if not is_worked_on(home):
        raise Failure(f"no loop works on {home.name}: there is nothing to stop")
    inbox.send(home, "finish" if after else "stop", text="asked to stop by a person")
    typer.echo(f"asked the loop of {home.name} to {'end after what has begun' if after else 'stop now'}")


COMMANDS = (run, stop)
