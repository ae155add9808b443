"""Commands that show a night: status, report. They read its journal, at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agent import live
from agent.cli.wiring import newest, nights
from agent.errors import Failure
from agent.history import History
from agent.ledger import Ledger, is_old
from agent.night import Night
from agent.observers.old import old_night
from agent.observers.summary import experiments_table, summary
from agent.workspace import project_folder

Repo = Annotated[Path, typer.Option("--repo", help="The repository to work on; default: here.")]
Tag = Annotated[str | None, typer.Option("--tag", help="The night's name: branch research/<tag>.")]


def status(repo: Repo = Path("."), tag: Tag = None) -> None:
    """What the newest night is doing, or has done: read from its journal, at any time."""
    home, console = find_night(repo, tag), Console(highlight=False)
    ledger = Ledger(home, readonly=True)
    night, history = ledger.night(), History(ledger.text)
    experiments = sorted(history.finished(night), key=lambda e: e.number)
    if night.program:
        console.print(experiments_table(experiments[-15:], history.program(night.program)))
    running = {(job.experiment, job.number) for job in live.read(home)}
    for e in night.open:
        trials = [str(number + 1) for experiment, number in sorted(running) if experiment == e.number]
        doing = f"trains (trial {', '.join(trials)})" if trials else f"is at: {e.state}"
        console.print(f"#{e.number} {doing}", markup=False)
    if night.ended:
        console.print(f"ended: {night.ended.reason}", markup=False)
    show_summary(home, console)


def report(repo: Repo = Path("."), tag: Tag = None) -> None:
    """Every experiment of a night with its verdict, and the summary."""
    home, console = find_night(repo, tag), Console(highlight=False)
    if is_old(home / "ledger.db"):
        experiments, program, notes = old_night(home)
        console.print(experiments_table(experiments, program))
        console.print()
        console.print(summary(experiments, program, home.name, notes[-5:]))
        return
    ledger = Ledger(home, readonly=True)
    night, history = ledger.night(), History(ledger.text)
    if night.program:
        experiments = sorted(history.finished(night), key=lambda e: e.number)
        console.print(experiments_table(experiments, history.program(night.program)))
    show_summary(home, console)


def find_night(repo: Path, tag: str | None) -> Path:
    """The folder of this night, or of the newest one. Raises Failure."""
    root = project_folder(repo)
    home = root / ".research" / tag if tag else newest(root)
    if tag and home and not (home / "ledger.db").exists() and (known := [path.name for path in nights(root)]):
        raise Failure(f"there is no night called {tag} here; there are: {', '.join(known)}")
    if home is None or not (home / "ledger.db").exists():
        raise Failure("there is no night here yet: start one with `python -m agent.loop`")
    return home


def show_summary(home: Path, console: Console) -> None:
    """The table that ends every night."""
    ledger = Ledger(home, readonly=True)
    night, history = ledger.night(), History(ledger.text)
    if night.program:
        whole = [history.brief(e) for e in night.experiments.values()]
        console.print()
        console.print(summary(whole, history.program(night.program), home.name, notes_of(night)))


def notes_of(night: Night) -> list[str]:
    notes = [text for _, text in night.notes[-5:]]
    if night.sandbox == "none":
        notes.insert(0, "this night ran WITHOUT A SANDBOX: model-written code had all your rights")
    elif night.weaker:
        notes.insert(0, f"the sandbox was {night.sandbox}, in which a trial can {night.weaker}")
    return notes


COMMANDS = (status, report)
