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
from agent.cli.nights import is_worked_on
from agent.cli.show import Repo, Tag, find_night, show_summary
from agent.cli.wiring import Flags, Parts, assemble, teller
from agent.errors import Failure
from agent.events import Requested
from agent.limits import GO_ON, MOST_HOURS
from agent.propose.choose import PROPOSERS
from agent.records import Stoppers
from agent.storage import disk_full, is_full

SHOW_CURSOR = "\x1b[?25h"  # the live view hides it


def run(
    tag: Annotated[
        str | None,
        typer.Option(help="Name of the night; an existing one goes on. Default: the unfinished one, or today."),
    ] = None,
    experiments: Annotated[int | None, typer.Option(min=1, help="End after this many experiments.")] = None,
    hours: Annotated[
        float | None, typer.Option(min=0, max=MOST_HOURS, help="Begin nothing new after this many hours.")
    ] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="Never spend more on calls, in dollars.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="End when calls have used this many tokens.")] = None,
    plateau: Annotated[int | None, typer.Option(min=1, help="End after so many in a row without a keep.")] = None,
    proposer: Annotated[str, typer.Option(help=f"auto, {', '.join(PROPOSERS)}.")] = "auto",
    model: Annotated[str | None, typer.Option(help="Model name for anthropic or openai.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="A compatible server: Ollama, vLLM, llama.cpp, OpenRouter, a proxy.")
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="Program that reads the prompt and prints the reply, like 'claude -p'.")
    ] = None,
    command_unsandboxed: Annotated[
        bool,
        typer.Option("--command-unsandboxed", help="Run that program with all your rights, not in a room of its own."),
    ] = False,
    replay: Annotated[Path | None, typer.Option(help="Folder or file of replies to run again, in order.")] = None,
    fallback: Annotated[
        str | None, typer.Option(help="What proposes while the model can't be had: search. Default: wait for it.")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Begin another night, though one is not finished.")] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Don't ask the model's server beforehand whether it is there.")
    ] = False,
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
    notify: Annotated[
        str | None,
        typer.Option(
            help="Where to say that the night pauses, ends or has a new best: a URL of apprise, "
            "which may also be in OVERNIGHT_NOTIFY."
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Remote that gets the night's refs and a copy of its ledger after each keep.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Send each experiment to mlflow[:URI], wandb, tensorboard[:FOLDER] or trackio; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the first prompt and what the night would cost; begin nothing.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines alone, on any terminal.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the night as a page too, as `watch` does.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="With --watch: where the page is.")] = None,
    slots: Annotated[int, typer.Option(min=1, hidden=True)] = 1,
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
    if hours == 0:
        raise Failure("--hours 0 leaves no time for anything: give it some, like 0.5, or leave it out")
    flags = Flags(
        tag=tag,
        proposer=proposer,
        model=model,
        base_url=base_url,
        command=command,
        command_unsandboxed=command_unsandboxed,
        replay=replay,
        fallback=fallback,
        new=new,
        check=not no_check,
        notify=notify,
        sandbox="none" if unsafe_no_sandbox else sandbox,
        slots=slots,
        plain=plain,
        watch=watch,
        port=port,
        push=push,
        track=track or (),
        contract={key: value for key, value in overrides.items() if value is not None},
        stoppers=Stoppers(experiments=experiments, hours=hours, usd=usd, tokens=tokens, plateau=plateau),
    )
    if dry_run:
        preview(repo, flags, date.today().isoformat(), Console(highlight=False))
        return
    on_signals(signal.default_int_handler)  # until the loop listens, every signal ends it as Ctrl-C does, tidily
    try:
        parts = assemble(repo, flags, today=date.today().isoformat())
    except KeyboardInterrupt:
        print("stopped before anything was begun: the same command begins again", file=sys.stderr)
        raise typer.Exit(3) from None
    listen(parts)
    warn(Checkup(repo, hours or 8.0, own=parts.home.name, contract=flags.contract), teller(parts.console))
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
    if ended.code == 2:
        raise Failure(ended.reason)
    show_summary(parts.home, parts.console)
    raise typer.Exit(ended.code)


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
