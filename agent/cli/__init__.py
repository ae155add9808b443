"""An overnight research loop: one measured change to the training code at a time.

One file for each group of commands; they read flags and turn failures into one line.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from typing import Any

import typer

from agent.cli import check, night, service, show
from agent.errors import Failure

HELP = (__doc__ or "").partition("\n")[0]
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=HELP)
for group in (night, show, check, service):
    for command in group.COMMANDS:
        app.command()(command)


def guarded(call: Callable[[], Any]) -> None:
    """Run a command; a Failure, or a machine that is full or broken, becomes one line on stderr and exit code 2."""
    try:
        call()
    except (Failure, OSError, sqlite3.OperationalError) as failure:
        said = failure if isinstance(failure, Failure) else f"{failure}; the same command goes on from here"
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(2) from None


def loop() -> None:
    """`python -m agent.loop` is `python -m agent run`."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(night.run)
    guarded(app if sys.argv[1:2] == ["service"] else single)


def main() -> None:
    guarded(app)
