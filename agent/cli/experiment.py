"""Commands about one experiment of a night: show, rerun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agent.cli.check import interruptible
from agent.cli.output import write_data
from agent.cli.show import Repo, Tag, find_night
from agent.cli.wiring import reopen
from agent.errors import Failure
from agent.judge.again import rerun as measure_one
from agent.observers.detail import clean, colored, detail, diff_of, everything, logs, prompts, replies
from agent.observers.report.data import Told
from agent.observers.report.read import told_of
from agent.records import Experiment

Number = Annotated[int, typer.Argument(metavar="N", min=0, help="The experiment's number; 0 is the baseline.")]


def show(
    number: Number,
    repo: Repo = Path("."),
    tag: Tag = None,
    diff: Annotated[bool, typer.Option("--diff", help="Only its change, against the commit it was made on.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Only the end of each trial's log.")] = False,
    prompt: Annotated[bool, typer.Option("--prompt", help="Only what the model was asked.")] = False,
    reply: Annotated[bool, typer.Option("--reply", help="Only what the model answered.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON, for a program.")] = False,
) -> None:
    """All of one experiment: what was tried and why, the verdict with its evidence, time, cost and the change."""
    e, told = find_experiment(find_night(repo, tag), number)
    if as_json:
        write_data((json.dumps(clean(everything(e, told)), ensure_ascii=False, indent=2) + "\n").encode())
        return
    console = Console(highlight=False)
    wanted = {"change": diff, "log": log, "prompt": prompt, "reply": reply}
    if not any(wanted.values()):
        console.print(detail(e, told))
        if number and (change := diff_of(e, told)):
            console.print()
            console.print(colored(change), soft_wrap=True)  # long lines of code stay whole
        return
    texts = {"change": diff_of, "log": lambda e, _: logs(e), "prompt": lambda e, _: prompts(e),
             "reply": lambda e, _: replies(e)}  # fmt: skip
    for what in (name for name, chosen in wanted.items() if chosen):
        if not (text := texts[what](e, told)):
            raise Failure(f"experiment {number} has no {what}")
        console.print(colored(text) if what == "change" else text, markup=False, soft_wrap=True)


def rerun(
    number: Number,
    repo: Repo = Path("."),
    tag: Tag = None,
    seeds: Annotated[int, typer.Option(min=2, help="Fresh seeds for it and for what it is measured beside.")] = 3,
    incumbent: Annotated[
        bool, typer.Option("--incumbent", help="Beside the best commit, not the one that it was made on.")
    ] = False,
    sandbox: Annotated[str, typer.Option(help="auto, bubblewrap, landlock, docker, podman, or none.")] = "auto",
) -> None:
    """Measure one experiment again beside the commit it was made on, with fresh seeds; the night stays as it is."""
    experiments, workspace, executor, program, say = reopen(repo, tag, sandbox)
    with interruptible():
        measure_one(experiments, workspace, executor, program, number, seeds, incumbent, say)


def find_experiment(home: Path, number: int) -> tuple[Experiment, Told]:
    """Raises Failure where the night has no such experiment."""
    told = told_of(home)
    known = {e.number: e for e in told.experiments} if told else {}
    if told is None or number not in known:
        has = f"it has 0 to {max(known)}" if known else "it has none yet"
        raise Failure(f"there is no experiment {number} in {home.name}: {has}")
    return known[number], told


COMMANDS = (show, rerun)
