"""Commands that show a night: status, report. They read its journal, at any time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agent import inbox, live
from agent.cli.nights import is_worked_on, nights
from agent.cli.output import write_data
from agent.errors import Failure
from agent.files import write_file
from agent.history import History
from agent.ledger import Ledger
from agent.limits import GO_ON
from agent.night import Night
from agent.observers.report import chart, data
from agent.observers.report.markdown import markdown as as_markdown
from agent.observers.report.page import library, page
from agent.observers.report.read import told_of
from agent.observers.summary import experiments_table, notes_of, summary
from agent.observers.terminal import paused
from agent.refs import branch_at
from agent.typed import typed
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
    "detached": "being put onto the incumbent",
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


def report(
    repo: Repo = Path("."),
    tag: Tag = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the page goes; default: beside the night.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write the chart of the night there, as a picture.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the text for a pull request instead.")] = False,
) -> None:
    """Every experiment of a night with its verdict, and the summary; and one HTML file with all of it."""
    home, console = find_night(repo, tag), Console(highlight=False)
    told = told_of(home)
    if told is None:  # it has not begun
        show_summary(home, console)
        return
    stands = how_it_stands(home, told.night) if told.night else (told.ended, "")
    overview, details = data.payload(replace(told, ended=stands[0]))
    if png:
        write_file(png, chart.picture(overview))
    if out is None and not markdown:
        out = home / "report.html"
    if out:
        write_file(out, page(overview, details, library(home.parent)).encode(), "name another file with --out")
    if markdown:
        write_data(as_markdown(overview).encode())
    else:
        chain = list(told.night.kept.values()) if told.night else ()
        look = [*unread(home, told.night), *told.look] if told.night else told.look
        console.print(experiments_table(told.done, told.program))
        console.print()
        console.print(summary(told.experiments, told.program, told.branch, look, *stands, chain))
        console.print(f"page: {out}", markup=False, soft_wrap=True)


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
    homes = {home.name: home for home in nights(root)}
    if not homes:
        raise Failure(f"there is no night here yet: start one with `{typed('run')}`")
    name = tag or list(homes)[-1]
    if name not in homes:
        raise Failure(f"there is no night called {name} here; there are: {', '.join(homes)}")
    return homes[name]


def unread(home: Path, night: Night) -> list[str]:
    """What a person has asked for while no loop works on the night: the next one will find it."""
    waiting = [] if is_worked_on(home) else [r for r in inbox.unread(home) if night.awaits(r)]
    return [
        f"`{r.what}{'' if r.experiment is None else f' {r.experiment}'}` was asked for, and waits for the next start: "
        + typed(f"run --tag {home.name}")
        for r in waiting
    ]


def show_summary(home: Path, console: Console) -> None:
    """The table that ends every night."""
    ledger = Ledger(home, readonly=True)
    night, history = ledger.night(), History(ledger.text)
    if night.program:
        whole = [history.brief(e) for e in night.experiments.values()]
        console.print()
        notes = [*unread(home, night), *notes_of(night)]
        stands, branch = how_it_stands(home, night), branch_at(home.parents[1], home.name, night.tip)
        console.print(summary(whole, history.program(night.program), branch, notes, *stands, list(night.kept.values())))
    elif not night.starts:
        console.print(f"{home.name} has not begun: nothing is in its journal", markup=False)


COMMANDS = (status, report)
