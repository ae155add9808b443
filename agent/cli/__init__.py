"""An overnight research loop: one measured change to the training code at a time.

One file for each group of commands; they read flags and turn failures into one line.
"""

from __future__ import annotations

import errno
import sqlite3
import sys
from pathlib import Path

import typer
from rich.console import Console

# The base of all that a command line can have wrong; typer gives it no name of its own yet.
from typer.exceptions import TyperException

from agent.cli import after, check, experiment, night, service, show, steer, watch
from agent.cli.nights import newest
from agent.cli.output import survive
from agent.errors import Failure, MachineFault
from agent.typed import program
from agent.workspace import project_folder

HELP = (__doc__ or "").partition("\n")[0]
app = typer.Typer(invoke_without_command=True, pretty_exceptions_enable=False, add_completion=False, help=HELP)
for group in (night, steer, show, experiment, after, watch, check, service):
    for command in group.COMMANDS:
        app.command()(command)


@app.callback()
def bare(context: typer.Context) -> None:
    """An overnight research loop: one measured change to the training code at a time."""
    if context.invoked_subcommand is not None:
        return
    try:
        home = newest(project_folder(Path(".")))
    except Failure:  # no repository
        home = None
    if home is None:
        print(context.get_help())
    else:
        watch.state(home, Console(highlight=False))


def guarded(command: typer.Typer, name: str) -> None:
    """Run a command line. A mistake of the person (a wrong flag too) becomes one line on stderr and exit code 2, and a
    machine that is full or broken one with exit code 3: the same command goes on."""
    survive()
    try:
        code = command(standalone_mode=False, prog_name=name)
    except Failure as failure:
        fail(str(failure))
    except MachineFault as fault:
        fail(str(fault), 3)
    except PermissionError as error:
        fail(f"{error.filename or error}: {error.strerror}; it needs the user that it belongs to, or another place")
    except (OSError, sqlite3.OperationalError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        fail(f"the disk is full ({error}): make room, and the same command goes on" if full else str(error), 3)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except TyperException as mistake:
        usage = " ".join(mistake.format_message().split())
        if not usage:  # no command at all: its help is printed
            raise SystemExit(2) from None
        context = getattr(mistake, "ctx", None)  # of the command that was given wrongly
        fail(f"{usage} (`{context.command_path if context else name} --help` lists what there is)")
    raise SystemExit(code if isinstance(code, int) else 0)


def fail(text: str, code: int = 2) -> None:
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(code) from None


def loop() -> None:
    """`python -m agent.loop` is `python -m agent run`."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(night.run)
    if sys.argv[1:2] == ["service"]:
        guarded(app, "python -m agent.loop")
    guarded(single, "python -m agent.loop")


def main() -> None:
    guarded(app, program())
