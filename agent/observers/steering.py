"""What is said of a person's requests: by the command that makes one, by the terminal, in the summary."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from agent import events as ev
from agent.limits import told as limits_told
from agent.night import Night
from agent.observers.tsv import cell
from agent.typed import typed

LONGEST_SUGGESTION = 4000  # characters: every prompt has to hold it


def moment(until: float, now: float) -> str:
    """`07:00 UTC (2026-11-28, in 8 h 12 min)`: with its time zone, because rented machines run on UTC."""
    local = datetime.fromtimestamp(until).astimezone()
    hours, minutes = divmod(max(0, round((until - now) / 60)), 60)
    left = f"{hours} h {minutes} min" if hours else f"{minutes} min"
    return f"{local:%H:%M} {local.tzname()} ({local:%Y-%m-%d}, in {left})"


def refused(event: ev.Requested, night: Night) -> str:
    """Why the request changes nothing; "" where it does something. `night`: with the request."""
    at, text = night.notes[-1] if night.notes else (0.0, "")
    return text if at == event.at and text.startswith(f"{event.what}: ") else ""


def unheard(words: str, night: Night, works: bool) -> str:
    """Why an idea can't be put to the proposer; "" where it can. `works`: a loop is there, and has its proposer."""
    if not words:
        return 'the suggestion is empty: say what to try, like `suggest "a longer warmup"`'
    if words != words.encode(errors="replace").decode():
        return "the suggestion is no text in UTF-8: write it anew"
    if len(words) > LONGEST_SUGGESTION:
        return f"the suggestion has {len(words):,} characters, {LONGEST_SUGGESTION:,} fit: write it shorter"
    if works and not night.reads:
        proposer = night.proposer.split()[0]
        mend = "stop the loop, and go on with a model"
        return f"{proposer} proposes in this night, and has no language: it can't read a suggestion ({mend})"
    return ""


def said(event: ev.Requested, night: Night, read: Callable[[str], str] = str) -> str:
    """What the request does, in one line; "" where another event tells it better. `night`: with the request."""
    number = event.experiment
    if why := refused(event, night):
        return why
    match event.what:
        case "stop":
            return "stopping" if night.stopping else ""
        case "finish":
            return f"{cell(event.text)}: nothing new is begun" if night.finishing else ""
        case "pause":
            return f"paused {pause_ends(event.until, event.at)}: what is in flight comes to its end, nothing is begun"
        case "resume":
            return "going on"
        case "limits":
            return f"limits: {', '.join(limits_told(night)) or 'none'}"
        case "suggest":
            text = event.words or read(event.idea)
            ahead = f" after {len(night.suggestions) - 1} before it" if len(night.suggestions) > 1 else ""
            return f"suggested, and put to the proposer with its next proposal{ahead}: {cell(text)}"
        case "accept":
            return f"#{number} is accepted: it is put onto the incumbent of this moment, and confirmed with fresh seeds"
        case "skip":
            return f"#{number} is skipped{ends(night, number)}"
        case "veto" if number in night.undecided:
            return f"#{number} is vetoed, and ends as skipped{ends(night, number)}"
    return f"#{number} is vetoed{off_the_branch(event, night)}"


def ends(night: Night, number: int | None) -> str:
    e = night.experiments[number or 0]
    if e.asking:
        return ": it ends when the answer is here that it waits for"
    return ": its trial ends now" if any(t.running for t in e.trials) else ""


def off_the_branch(event: ev.Requested, night: Night) -> str:
    again = next((e for e in night.open if e.without == event.experiment and e.created == event.at), None)
    text = f": the incumbent is #{night.kept[night.tip]}" if night.tip else ""
    if again is not None:
        parts = ", ".join(f"#{part}" for part in again.parts)
        text += f", and #{again.number} is {parts} again without it, to be confirmed with fresh seeds"
    return text


def pause_ends(until: float, now: float) -> str:
    return f"until {moment(until, now)}" if until else f"until `{typed('resume')}`"


def notes(night: Night) -> list[str]:
    """What holds of the person's requests now, for the summary."""
    found = []
    if night.paused and night.on_hold:
        found.append(f"paused by a person {pause_ends(night.paused.until, night.now)}")
    if count := len(night.suggestions):
        why = "" if night.reads else f": {night.proposer} has no language, another --proposer can use it"
        found.append(f"{count} suggestion{'s' if count > 1 else ''} not put to the proposer yet{why}")
    return found
