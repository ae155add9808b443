"""Commands that show a night: status, report. They read its journal, at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agent import live
from agent.cli.nights import is_worked_on, newest, nights
from agent.errors import Failure
from agent.history import History
from agent.ledger import Ledger, is_old
from agent.limits import GO_ON
from agent.night import Night
from agent.observers.old import old_night
from agent.observers.summary import experiments_table, summary
from agent.observers.terminal import paused
from agent.workspace import project_folder

Repo = Annotated[Path, typer.Option("--repo", help="The repository to work on; default: here.")]
Tag = Annotated[str | None, typer.Option("--tag", help="The night's name: branch research/<tag>.")]

STATES = {
    "ask": "waiting for a call",
    "asking": "waiting for an answer",
    "replied": "reading the reply",
    "refused": "waiting for a repair",
    "proposed": "checking the change",
    "trials": "waiting for a slot",
    "waiting": "waiting for a trial of the incumbent",
    "measured": "judging",
    "judged": "publishing the verdict",
}


def status(repo: Repo = Path("."), tag: Tag = None) -> None:
    """What the newest night is doing, or has done: read from its journal, at any time."""
    home, console = find_night(repo, tag), Console(highlight=False)
    ledger = Ledger(home, readonly=True)
    night, history = ledger.night(), History(ledger.text)
    experiments = sorted(history.finished(night), key=lambda e: e.number)
    if night.program:
        console.print(experiments_table(experiments[-15:], history.program(night.program)))
    for line in doing(home, night):
        console.print(line, markup=False)
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


def doing(home: Path, night: Night) -> list[str]:
    """What each experiment under way is at; of a loop that has died, what it was at."""
    at_work = is_worked_on(home)
    running = {(job.experiment, job.number) for job in live.read(home)} if at_work else set()
    lines = []
    if at_work and night.paused:
        lines.append(paused(night.paused, night))
    for e in night.open:
        trials = [str(number + 1) for experiment, number in sorted(running) if experiment == e.number]
        begun = [str(t.number + 1) for t in e.trials if t.running]
        if trials:
            lines.append(f"#{e.number} trains (trial {', '.join(trials)})")
        elif begun and not at_work:
            lines.append(f"#{e.number} was cut off in trial {', '.join(begun)}: it is begun again")
        else:
            lines.append(f"#{e.number} {'is' if at_work else 'was'} at: {STATES.get(e.state, e.state)}")
    return lines


def how_it_stands(home: Path, night: Night) -> tuple[str, str]:
    """Why no loop works on it, and how to go on; "" where one does, or where there is nothing to go on with."""
    if is_worked_on(home) or not night.starts:
        return "", ""
    if night.ended is None:
        return "no loop works on it: the last one was ended from outside, or died", GO_ON
    return night.ended.reason, night.ended.then or (GO_ON if night.ended.code == 3 else "")


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
        stands = how_it_stands(home, night)
        console.print(summary(whole, history.program(night.program), home.name, notes_of(night), *stands))
    elif not night.starts:
        console.print(f"{home.name} has not begun: nothing is in its journal", markup=False)


def notes_of(night: Night) -> list[str]:
    notes = [text for _, text in night.notes[-5:]]
    if night.sandbox == "none":
        notes.insert(0, "this night ran WITHOUT A SANDBOX: model-written code had all your rights")
    elif night.weaker:
        notes.insert(0, f"the sandbox was {night.sandbox}, in which a trial can {night.weaker}")
    return notes


COMMANDS = (status, report)
