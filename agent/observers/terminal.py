"""What the person sees while the night runs: a line for every event that matters, and on a real terminal a last line
with what runs now. What models or training code wrote is escaped: it is shown, never interpreted.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from agent import events as ev
from agent import live
from agent.events import Event
from agent.history import History
from agent.lab_note import duration, number
from agent.night import Night
from agent.observers import steering
from agent.observers.summary import COLORS
from agent.observers.tsv import cell

TAIL_BYTES = 2000  # of a running trial's log, to show its last line
ASKING = {"first": "asking for a proposal", "repair": "asking for a repair", "slip": "sending back the crash"}


class Terminal:
    """Prints events as they come."""

    name = "terminal"

    def __init__(self, home: Path, console: Console | None = None):
        self.home = home
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.status: Status | None = None
        self.asking: dict[int, tuple[str, float]] = {}  # call -> what is said of it, since when

    def start(self, night: Night, history: History) -> None: ...

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(cell(text))}")

    def see(self, event: Event, night: Night, history: History) -> None:
        match event:
            case ev.Asked():
                self.asking[event.call] = f"#{event.experiment} {ASKING[event.kind]}", time.monotonic()
            case ev.Replied():
                self.asking.pop(event.call, None)
                if night.experiments[event.experiment].stale:
                    self.say(night.notes[-1][1])  # it is asked for again, and what it has cost
            case ev.CallFailed():
                self.asking.pop(event.call, None)
                if not night.paused:  # after that, only a change is worth a line
                    self.say(f"the proposer failed: {event.reason}")
            case ev.TrialBegun(number=0, attempt=1):
                e = history.whole(night.experiments[event.experiment], brief=True)
                label = e.label if e.number else "the program as it is, with several seeds"
                self.say(f"#{e.number} {label}")
            case ev.Measured() if event.measurement.metric is not None or self.decides_nothing(event, night):
                self.measured(event, night, history)
            case ev.TrialFailed() | ev.MachineFault():
                what = "the machine failed" if isinstance(event, ev.MachineFault) else "what runs it broke in"
                self.say(f"#{event.experiment} {what} trial {event.number + 1}: {event.reason}")
            case ev.RerunWanted():
                self.say(f"#{event.experiment} {event.reason}")
            case ev.Rebased():
                self.say(f"#{event.experiment} put onto #{night.kept[event.parent]}, to be confirmed there")
            case ev.Published():
                self.published(event, night)
            case ev.Steered(refused="", program=program) if program:
                self.say("program.md was edited: it steers from the next proposal on")
            case ev.Steered():
                self.say(event.refused)
            case ev.Noted():
                self.say(event.text)
            case ev.Paused():
                self.say(paused(event, night))
            case ev.Resumed():
                self.say("going on")
            case ev.Blocked() if night.fallback:
                self.say(f"{event.reason}: {night.fallback} proposes from here on")
            case ev.Ended() if event.code != 2:
                self.say(f"the night ends: {event.reason}")
            case ev.Tested() if event.reason:
                self.say(f"the test of experiment {event.experiment} failed: {event.reason}")
            case ev.Requested() if text := steering.said(event, night, history.read):
                self.say(text)
            case ev.Started() if night.on_hold and night.paused:
                self.say(paused(night.paused, night))

    def measured(self, event: ev.Measured, night: Night, history: History) -> None:
        trial = night.experiments[event.experiment].trials[event.number]
        took = duration(event.measurement.training_seconds)
        value = f"{history.program(night.program).metric.name} {number(event.measurement.metric)}"
        if event.measurement.metric is None:
            value = f"{event.measurement.outcome}: {event.measurement.reason}"
        self.say(f"#{event.experiment} trial {trial.number + 1}: {value} (trained {took}, seed {trial.seed})")

    def decides_nothing(self, event: ev.Measured, night: Night) -> bool:
        """No verdict will tell of this failed trial: it is run again, or was one more of the incumbent."""
        e = night.experiments[event.experiment]
        return e.number == 0 or e.state == "published"

    def published(self, event: ev.Published, night: Night) -> None:
        """One verdict, coloured."""
        verdict = night.experiments[event.experiment].verdict
        assert verdict is not None
        color = COLORS.get(verdict.kind, "red")
        review = " [bold magenta]REVIEW[/bold magenta]" if verdict.review else ""
        self.console.print(
            f"[dim]{time.strftime('%H:%M:%S')}[/dim] #{event.experiment} "
            f"[{color}]{verdict.kind}[/{color}]{review} {escape(cell(verdict.reason))}"
        )

    def tick(self) -> None:
        """The last line: what is asked, and the last line of each running trial."""
        if not self.console.is_terminal:
            return
        now = time.monotonic()
        parts = [f"{what} {duration(now - since)}" for what, since in self.asking.values()]
        for job in live.read(self.home):
            doing = f"#{job.experiment} {'training' if job.what == 'train' else 'testing'} {job.number + 1}"
            parts.append(f"{doing} {duration(time.time() - job.since)} {last_line(Path(job.log))}")
        text = escape("  |  ".join(parts))
        if self.status is None:
            self.status = self.console.status(text)
            self.status.start()
        self.status.update(text)

    def close(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None


def paused(event: ev.Paused, night: Night) -> str:
    """What is said of a pause."""
    if event.what == "person":
        return f"paused by a person {steering.pause_ends(event.until, night.now)}"
    meanwhile = f"; {night.fallback} proposes meanwhile" if night.fallback and event.what == "model" else ""
    again = f", next at {time.strftime('%H:%M:%S', time.localtime(event.until))}" if event.until else ""
    return f"paused: {event.reason}{meanwhile}; it is tried again by itself{again}"


def last_line(log: Path) -> str:
    """The last non-empty line of a growing log, for one terminal line; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    except OSError:
        return ""
    return next((cell(line)[:100] for line in reversed(text.splitlines()) if line.strip()), "")
