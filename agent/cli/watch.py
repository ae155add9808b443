"""Commands to look at a night while it runs: the page (`watch`), and its state once, where no command is given."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agent.cli.nights import is_worked_on
from agent.cli.show import Repo, Tag, find_night, how_it_stands
from agent.errors import Failure
from agent.night import Night
from agent.observers import now, screen
from agent.observers.now import Tally
from agent.observers.report.read import Reader
from agent.workspace import project_folder

PORT = 8765
LOOK = 3.0  # seconds between two looks whether a loop is at work; each holds the night's lock for a moment
VERDICTS = 12  # that are shown of a night's state
Port = Annotated[int | None, typer.Option(min=1, max=65535, help=f"Where the page is; default: {PORT}, or a free one.")]


def watch(repo: Repo = Path("."), tag: Tag = None, port: Port = None) -> None:
    """The night as a page in the browser, live: on this machine alone, to look at; with its token to steer it too."""
    home, root = find_night(repo, tag), project_folder(repo)
    import uvicorn  # here, because no other command needs it

    from agent.observers.watch import Page

    token, listening = secrets.token_urlsafe(16), listen(port)
    app = Page(home, root, Stands(home), token).app()
    at = listening.getsockname()[1]
    print(f"http://127.0.0.1:{at}/#token={token}", flush=True)
    typer.echo(f"the night {home.name}, live; from elsewhere: ssh -L {at}:127.0.0.1:{at} this-machine. Ctrl-C ends it.")
    quiet = {"log_level": "error", "access_log": False, "server_header": False}
    config = uvicorn.Config(app, lifespan="off", timeout_graceful_shutdown=1, **quiet)  # type: ignore[arg-type]
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def listen(port: int | None) -> socket.socket:
    """On this port of this machine, which nobody else can reach; without one on the usual one, or one that is free.
    Raises Failure."""
    for wanted in (port,) if port else (PORT, 0):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", wanted))
            listening.listen()
        except OSError as error:
            listening.close()
            reason = error.strerror
        else:
            return listening
    raise Failure(f"port {port or PORT} can't be used ({reason}): choose another --port")


class Stands:
    """Whether a loop works on a night, and why none does: looked at every few seconds."""

    def __init__(self, home: Path):
        self.home, self.at, self.known = home, float("-inf"), (False, "")

    def __call__(self, night: Night) -> tuple[bool, str]:
        if time.monotonic() - self.at > LOOK:
            at_work = is_worked_on(self.home)
            self.known = at_work, "" if at_work else how_it_stands(self.home, night)[0]
            self.at = time.monotonic()
        return self.known


def state(home: Path, console: Console) -> None:
    """The picture of the live view, once."""
    reader = Reader(home)
    reader.read()
    night, history = reader.night, reader.history
    stands, go_on = how_it_stands(home, night)
    if not night.program:
        console.print(f"{home.name} has not begun: nothing is in its journal", markup=False)
        return
    tally = Tally.of((event for _, event in reader.ledger.events()), night, history)
    seen = now.look(home, night, history, at_work=is_worked_on(home), stands=stands)
    verdicts = [history.brief(night.experiments[n]) for n in reversed(night.order[-VERDICTS:])]
    metric, width = history.program(night.program).metric.name, console.width
    height = max(VERDICTS + 16, console.height)
    figures = tally.figures(night, history, seen)
    for line in screen.picture(home.name, metric, seen, figures, verdicts, width, height):
        line.rstrip()
        console.print(line)
    more = "more: `report`, `watch` (in the browser), --help"
    console.print("\n" + "; ".join(filter(None, [go_on, more])), style="dim", markup=False)


COMMANDS = (watch,)
