"""How far a night goes: when it is enough, when the proposer may be called, and when to wait for it. Pure, as
policy.py, which asks this.
"""

from __future__ import annotations

from agent.night import Night
from agent.state import added

FIRST_WAIT, LONGEST_WAIT = 15.0, 600.0  # seconds after an outage; each further one is twice as long
FRUITLESS = 5  # proposals in a row that could not be trained, before the next one is waited with, longer each time
LONGEST_RETRY_AFTER = 3600.0  # seconds that a server's Retry-After is honoured
UNTRAINED = "none of their changes could be trained"
MOST_HOURS = 100_000  # a date of a clock has to come out of them
GO_ON = "the same command goes on from here"


def enough(night: Night) -> str:
    """The first reason to begin nothing new, in words for a person; "" where there is none."""
    return finished(night) or (cut_short(night) or ("", ""))[0]


def finished(night: Night) -> str:
    """Why the night has done what it was begun for; "" where it has not."""
    rules, most = night.rules, night.stoppers
    best, done = night.incumbent, len(night.experiments) - 1
    value = best.verdict.metric if best and best.verdict else None
    if rules and value is not None and rules.reached(value):
        return f"the target is reached: {rules.metric} {value:.6g}"
    if most.experiments is not None and done >= most.experiments:
        trained = any(e.trials for e in night.experiments.values() if e.number)
        return f"{done} experiments are done, as asked" + ("" if trained or not done else f"; {UNTRAINED}")
    if most.plateau is not None and since_keep(night) >= most.plateau:
        return f"{most.plateau} experiments in a row brought nothing"
    return ""


def cut_short(night: Night) -> tuple[str, str] | None:
    """Why this process goes no further, though the night is not finished; and how to go on."""
    most = night.stoppers
    if why := closing(night):
        return why, night.after_finish or GO_ON
    if night.blocked and not night.fallback:
        return night.blocked, night.unblock or GO_ON
    if most.tokens is not None and night.tokens >= most.tokens:
        return f"{most.tokens:,} tokens are used, as allowed", f"with more --tokens {GO_ON}"
    return None


def closing(night: Night) -> str:
    """Why a person wants this process to come to its end now: what is not in training yet waits for the next one.
    Other limits let it be tried, since it is paid for."""
    if night.finishing:
        return night.finishing
    hours = night.stoppers.hours
    over = hours is not None and night.now >= night.started + hours * 3600
    return f"{hours:g} hours are over, as asked" if over else ""


def told(night: Night) -> list[str]:
    """The limits that hold, and how far the night is, in words for a person."""
    most, said = night.stoppers, list[str]()
    if most.usd is not None:
        spent = "an unknown sum" if night.spent is None else f"${night.spent:.2f}"
        said.append(f"${most.usd:.2f} ({spent} is spent)")
    if most.hours is not None:
        said.append(f"{most.hours:g} hours from each start")
    if most.experiments is not None:
        said.append(f"{most.experiments} experiments ({max(0, len(night.experiments) - 1)} were begun)")
    if most.tokens is not None:
        said.append(f"{most.tokens:,} tokens ({night.tokens:,} are used)")
    if most.plateau is not None:
        said.append(f"{most.plateau} experiments in a row without a keep ({since_keep(night)} now)")
    return said


def since_keep(night: Night) -> int:
    """Experiments in a row without a keep."""
    return next((i for i, n in enumerate(reversed(night.order)) if night.experiments[n].kept), 0)


def affords(night: Night, usd: float | None) -> str:
    """Why a call that may cost so much can't be made; "" where it can. An unknown price never fits a cap, and what is
    free always does: a cap that was lowered later may be passed already."""
    cap = night.stoppers.usd
    if cap is None or usd == 0:
        return ""
    total = added(night.spent, usd)
    if total is None or usd is None:
        return "the price of a call is not known, so --usd can't be kept"
    if total > cap:
        return f"${total - usd:.2f} of ${cap:.2f} is spent, and the next call may cost ${usd:.2f}"
    return ""


def next_call(night: Night) -> float:
    """When the proposer may be called; later with every outage in a row, and with every proposal of no use in a row."""
    until = night.now
    if night.outages:
        wait = growing(night.outages)
        until = max(until, night.failed_at + max(wait, min(night.retry_after, LONGEST_RETRY_AFTER)))
    if of_no_use(night):
        until = max(until, night.fruitless_at + growing(night.fruitless - FRUITLESS))
    return until


def growing(times: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(times, 10))


def of_no_use(night: Night) -> bool:
    """Whether nothing that the proposer says can be trained, so that to ask on and on would only cost."""
    return night.fruitless >= FRUITLESS


def may_call(night: Night, most: int) -> bool:
    """Whether the proposer may be asked now; after an outage by one call only, until it answers."""
    if night.blocked or night.now < next_call(night):
        return False
    return calls(night, fallback=False) < (1 if night.outages or of_no_use(night) else most)


def may_fall_back(night: Night, most: int) -> bool:
    """Whether the fallback may be asked now: the proposer can't be."""
    return bool(night.fallback) and out_of_reach(night) and calls(night, fallback=True) < most


def out_of_reach(night: Night) -> bool:
    """Whether the proposer can't be had for longer than a moment."""
    failing = bool(night.outages) or of_no_use(night)
    return bool(night.blocked) or failing and night.paused is not None and night.paused.what == "model"


def calls(night: Night, fallback: bool) -> int:
    """Calls in flight, of the fallback or of the proposer."""
    return sum(e.asking is not None and e.asking.fallback == fallback for e in night.open)
