"""Commands that steer a night from another terminal: pause, resume, skip, suggest, veto, accept, limits.

Each leaves a request, which the loop makes an event of; where no loop works on the night, the next one does.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from agent import inbox
from agent.cli.nights import is_worked_on
from agent.cli.show import Repo, Tag, find_night
from agent.errors import Failure
from agent.events import Requested, RequestKind
from agent.ledger import Ledger
from agent.limits import MOST_HOURS, told
from agent.night import Night
from agent.observers.steering import moment, refused, said, unheard
from agent.records import Stoppers
from agent.typed import typed

Number = Annotated[int, typer.Argument(min=0, help="Number of the experiment, as `status` shows it.")]


def pause(
    repo: Repo = Path("."),
    tag: Tag = None,
    until: Annotated[
        str | None, typer.Option("--until", help="When it goes on by itself: 7:00, or 2026-11-28 07:00.")
    ] = None,
) -> None:
    """Begin nothing new until `resume`; what is in flight comes to its end."""
    steered = Steered.of(repo, tag)
    if not steered.works and steered.night.ended and steered.night.ended.code == 0:
        raise Failure(f"{steered.name} has ended ({steered.night.ended.reason}): there is nothing to pause")
    steered.ask("pause", until=parsed(until) if until else 0.0)


def resume(repo: Repo = Path("."), tag: Tag = None) -> None:
    """End a pause that was asked for."""
    steered = Steered.of(repo, tag)
    paused = steered.night.paused
    if not steered.night.on_hold:
        waits = f"; it waits by itself ({paused.reason})" if paused and steered.works else ""
        raise Failure(f"nobody has paused {steered.name}{waits}: there is nothing to resume")
    steered.ask("resume")


def skip(
    number: Annotated[int | None, typer.Argument(min=0, help="Which one, where several run.")] = None,
    repo: Repo = Path("."),
    tag: Tag = None,
) -> None:
    """End what trains now, without a decision on its change; the night goes on with something else."""
    steered = Steered.of(repo, tag)
    if not steered.works:
        raise Failure(f"no loop works on {steered.name}: nothing runs that could be skipped")
    for one in [number] if number is not None else steered.running():
        steered.ask("skip", experiment=one)


def suggest(
    words: Annotated[list[str], typer.Argument(help="What to try, in your own words.")],
    repo: Repo = Path("."),
    tag: Tag = None,
) -> None:
    """Have an idea of yours tried next."""
    text, steered = " ".join(" ".join(words).split()), Steered.of(repo, tag)
    if why := unheard(text, steered.night, steered.works):
        raise Failure(why)
    steered.ask("suggest", words=text)


def veto(number: Number, repo: Repo = Path("."), tag: Tag = None) -> None:
    """Take a kept experiment off the branch at once; what was kept after it is tried again without it."""
    Steered.of(repo, tag).ask("veto", experiment=number)


def accept(number: Number, repo: Repo = Path("."), tag: Tag = None) -> None:
    """Let an experiment that was held for review be kept, where it is confirmed on the incumbent."""
    Steered.of(repo, tag).ask("accept", experiment=number)


def limits(
    repo: Repo = Path("."),
    tag: Tag = None,
    usd: Annotated[str | None, typer.Option(help="Never spend more on calls in this night, in dollars.")] = None,
    hours: Annotated[str | None, typer.Option(help="Begin nothing new so many hours after the loop's start.")] = None,
    experiments: Annotated[str | None, typer.Option(help="End after this many experiments of the night.")] = None,
    tokens: Annotated[str | None, typer.Option(help="End when calls have used this many tokens.")] = None,
    plateau: Annotated[str | None, typer.Option(help="End after so many in a row without a keep.")] = None,
) -> None:
    """Change how far a night goes while it runs, or show it; `none` lifts a limit."""
    given = {"usd": usd, "hours": hours, "experiments": experiments, "tokens": tokens, "plateau": plateau}
    stated = {name: number(name, text) for name, text in given.items() if text is not None}
    steered = Steered.of(repo, tag)
    if not stated:
        holds = [*told(steered.night), *steered.hours_end()]
        typer.echo(f"{steered.name}: {', '.join(holds) or 'no limit: it goes on until it is stopped'}")
        return
    if stated.get("usd") is not None and steered.night.spent is None:
        raise Failure("what the calls of this night cost is not known, so --usd can't be kept: try --experiments")
    lifted = tuple(name for name, value in stated.items() if value is None)
    steered.ask("limits", limits=Stoppers.model_validate(stated), lifted=lifted)
    for line in steered.hours_end():
        typer.echo(line)


class Steered:
    """One night, with the requests that no loop has read yet."""

    def __init__(self, home: Path):
        self.home, self.name, self.works = home, home.name, is_worked_on(home)
        self.night: Night = Ledger(home, readonly=True).night()
        for request in inbox.unread(home):
            if self.night.awaits(request):
                self.night = self.night.after(request.model_copy(update={"at": time.time()}))

    @classmethod
    def of(cls, repo: Path, tag: str | None) -> Steered:
        return cls(find_night(repo, tag))

    def ask(self, what: RequestKind, **fields: Any) -> None:
        """Leave the request, and say what it will do. Raises Failure where it would do nothing."""
        request = Requested(at=time.time(), id=f"{what} at {time.time_ns()}", what=what, **fields)
        self.night = self.night.after(request)
        if why := refused(request, self.night):
            raise Failure(why)
        inbox.send(self.home, what, **fields)
        how = typed(f"run --tag {self.name}")
        idle = "" if self.works else f"no loop works on it, so this holds from its next start on ({how}): "
        typer.echo(f"{self.name}: {idle}{said(request, self.night)}")

    def running(self) -> list[int]:
        """Experiments that a skip without a number means. Raises Failure where there is none."""
        night = self.night
        found = [e for e in night.open if any(t.running for t in e.trials)] or [
            e for e in night.open if e.state == "waiting"
        ]
        if numbers := [e.number for e in found if not e.ending]:
            return numbers
        asked = next((e.number for e in night.open if e.asking), None)
        how = f": #{asked} is being proposed, and `skip {asked}` ends it" if asked is not None else ""
        raise Failure(f"nothing trains in {self.name} at this moment{how}")

    def hours_end(self) -> list[str]:
        hours, now = self.night.stoppers.hours, time.time()
        if hours is None or not self.works:
            return []
        end = self.night.started + hours * 3600
        return [f"nothing new is begun after {moment(end, now)}"] if end > now else ["the hours are over already"]


def number(name: str, text: str) -> float | int | None:
    """The value of a limit; None: it is lifted. Raises Failure."""
    if text.lower() == "none":
        return None
    try:
        value = float(text) if name in ("usd", "hours") else int(text)
    except ValueError:
        value = -1
    if not 0 < value < 1e9 or name == "hours" and value > MOST_HOURS:
        raise Failure(f"--{name} {text} is no limit: give a number above 0, or `none` to lift it")
    return value


def parsed(text: str) -> float:
    """Unix time of `7:00` (the next time that it is so late here) or of a date with a time. Raises Failure."""
    now = datetime.now().astimezone()
    hour, colon, minute = text.strip().partition(":")
    try:
        if colon and hour.isdigit() and minute.isdigit():
            today = now.replace(tzinfo=None, hour=int(hour), minute=int(minute), second=0, microsecond=0)
            then = min(t for t in (today.astimezone(), (today + timedelta(days=1)).astimezone()) if t > now)
        else:
            then = datetime.fromisoformat(text.strip()).astimezone()
    except ValueError:
        raise Failure(f"--until {text} is no time: write it like 7:00, 19:30 or 2026-11-28 07:00") from None
    if then <= now:
        raise Failure(f"--until {text} is over: it is {now:%Y-%m-%d %H:%M} {now.tzname()} here")
    return then.timestamp()


COMMANDS = (pause, resume, skip, suggest, veto, accept, limits)
