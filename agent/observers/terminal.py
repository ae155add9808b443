"""What the person sees while the night runs: a line for every event that matters, and on a real terminal a picture of
the night below them, drawn anew twice a second. What models or training code wrote is escaped: it is shown, never
interpreted.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.markup import escape

from agent import events as ev
from agent import state
from agent.events import Event
from agent.history import History
from agent.lab_note import duration, number
from agent.ledger import Ledger
from agent.night import Night
from agent.observers import now, screen, steering
from agent.observers.follow import RECENT
from agent.observers.now import Tally, paused
from agent.observers.summary import COLORS
from agent.observers.tsv import cell
from agent.records import Experiment

SMALL = 23  # lines of the picture on a terminal of 24
SHARE = 0.7  # of the lines of a larger one; above it stand the newest lines of what happened
SHORTEST = 0.2  # seconds between two pictures, however much happens
FEWEST = 40, 10  # columns and lines without which there is no picture

__all__ = ["LiveTerminal", "Terminal", "paused", "terminal"]


class Terminal:
    """Prints events as they come."""

    name = "terminal"

    def __init__(self, home: Path, console: Console | None = None):
        self.home = home
        self.console = console or Console(highlight=False, soft_wrap=True)

    def start(self, night: Night, history: History) -> None: ...

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(cell(text))}")

    def see(self, event: Event, night: Night, history: History) -> None:
        match event:
            case ev.Replied() if night.experiments[event.experiment].stale:
                self.say(night.notes[-1][1])  # it is asked for again, and what it has cost
            case ev.CallFailed() if not night.paused:  # after that, only a change is worth a line
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

    def tick(self) -> None: ...
    def close(self) -> None: ...


class LiveTerminal(Terminal):
    """The same lines, above a picture of the night. At the end the last picture stays."""

    def __init__(self, home: Path, console: Console | None = None):
        super().__init__(home, console)
        self.live: Live | None = None
        self.broken, self.last = False, 0.0
        self.size = ConsoleDimensions(0, 0)
        self.shown: dict[int, tuple[state.Experiment, Experiment]] = {}

    def start(self, night: Night, history: History) -> None:
        ledger = Ledger(self.home, readonly=True)
        seen = (event for _, event in ledger.events() if event.at <= night.now)
        self.tally = Tally.of(seen, night, history)
        ledger.close()
        self.night, self.history = night, history

    def see(self, event: Event, night: Night, history: History) -> None:
        self.night, self.history = night, history
        self.tally.see(event, night, history)
        super().see(event, night, history)

    def tick(self) -> None:
        if self.night.program and not self.broken and time.monotonic() - self.last > SHORTEST:
            self.last = time.monotonic()
            try:
                self.draw()
            except Exception:  # the lines are worth more than the picture
                self.broken = True
                self.leave()
                log = self.home / "logs" / "picture.log"
                log.parent.mkdir(exist_ok=True)
                log.write_text(traceback.format_exc(), encoding="utf-8")
                self.say(f"the picture of the night failed, {log} says how: lines alone from here on")

    def draw(self) -> None:
        size = self.console.size
        if self.live and size != self.size:  # what was drawn has been wrapped by the terminal, nobody knows how
            self.leave()
            self.console.clear()
        self.size = size
        if size.width < FEWEST[0] or size.height < FEWEST[1]:
            return
        if self.live is None:
            self.live = Live(
                console=self.console,
                auto_refresh=False,
                vertical_overflow="crop",
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self.live.start()
        self.live.update(self.drawn(ended=False), refresh=True)

    def drawn(self, ended: bool) -> Group:
        """`ended`: nothing works on it any more, and all of the screen is free for it."""
        width, height = self.size
        height = max(min(SMALL, height - 1), int(SHARE * height))
        night, stands = self.night, self.night.ended.reason if self.night.ended else ""
        seen = now.look(self.home, night, self.history, at_work=not ended, stands=stands)
        figures = self.tally.figures(night, self.history, seen)
        name = self.history.program(night.program).metric.name
        return Group(*screen.picture(self.home.name, name, seen, figures, self.verdicts(height), width - 1, height))

    def verdicts(self, most: int) -> list[Experiment]:
        """The newest, newest first; whoever holds them all would hold a night in memory once more."""
        shown = {}
        for n in reversed(self.night.order[-min(most, RECENT) :]):
            e, before = self.night.experiments[n], self.shown.get(n)
            shown[n] = before if before and before[0] is e else (e, self.history.whole(e, brief=True))
        self.shown = shown
        return [whole for _, whole in shown.values()]

    def leave(self) -> None:
        """What was drawn last stays."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def close(self) -> None:
        if self.live is not None:
            self.live.update(self.drawn(ended=bool(self.night.ended)), refresh=True)
        self.leave()


def terminal(home: Path, console: Console, plain: bool = False) -> Terminal:
    """Lines alone where nobody could draw on what they go to, or where they are wished."""
    drawable = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
    return LiveTerminal(home, console) if drawable and not plain else Terminal(home, console)
