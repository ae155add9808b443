"""Commands for the time after a night: finalize, export, nights."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from agent.cli.nights import is_worked_on
from agent.cli.nights import nights as folders
from agent.cli.output import write_data
from agent.cli.show import Repo, Tag, find_night, how_it_stands, unread
from agent.errors import Failure
from agent.files import write_file
from agent.finalize import confirmed
from agent.finalize import finalize as make_branch
from agent.history import History
from agent.judge.audit import AuditReport
from agent.lab_note import dollars, duration, number
from agent.ledger import Ledger
from agent.observers import table
from agent.observers.columns import Columns
from agent.observers.report.data import facts
from agent.observers.report.read import told_of
from agent.observers.track import parse
from agent.observers.trackers.sending import Sending, reason_of
from agent.observers.tsv import cell
from agent.typed import typed
from agent.workspace import Workspace, project_folder


def finalize(
    repo: Repo = Path("."),
    tag: Tag = None,
    branch: Annotated[str | None, typer.Option(help="Name of the new branch; default: overnight/TAG.")] = None,
    onto: Annotated[str | None, typer.Option(help="Branch or commit to make it on; default: where you are.")] = None,
    squash: Annotated[bool, typer.Option("--squash", help="One commit in place of one for each change.")] = False,
    unaudited: Annotated[
        bool, typer.Option("--unaudited", help="Also where no audit has confirmed the night's gain.")
    ] = False,
) -> None:
    """A clean branch of a night's kept commits, each with its evidence, on your own branch."""
    home = find_night(repo, tag)
    ledger = Ledger(home, readonly=True)
    night, history = ledger.night(), History(ledger.text)
    if waits := unread(home, night):
        raise Failure(f"{waits[0]}; then finalize")
    chain = [history.whole(night.experiments[n]) for n in night.kept.values()]
    if len(chain) < 2:
        raise Failure(f"{home.name} has kept nothing beside the baseline: there is nothing to make a branch of")
    audited = AuditReport.last(home)
    doubt = confirmed(audited, chain)
    if doubt and not unaudited:
        raise Failure(f"{home.name} is not confirmed: {doubt}. `audit` measures it, --unaudited takes it as it is")
    program, workspace = history.program(night.contract), Workspace(repo, home.name)
    name, base = branch or f"overnight/{home.name}", onto or workspace.here
    made = make_branch(workspace, program, chain, name, base, squash, None if doubt else audited)
    typer.echo(f"{made.name}: {many(made.commits, 'commit')} on {base} ({made.base[:12]})")
    typer.echo(f"not audited: {doubt}" if doubt else f"audited: better by {audited.gain}" if audited else "")
    if not made.measured:
        typer.echo(f"{base} is not what the night began from: the two together were never measured")
    if is_worked_on(home):
        typer.echo(f"a loop works on {home.name}: what it keeps from now on is not in it")
    if look := [f"#{e.number}" for e in chain if e.verdict and e.verdict.review]:
        typer.echo(f"marked for a look: {', '.join(look)}; `show N` says why")
    typer.echo(f"look at it:  git log -p --reverse {made.base[:12]}..{made.name}")


def many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def export(
    repo: Repo = Path("."),
    tag: Tag = None,
    jsonl: Annotated[Path | None, typer.Option(help="Write lines of JSON there; - for standard output.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file there; - as above.")] = None,
    trials: Annotated[bool, typer.Option("--trials", help="A row for each trial, with its curve.")] = False,
    to: Annotated[
        list[str] | None, typer.Option(help="Send it to mlflow[:URI], wandb, tensorboard[:FOLDER] or trackio.")
    ] = None,
) -> None:
    """A night as a table for other tools, a row for each experiment or for each trial; or as runs of a tracker."""
    if not (jsonl or parquet or to):
        raise Failure("nothing to write: say --jsonl FILE, --parquet FILE or --to mlflow")
    home, trackers = find_night(repo, tag), [parse(text) for text in to or ()]
    for name, where in trackers:
        send(home, name, where)
    if not (jsonl or parquet):
        return
    told = told_of(home, brief=not trials)
    if told is None:
        raise Failure(f"{home.name} has not begun: there is nothing to write")
    columns = table.TRIAL if trials else table.EXPERIMENT
    rows = (table.trial_rows if trials else table.experiment_rows)(told.tag, told.program, told.experiments)
    if jsonl:
        write(jsonl, table.json_lines, rows, columns)
    if parquet:
        write(parquet, table.parquet, rows, columns)


def send(home: Path, name: str, where: str) -> None:
    sending = Sending(home, name, where, typer.echo)
    try:
        with contextlib.redirect_stdout(io.StringIO()), asked_nothing():  # libraries tell of each run
            count = sending.send()
    except Failure:
        raise
    except Exception as error:  # whatever the library raises
        raise Failure(f"{name} takes nothing: {reason_of(error)}; the same command sends what is missing") from None
    typer.echo(f"{many(count, 'run')} sent, {len(sending.sent)} in all")
    typer.echo(sending.tracker.place())


@contextlib.contextmanager
def asked_nothing() -> Iterator[None]:
    """A library that would ask for a key finds nobody to ask."""
    person = sys.stdin
    try:
        with open(os.devnull) as sys.stdin:
            yield
    finally:
        sys.stdin = person


def write(
    file: Path, form: Callable[[Iterable[table.Row], Mapping[str, str]], bytes], rows: list[table.Row],
    columns: Mapping[str, str],
) -> None:  # fmt: skip
    content = form(rows, columns)
    if str(file) == "-":
        write_data(content)
        return
    write_file(file, content)
    typer.echo(f"{file}: {many(len(rows), 'row')}", err=True)


def nights(
    repo: Repo = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for a program.")] = False,
) -> None:
    """All nights of this repository, side by side."""
    root = project_folder(repo)
    rows = [night_row(home) for home in folders(root)]
    if not rows and not as_json:
        raise Failure(f"there is no night here yet: start one with `{typed('run')}`")
    rows.sort(key=lambda row: row["began"] or "")
    if as_json:
        write_data((json.dumps(table.clean(rows), ensure_ascii=False, indent=2) + "\n").encode())
    else:
        Console(highlight=False).print(nights_table(rows))


def night_row(home: Path) -> dict[str, Any]:
    """One night; of one that can't be read why."""
    names = ("night", "began", "hours", "metric", "experiments", "kept", "baseline", "best", "gain", "interval", "usd",
             "ended")  # fmt: skip
    row = dict.fromkeys(names) | {"night": home.name, "experiments": 0, "kept": 0, "ended": ""}
    try:
        told = told_of(home, brief=True)
        if told is None:
            return row | {"ended": "it has not begun"}
        known, first = facts(told), told.experiments[:1]
        ended = how_it_stands(home, told.night)[0] if told.night else told.ended
        return row | {
            "began": table.moment(first[0].created) if first else None,
            "metric": told.program.metric.name,
            "experiments": known["tried"],
            "usd": known["spent"],
            "ended": ended or ("a loop works on it" if is_worked_on(home) else ""),
            **{name: known[name] for name in ("hours", "kept", "baseline", "best", "gain", "interval")},
        }
    except (Failure, sqlite3.DatabaseError) as error:
        return row | {"ended": str(error)}


def nights_table(rows: Iterable[Mapping[str, Any]]) -> Columns:
    shown = Columns()
    for name in ("night", "began", "hours"):
        shown.add_column(name, no_wrap=True)
    for name in ("tried", "kept"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("metric", no_wrap=True)
    shown.add_column("gain, 95% interval", no_wrap=True)
    shown.add_column("dollars", justify="right", no_wrap=True)
    shown.add_column("ended")
    for row in rows:
        gain = "-"
        if row["gain"] is not None and row["interval"]:
            low, high = row["interval"]
            gain = f"{row['gain']:.3g} ({low:.3g} .. {high:.3g})"
        elif row["kept"]:
            gain = f"{number(row['baseline'])} -> {number(row['best'])}"
        hours = "" if row["hours"] is None else duration(3600 * row["hours"])
        began = f"{datetime.fromisoformat(row['began']).astimezone():%m-%d %H:%M}" if row["began"] else ""
        spent = "unknown" if row["usd"] is None else dollars(row["usd"])
        cells = (began, hours, str(row["experiments"]), str(row["kept"]), Text(cell(row["metric"])), gain, spent)
        shown.add_row(Text(row["night"]), *cells, Text(cell(row["ended"])))
    return shown


COMMANDS = (finalize, export, nights)
