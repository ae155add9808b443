"""Tells a person who is elsewhere: the night pauses, goes on, has a new best, or has ended. Over apprise, which knows
the URLs of a hundred services (ntfy://, slack://, mailto://, json://...); github.com/caronc/apprise.

The URLs hold tokens: they are in no event, no log and no child's environment.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from agent import events as ev
from agent.errors import Failure
from agent.history import History
from agent.lab_note import dollars, duration, number
from agent.night import Night
from agent.observers.report import chart, data
from agent.observers.report.read import told_of
from agent.run.leftovers import temporary

VARIABLE = "OVERNIGHT_NOTIFY"
INSTALL = "--notify needs apprise: pip install 'overnight[notify]', or pip install apprise"


def notifier(url: str | None) -> Any:
    """An apprise object for these URLs (blanks or commas between them), of --notify or of the environment; None: there
    are none. Raises Failure with what to do."""
    urls = url or os.environ.get(VARIABLE)
    os.environ.pop(VARIABLE, None)  # whatever is started from now on must not have it
    if not urls:
        return None
    try:
        import apprise  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Failure(INSTALL) from None
    logging.getLogger("apprise").addHandler(logging.NullHandler())  # it would print URLs to the terminal
    logging.getLogger("apprise").propagate = False
    service = apprise.Apprise()
    if not service.add(urls):
        raise Failure("--notify is no URL that apprise knows: see github.com/caronc/apprise for what to write")
    return service


class Notify:
    """One message for each thing that a person would want to be woken for. A service that fails is nothing to anybody:
    the next message is tried all the same."""

    name = "notify"

    def __init__(self, home: Path, service: Any):
        self.home, self.service = home, service

    def start(self, night: Night, history: History) -> None: ...

    def see(self, event: ev.Event, night: Night, history: History) -> None:
        title = f"overnight {self.home.name}"
        if isinstance(event, ev.Ended):
            self.end(title, message(event, night))
        elif text := message(event, night):
            self.service.notify(title=title, body=text)

    def end(self, title: str, text: str) -> None:
        """The words first, as a picture takes its time and may fail."""
        told = told_of(self.home, brief=True)
        overview = data.overview(told) if told else None
        self.service.notify(title=title, body="\n".join([text, *closing(overview)]) if overview else text)
        takers = [one for one in self.service if one.attachment_support]
        if not takers or not overview or not overview["facts"]["tried"]:
            return
        with temporary(self.home) as scratch:
            (file := scratch / f"{self.home.name}.png").write_bytes(chart.picture(overview))
            from apprise import AppriseAttachment  # pyright: ignore[reportMissingImports]

            for one in takers:
                one.notify(title=title, body="every experiment", attach=AppriseAttachment([str(file)]))

    def tick(self) -> None: ...

    def close(self) -> None: ...


def closing(overview: dict[str, Any]) -> list[str]:
    """The night in a few lines of figures; nothing in them was written by a model."""
    facts, name = overview["facts"], overview["metric"]["name"]
    lines = []
    if facts["kept"]:
        ends = f"{number(facts['baseline'])} -> {number(facts['best'])}"
        lines.append(f"{name}: {ends} (experiment {facts['best_number']})")
    if facts["gain"] is not None and facts["interval"]:
        low, high = facts["interval"]
        lines.append(f"gain {number(facts['gain'])}, 95% interval {number(low)} .. {number(high)}")
    hours = f" in {duration(3600 * facts['hours'])}" if facts["hours"] is not None else ""
    lines.append(f"kept {facts['kept']} of {facts['tried']} experiments{hours}, cost {dollars(facts['spent'])}")
    if looks := len(overview["look"]):
        lines.append(f"wants a look: {looks}; `report` says what")
    return lines


def message(event: ev.Event, night: Night) -> str:
    """What a person is told of this event; "" for nothing."""
    match event:
        case ev.Paused(reason=reason):
            return f"paused: {reason}"
        case ev.Resumed():
            return "goes on"
        case ev.Ended(reason=reason):
            return f"ended: {reason}"
        case ev.Published(experiment=number_of):
            e = night.experiments[number_of]
            if e.kept and e.number and e.verdict and e.verdict.metric is not None and night.rules:
                return f"new best: {night.rules.metric} {number(e.verdict.metric)} (experiment {e.number})"
    return ""
