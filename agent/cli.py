"""The commands: they read flags, put the parts of a night together, and turn failures into one line."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from agent import doctor as checkup
from agent import init as starter
from agent.errors import Failure
from agent.judge.audit import audit as measure_again
from agent.judge.stoppers import Limits
from agent.ledger import Ledger
from agent.night import Flags, assemble, contract, newest, reopen
from agent.program import Program
from agent.report.terminal import Terminal, experiments_table, summary
from agent.workspace import open_repository

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__)
Repo = Annotated[Path, typer.Option("--repo", help="The repository to work on; default: here.")]
Tag = Annotated[str | None, typer.Option("--tag", help="The night's name: branch research/<tag>.")]


@app.command()
def run(
    tag: Annotated[
        str | None,
        typer.Option(help="Name of the night; an existing one goes on. Default: the unfinished one, or today."),
    ] = None,
    experiments: Annotated[int | None, typer.Option(min=1, help="End after this many experiments.")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="Begin nothing new after this many hours.")] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="Never spend more on calls, in dollars.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="End when calls have used this many tokens.")] = None,
    plateau: Annotated[int | None, typer.Option(min=1, help="End after so many in a row without a keep.")] = None,
    proposer: Annotated[str, typer.Option(help="auto, anthropic, openai, command, search or replay.")] = "auto",
    model: Annotated[str | None, typer.Option(help="Model name for anthropic or openai.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="A compatible server: Ollama, vLLM, llama.cpp, OpenRouter, a proxy.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="Program that reads the prompt and prints the reply, like 'claude -p'.")
    ] = None,
    replay: Annotated[Path | None, typer.Option(help="Folder or file of replies to run again, in order.")] = None,
    budget: Annotated[str | None, typer.Option(help="Training per trial: 20s, 5m, or 2M tokens within 60s.")] = None,
    repo: Repo = Path("."),
    metric: Annotated[str | None, typer.Option(help="Contract: name of the metric, as printed.")] = None,
    direction: Annotated[str | None, typer.Option(help="Contract: minimize or maximize.")] = None,
    target: Annotated[float | None, typer.Option(help="Contract: end when a keep reaches this.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Contract: regex whose group is the metric.")] = None,
    run: Annotated[str | None, typer.Option(help="Contract: the training command.")] = None,
    evaluate: Annotated[str | None, typer.Option(help="Contract: the evaluation command.")] = None,
    edit: Annotated[list[str] | None, typer.Option(help="Contract: file the agent may edit; repeatable.")] = None,
    protect: Annotated[list[str] | None, typer.Option(help="Contract: file that must not change; repeatable.")] = None,
    device: Annotated[str | None, typer.Option(help="Contract: cuda or cpu; default: a GPU that can be seen.")] = None,
    sandbox: Annotated[str, typer.Option(help="auto, bubblewrap, landlock, docker or podman.")] = "auto",
    unsafe_no_sandbox: Annotated[
        bool, typer.Option("--unsafe-no-sandbox", help="Run model-written code with all your rights.")
    ] = False,
) -> None:
    """Run the loop: propose, train, measure, keep or reset, until a limit or Ctrl-C."""
    overrides = {
        "metric.name": metric,
        "metric.direction": direction,
        "metric.target": target,
        "metric.pattern": pattern,
        "run": run,
        "evaluate": evaluate,
        "edit": edit,
        "protect": protect,
        "budget": budget,
        "device": device,
    }
    flags = Flags(
        tag=tag,
        proposer=proposer,
        model=model,
        base_url=base_url,
        command=command,
        replay=replay,
        sandbox="none" if unsafe_no_sandbox else sandbox,
        contract={key: value for key, value in overrides.items() if value is not None},
        limits=Limits(
            experiments=experiments, hours=hours, usd=usd, tokens=tokens, plateau=plateau, started=time.time()
        ),
    )
    night = assemble(repo, flags, today=date.today().isoformat())
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: night.interrupt())
    try:
        reason = night.run()
    except KeyboardInterrupt:
        os._exit(130)  # a thread may still wait for a reply; the person does not
    finally:
        night.terminal.close()
    night.ledger.set("ended", "" if night.interrupts or night.fault else "yes")
    night.terminal.say(f"the night ends: {reason}")
    _summary(night.ledger, night.program, night.workspace.tag, night.terminal.console)
    if night.fault:
        raise typer.Exit(3)


@app.command()
def status(repo: Repo = Path("."), tag: Tag = None) -> None:
    """What the newest night is doing, or has done: read from its ledger, at any time."""
    home, ledger, program = _open(repo, tag)
    running = [e for e in ledger.experiments() if e.state != "published"]
    console = Console(highlight=False)
    console.print(experiments_table(ledger.experiments()[-15:], program))
    for experiment in running:
        console.print(f"#{experiment.number} is {experiment.state}", markup=False)
    _summary(ledger, program, home.name, console)


@app.command()
def report(repo: Repo = Path("."), tag: Tag = None) -> None:
    """Every experiment of a night with its verdict, and the summary."""
    home, ledger, program = _open(repo, tag)
    console = Console(highlight=False)
    console.print(experiments_table(ledger.experiments(), program))
    _summary(ledger, program, home.name, console)


@app.command()
def audit(
    repo: Repo = Path("."),
    tag: Tag = None,
    pairs: Annotated[int, typer.Option(min=2, help="Fresh seeds for the baseline and the final commit each.")] = 5,
    ablate: Annotated[bool, typer.Option("--ablate", help="Also measure the chain without each kept commit.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Offer a branch without what carries nothing.")] = False,
    sandbox: Annotated[str, typer.Option(help="auto, bubblewrap, landlock, docker, podman, or none.")] = "auto",
) -> None:
    """Measure a night's gain again: final commit against baseline, paired, with fresh seeds."""
    ledger, workspace, executor, program = reopen(repo, tag, sandbox)
    try:
        measure_again(ledger, workspace, executor, program, pairs, ablate, prune, Terminal(workspace.home).say)
    except KeyboardInterrupt:
        print("error: the audit was interrupted, and nothing of it is kept", file=sys.stderr)
        os._exit(130)  # the trials end with this process


@app.command()
def doctor(repo: Repo = Path(".")) -> None:
    """Check this machine and repository, and say what to do about what is missing."""
    healthy = checkup.examine(repo, Console(highlight=False, soft_wrap=True))
    raise typer.Exit(0 if healthy else 2)


@app.command()
def init(
    repo: Repo = Path("."),
    metric: Annotated[str | None, typer.Option(help="Name of the metric; default: what the code prints.")] = None,
    script: Annotated[str, typer.Option(help="The training script.")] = "train.py",
) -> None:
    """Write a program.md for an existing training repository."""
    path = starter.write_program(repo, script, metric)
    typer.echo(f"wrote {path}: read it, say in it what to try, then `python -m agent.loop`")


def _open(repo: Path, tag: str | None) -> tuple[Path, Ledger, Program]:
    root = Path(str(open_repository(repo).working_dir))
    home = root / ".research" / tag if tag else newest(root)
    if home is None:
        raise Failure("there is no night here yet: start one with `python -m agent.loop`")
    ledger = Ledger(home, readonly=True)
    return home, ledger, contract(ledger)


def _summary(ledger: Ledger, program: Program, tag: str, console: Console) -> None:
    notes = [text for _, text in ledger.notes()[-5:]]
    if ledger.get("sandbox") == "none":
        notes.insert(0, "this night ran WITHOUT A SANDBOX: model-written code had all your rights")
    elif weaker := json.loads(ledger.get("sandbox_weaker", "[]")):
        notes.insert(0, f"the sandbox was {ledger.get('sandbox')}, in which a trial can {'; '.join(weaker)}")
    console.print()
    console.print(summary(ledger.experiments(), program, tag, notes))


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
    single.command()(run)
    guarded(single)


def main() -> None:
    guarded(app)
