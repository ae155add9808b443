"""Commands beside the night: audit, doctor, init."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agent import doctor as checkup
from agent.cli import new_program
from agent.cli.show import Repo, Tag
from agent.cli.wiring import reopen
from agent.judge.audit import audit as measure_again


def audit(
    repo: Repo = Path("."),
    tag: Tag = None,
    pairs: Annotated[int, typer.Option(min=2, help="Fresh seeds for the baseline and the final commit each.")] = 5,
    ablate: Annotated[bool, typer.Option("--ablate", help="Also measure the chain without each kept commit.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Offer a branch without what carries nothing.")] = False,
    sandbox: Annotated[str, typer.Option(help="auto, bubblewrap, landlock, docker, podman, or none.")] = "auto",
) -> None:
    """Measure a night's gain again: final commit against baseline, paired, with fresh seeds."""
    experiments, workspace, executor, program, say = reopen(repo, tag, sandbox)
    with interruptible():
        measure_again(experiments, workspace, executor, program, pairs, ablate, prune, say)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends it at once, and the trials with it."""
    try:
        yield
    except KeyboardInterrupt:
        print("error: interrupted: what was measured is kept, and the same command goes on", file=sys.stderr)
        os._exit(130)  # the trials end with this process


def doctor(repo: Repo = Path(".")) -> None:
    """Check this machine and repository, and say what to do about what is missing."""
    healthy = checkup.examine(repo, Console(highlight=False, soft_wrap=True))
    raise typer.Exit(0 if healthy else 2)


def init(
    repo: Repo = Path("."),
    metric: Annotated[str | None, typer.Option(help="Name of the metric; default: what the code prints.")] = None,
    script: Annotated[str, typer.Option(help="The training script.")] = "train.py",
) -> None:
    """Write a program.md for an existing training repository."""
    path = new_program.write_program(repo, script, metric)
    typer.echo(f"wrote {path}: read it, say in it what to try, then `python -m agent.loop`")


COMMANDS = (audit, doctor, init)
