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

from agent.cli import new_program
from agent.cli.checkup import Checkup, examine
from agent.cli.show import Repo, Tag
from agent.cli.wiring import reopen
from agent.errors import Failure
from agent.judge.audit import audit as measure_again
from agent.program import PLACEHOLDER
from agent.typed import typed


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


def doctor(
    repo: Repo = Path("."),
    hours: Annotated[float, typer.Option(min=0, help="Of the planned night; for the disk that it needs.")] = 8.0,
    ask_model: Annotated[
        bool, typer.Option("--ask-model", help="Make one call of a few tokens: key, credit and model are sure then.")
    ] = False,
    proposer: Annotated[str, typer.Option(help="As of `run`.")] = "auto",
    model: Annotated[str | None, typer.Option(help="As of `run`.")] = None,
    base_url: Annotated[str | None, typer.Option(help="As of `run`.")] = None,
    command: Annotated[str | None, typer.Option(help="As of `run`.")] = None,
) -> None:
    """Check all that a night needs, or that could end it, and say how to mend what is missing."""
    settings = {"model": model, "base_url": base_url, "command": command}
    checkup = Checkup(repo, hours, ask_model, proposer, settings)
    raise typer.Exit(0 if examine(checkup, Console(highlight=False, soft_wrap=True)) else 2)


def init(
    repo: Repo = Path("."),
    script: Annotated[str | None, typer.Option(help="The training script; default: what looks like it.")] = None,
    metric: Annotated[str | None, typer.Option(help="Name of the metric; default: what the code prints.")] = None,
    direction: Annotated[str | None, typer.Option(help="minimize or maximize; default: by the name.")] = None,
    budget: Annotated[str | None, typer.Option(help="Training per trial: 20s, 5m, or 2M tokens within 60s.")] = None,
    ideas: Annotated[str | None, typer.Option(help="What to try first, and what to leave alone.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Write a program.md for an existing training repository, in the folder where it trains."""
    wanted = new_program.Wanted(script, metric, direction, budget, ideas)
    ask = None if yes or not (sys.stdin.isatty() and sys.stdout.isatty()) else question
    path, notes = new_program.write_program(repo, wanted, ask)
    for note in notes:
        typer.echo(f"look: {note}")
    then = "read it" if PLACEHOLDER not in path.read_text("utf-8") else "read it, say in it what to try"
    typer.echo(f"wrote {path}: {then}, commit, `{typed('doctor')}`, then `{typed('run')}`")


def question(text: str, default: str) -> str:
    try:
        return str(typer.prompt(text, default=default, show_default=bool(default))).strip()
    except typer.Abort:
        raise Failure("nothing was written: the same command asks again") from None


COMMANDS = (audit, doctor, init)
