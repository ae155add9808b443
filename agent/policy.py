"""What to begin next: a pure function of the night and of what this machine can do at once.

In one paragraph: what has come back is decided on first. Of the wins that wait, the one that is surest is kept
first, and the others are then put onto it. Free slots go to tests of kept commits, to trials that were cut off or
that the judge waits for, and to new candidates, in this order. Free calls go to experiments under way before a new
one, and a new one is begun only for a slot that would be idle, or ahead of the next one that will be: what was
proposed ahead is put onto what was kept meanwhile before it is trained, and asked for again where that does not work.
When enough is done nothing new is begun, and what
was begun is brought to its end. A proposer that fails, or says nothing that could be trained, never ends the night: it
is asked again after growing waits, and after a while the night counts as paused, which is said; a fallback proposes
meanwhile, where the person chose one. A machine on which no slot works is waited for and tried again as well. In
a pause that a person asked for, what is in flight is brought to its end and decided on, and nothing is begun.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from agent.limits import (
    GO_ON,
    closing,
    cut_short,
    enough,
    finished,
    growing,
    may_call,
    may_fall_back,
    next_call,
    of_no_use,
    out_of_reach,
)
from agent.night import Night
from agent.records import CallKind
from agent.state import Experiment, Trial

PATIENCE = 3  # outages of the proposer in a row before the night counts as paused
REPAIRS = 3  # replies that may follow one that can't be applied; for the last the whole file is asked for
DEFECTS = 3  # times that this program may fail to ask for one experiment
FAILURES = 2  # times that what runs a trial may break before that is the trial's crash
LOST_CALL = 3600.0  # seconds without any answer, after which a call counts as lost


class Capacity(NamedTuple):
    """How much may be in flight at once."""

    slots: int = 1
    calls: int = 1
    evaluations: int = 1
    lookahead: int = 0
    """Experiments more than slots that may be under way, of a proposer that reads what is in flight."""


@dataclass(frozen=True)
class Ask:
    """Call the proposer. "first": with a new question; otherwise as part of the talk about this experiment."""

    experiment: int
    kind: CallKind
    fallback: bool = False
    """Ask what proposes while the proposer can't."""


@dataclass(frozen=True)
class Pause:
    """Say that the proposer or the machine can't be had, and when it is tried again."""

    reason: str
    until: float
    what: Literal["model", "machine"] = "model"


@dataclass(frozen=True)
class Resume:
    """Say that it can be had again."""


@dataclass(frozen=True)
class BeginBaseline:
    """Take the program as it is for experiment 0."""


@dataclass(frozen=True)
class Read:
    """Parse the reply and apply its edits."""

    experiment: int


@dataclass(frozen=True)
class Refuse:
    """The experiment ends here, without a trial of its own."""

    experiment: int
    skipped: bool = False
    """It is not its own fault: the person wants it to end, or the proposer can't be had to go on with it."""


@dataclass(frozen=True)
class Check:
    """Is the change worth a trial? Then commit it."""

    experiment: int


@dataclass(frozen=True)
class Judge:
    """Decide on the trials that are here, or say which one is missing."""

    experiment: int


@dataclass(frozen=True)
class Rebase:
    """Put a win on an older incumbent, or what was proposed for it, onto the present one."""

    experiment: int


@dataclass(frozen=True)
class Publish:
    """Keep: the branch moves. Reset: it stays."""

    experiment: int


@dataclass(frozen=True)
class Train:
    experiment: int
    number: int
    slot: int


@dataclass(frozen=True)
class Test:
    """Score a kept commit on the held-out split."""

    experiment: int
    slot: int


@dataclass(frozen=True)
class CountAsCrash:
    """This trial fails again and again, and it is not the machine."""

    experiment: int
    number: int


@dataclass(frozen=True)
class GiveUp:
    """Nothing was heard of a call, a trial or a test for longer than it can take."""

    what: Literal["call", "trial", "test"]
    experiment: int
    number: int
    """Of the call or the trial."""


@dataclass(frozen=True)
class End:
    reason: str
    code: int
    then: str = ""
    """How to go on."""


Action = (
    Ask | BeginBaseline | Read | Refuse | Check | Judge | Rebase | Publish
    | Train | Test | CountAsCrash | GiveUp | Pause | Resume | End
)  # fmt: skip


def next_action(night: Night, can: Capacity) -> Action | None:
    """The one thing to do now; None: wait for an event, at most until `deadline`."""
    if night.stopping:
        return next(lost(night), None) if list(night.running) or night.testing else End("stopped", 3, GO_ON)
    return (
        next(decisions(night), None)
        or publish(night)
        or next(lost(night), None)
        or pause(night, can)
        or (None if night.on_hold else trial_or_call(night, can))
        or end(night)
    )


def trial_or_call(night: Night, can: Capacity) -> Action | None:
    """What takes time; nothing of it is begun while a person wants a pause."""
    return test(night, can) or train(night, can) or ask(night, can) or begin(night, can)


def decisions(night: Night) -> Iterator[Action]:
    """What can be decided at once, oldest experiment first."""
    for e in night.open:
        if e.ending and not settled(e):
            if not e.asking and not any(t.running for t in e.trials):  # what is paid for is told, and slots are freed
                yield Refuse(e.number, skipped=True)
            continue
        if e.state == "replied":
            yield Read(e.number)
        elif e.state == "detached" or overtaken(night, e):
            yield Rebase(e.number)
        elif e.state == "proposed":
            yield Check(e.number)
        elif e.state == "measured" and not (e.number == 0 and night.baseline_failed):
            yield Judge(e.number)
        elif e.state in ("ask", "refused") and worthless(e):
            yield Refuse(e.number)
        elif e.state in ("ask", "refused") and left_alone(night, e):
            yield Refuse(e.number, skipped=True)
        for t in e.trials:
            if hopeless(t):
                yield CountAsCrash(e.number, t.number)
    best = night.incumbent
    for t in best.trials if best else ():
        if hopeless(t):
            yield CountAsCrash(best.number, t.number)  # type: ignore[union-attr]


def overtaken(night: Night, e: Experiment) -> bool:
    """Whether something was kept after it was proposed, and before any trial of it."""
    return e.state == "trials" and e.number > 0 and not e.current and e.parent != night.tip


def settled(e: Experiment) -> bool:
    """It has ended as the person wants."""
    return e.verdict is not None and e.verdict.kind == "skipped"


def worthless(e: Experiment) -> bool:
    """Whether no further call is worth making for this experiment. No talk is had with the fallback."""
    talked = [call for call in e.talk if call.reply]
    if talked and talked[-1].fallback or e.defects >= DEFECTS:
        return True
    return e.state == "refused" and repairs(e) >= REPAIRS


def left_alone(night: Night, e: Experiment) -> bool:
    """Whether the talk about it can't be gone on with: the proposer has nothing more to say, or is away while the
    fallback has other proposals."""
    over = night.exhausted or bool(night.fallback) and out_of_reach(night)
    return over and any(call.reply for call in e.talk) and not e.stale


def publish(night: Night) -> Action | None:
    """Of several wins the surest first: the best lower bound of its effect, then the older one."""
    judged = [e for e in night.open if e.state == "judged"]
    for e in judged:
        if not e.kept:
            return Publish(e.number)
    wins = sorted(judged, key=lambda e: (-certain(e), e.number))
    if not wins:
        return None
    return Publish(wins[0].number) if wins[0].parent == night.tip or not night.tip else Rebase(wins[0].number)


def certain(e: Experiment) -> float:
    """What a win is worth at least."""
    if e.verdict and e.verdict.interval:
        return e.verdict.interval[0]
    return -math.inf


def lost(night: Night) -> Iterator[Action]:
    return (given_up for time, given_up in patience(night) if night.now >= time)


def patience(night: Night) -> Iterator[tuple[float, GiveUp]]:
    """Until when to wait for whatever is in flight."""
    longest = night.rules.trial_seconds if night.rules else LOST_CALL
    for e in night.open:
        if e.asking:
            yield e.asking.began + LOST_CALL, GiveUp("call", e.number, e.asking.number)
    for e, t in night.running:
        yield t.began + longest, GiveUp("trial", e.number, t.number)
    for e in night.testing:
        yield e.test_began + longest, GiveUp("test", e.number, 0)


def test(night: Night, can: Capacity) -> Action | None:
    slot = free_slot(night, can)
    if slot is None or len(night.testing) >= can.evaluations:
        return None
    kept = [night.experiments[number] for number in night.kept.values()]
    return next((Test(e.number, slot) for e in kept if e.test is None and e.test_slot is None), None)


def train(night: Night, can: Capacity) -> Action | None:
    """Trials under way before new ones, reruns of the incumbent before candidates that may depend on them."""
    slot = free_slot(night, can)
    if slot is None:
        return None
    best = night.incumbent
    wait_for_best = any(e.state == "waiting" for e in night.open) or any(suspect(t) for _, t in unmeasured(night))
    wait_for_best = wait_for_best or night.other_cards
    again = [Train(e.number, t.number, slot) for e, t in unmeasured(night) if not t.running and not suspect(t)]
    if again:
        return again[0]
    if best and wait_for_best and not any(t.measurement is None for t in best.current):
        return Train(best.number, len(best.trials), slot)
    for e in night.open:
        if e.state == "trials" and e.missing and (e.trials or not closing(night)):
            return Train(e.number, len(e.trials), slot)
    return None


def pause(night: Night, can: Capacity) -> Action | None:
    """What lasts and can't be helped is said, once, and so is its end."""
    if night.paused and night.paused.what != "model":
        return Resume() if 0 < night.paused.until <= night.now else None
    if len(night.lost_slots) >= can.slots and not night.busy:
        return Pause(night.fault, night.fault_at + growing(night.stalls), "machine")
    if night.paused:
        return None if night.outages or of_no_use(night) else Resume()
    if night.outages >= PATIENCE or night.outages and night.hopeless:
        return Pause(night.failure, next_call(night))
    if of_no_use(night):
        why = f"{night.fruitless} proposals in a row could not be trained, the last one: {night.fruitless_why}"
        return Pause(why, next_call(night))
    return None


def ask(night: Night, can: Capacity) -> Action | None:
    """The next call of an experiment under way."""
    if night.outages and cut_short(night):
        return None
    closes = closing(night)
    called, fallback = may_call(night, can.calls), may_fall_back(night, can.calls)
    for e in night.open:
        if closes and not e.trials:
            continue
        if e.stale and called and not e.asking:
            return Ask(e.number, "first")
        if e.state == "refused" and called:
            return Ask(e.number, "repair")
        if e.state == "ask" and called:
            last = e.calls[-1]
            return Ask(e.number, last.kind if last.reply is None else "slip")
        if e.state == "ask" and fallback:
            return Ask(e.number, "first", fallback=True)
    return None


def begin(night: Night, can: Capacity) -> Action | None:
    """A new experiment, where a slot would be idle without it, now or at the end of a trial. Nothing is proposed before
    the baseline stands."""
    if not night.experiments:
        return None if enough(night) else BeginBaseline()
    if night.incumbent is None or enough(night):
        return None
    out = out_of_reach(night) and bool(night.fallback)  # then what waits for the proposer holds up no slot
    under_way = [e for e in night.open if not (out and e.asking and not e.asking.fallback)]
    wanted = can.slots - len(night.lost_slots) - len(under_way)
    known = night.reads and all(e.proposal for e in under_way)  # it can be told what is tried meanwhile
    if may_call(night, can.calls) and wanted + (can.lookahead if known else 0) > 0:
        return Ask(len(night.experiments), "first")
    fallback = wanted > 0 and may_fall_back(night, can.calls)
    return Ask(len(night.experiments), "first", fallback=True) if fallback else None


def end(night: Night) -> Action | None:
    """Nothing is in flight, and nothing can be begun."""
    if list(night.running) or night.testing or any(e.asking for e in night.open):
        return None
    if night.baseline_failed:
        return End(night.baseline_failed, 2)
    done, cut = finished(night), cut_short(night)
    if night.open and cut or not done and cut:
        return End(cut[0], 3, cut[1])
    return End(done, 0) if done and not night.open else None


def deadline(night: Night) -> float | None:
    """When the policy may have something to do without an event; unix time."""
    times = [time for time, _ in patience(night)]
    if not night.blocked:
        times.append(next_call(night))
    if night.paused and night.paused.what != "model":
        times.append(night.paused.until)
    if night.stoppers.hours is not None:
        times.append(night.started + night.stoppers.hours * 3600)
    return min((time for time in times if time > night.now), default=None)


def free_slot(night: Night, can: Capacity) -> int | None:
    taken = night.busy | night.lost_slots
    return next((slot for slot in range(can.slots) if slot not in taken), None)


def unmeasured(night: Night) -> Iterator[tuple[Experiment, Trial]]:
    """Trials without an end, in flight or to be begun again; the incumbent's first."""
    best = [night.incumbent] if night.incumbent else []
    return ((e, t) for e in [*best, *night.open] for t in e.trials if not t.measurement and not t.superseded)


def suspect(t: Trial) -> bool:
    """Two faults in a row: before it is tried again, the incumbent must show that it is not the machine."""
    return t.faults == 2 and not t.incumbent_ran


def hopeless(t: Trial) -> bool:
    if t.measurement or t.superseded or t.running:
        return False
    return t.failures >= FAILURES or t.faults >= 3


def repairs(e: Experiment) -> int:
    return sum(1 for call in e.talk if call.kind == "repair" and call.reply)
