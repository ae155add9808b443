"""The state of a night: the sum of its events, `night = night.after(event)`.

It knows no clock, disk, thread, git, judge or parser: the same journal always gives the same night. Long texts are
named here by their hash (agent/history.py reads them). An event that does not fit is a defect: `OutOfOrder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent import events as ev
from agent.events import Event, Hash, Rules
from agent.records import CallKind, Measurement, Reply, State, Stoppers, Verdict

S = TypeVar("S")


def replace(state: S, /, **changes: Any) -> S:
    """dataclasses.replace, without its checks: a night is folded anew at every start, and by every observer."""
    new = object.__new__(type(state))
    new.__dict__.update(state.__dict__, **changes)
    return new


class OutOfOrder(Exception):
    """An event that can't follow on what the journal holds: a defect of this program, never of the person."""


@dataclass(frozen=True)
class Call:
    """One call of a proposer."""

    number: int
    """Counted over the whole night."""
    kind: CallKind
    system: Hash
    question: Hash
    began: float
    charge: float | None
    """Dollars that count as spent: what was reserved, until the reply tells. None: unknown."""
    in_flight: bool = True
    reply: Reply | None = None
    """Without its text."""
    text: Hash = ""


@dataclass(frozen=True)
class Trial:
    """One trial. It is begun, with the same number and seed, until it has a measurement."""

    number: int
    commit: str
    seed: int
    slot: int
    attempt: int = 1
    began: float = 0.0
    turn: int = 0
    """Trials that were begun in this night before it."""
    running: bool = True
    measurement: Measurement | None = None
    """Without curve, log and numbers."""
    details: Hash = ""
    superseded: bool = False
    faults: int = 0
    """Of the machine, since the slot was changed."""
    failures: int = 0
    """Times that what runs it broke."""
    incumbent_ran: bool = False
    """After two faults of this trial, the incumbent ran on this machine without one."""


@dataclass(frozen=True)
class Experiment:
    """Where one experiment stands."""

    number: int
    parent: str
    created: float
    state: State = "ask"
    calls: tuple[Call, ...] = ()
    refused: Hash = ""
    """Why the last reply can't be applied."""
    defects: int = 0
    """Times that this program failed to ask."""
    proposal: Hash = ""
    category: str = ""
    files: Hash = ""
    fingerprint: str = ""
    commit: str = ""
    """What is trained."""
    wanted: int = 0
    """Trials of the present commit that are wanted before it is judged."""
    trials: tuple[Trial, ...] = ()
    verdict: Verdict | None = None
    published: str = ""
    """The commit under its final message."""
    test: Hash | None = None
    """Held-out figures; "" where there are none to be had, None before they are here."""
    test_attempt: int = 0
    test_slot: int | None = None
    """Where the test runs now."""
    test_began: float = 0.0

    @property
    def current(self) -> tuple[Trial, ...]:
        return tuple(t for t in self.trials if not t.superseded)

    @property
    def kept(self) -> bool:
        return self.verdict is not None and self.verdict.kept

    @property
    def asking(self) -> Call | None:
        return self.calls[-1] if self.calls and self.calls[-1].in_flight else None


@dataclass(frozen=True)
class Night:
    """All that the journal says. Experiments by number; `order` as they were published."""

    now: float = 0.0
    """Of the newest event."""
    started: float = 0.0
    """When this process began."""
    starts: int = 0
    rules: Rules | None = None
    contract: Hash = ""
    program: Hash = ""
    program_text: Hash = ""
    stoppers: Stoppers = Stoppers()
    device: str = ""
    sandbox: str = ""
    proposer: str = ""
    data: str = ""
    notes: tuple[tuple[float, str], ...] = ()
    requests: frozenset[str] = frozenset()
    stopping: bool = False
    blocked: str = ""
    """Why no call can be made any more by this process."""
    finishing: str = ""
    """Why a person wants nothing new to be begun."""
    ended: ev.Ended | None = None
    experiments: dict[int, Experiment] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    kept: dict[str, int] = field(default_factory=dict)
    """Published commit -> experiment, oldest first; the last is the incumbent."""
    tried: dict[str, int] = field(default_factory=dict)
    """Fingerprint -> the newest experiment that ran it, or is about to."""
    calls: int = 0
    """Calls that were begun."""
    replies: int = 0
    tokens: int = 0
    spent: float | None = 0.0
    """Dollars, with what is reserved for calls in flight; None: the price of one is unknown."""
    outages: int = 0
    """Of the proposer, in a row."""
    failed_at: float = 0.0
    """When the last call failed."""
    begins: int = 0
    """Trials that were begun, each time counted."""
    lost_slots: frozenset[int] = frozenset()
    baseline_failed: str = ""
    void: tuple[Trial, ...] = ()
    """Trials of a baseline that did not run: the next one goes on counting."""

    def after(self, event: Event) -> Night:
        """The night with this event. Raises OutOfOrder."""
        if self.ended and not isinstance(event, ev.Started | ev.Requested | ev.Noted):
            raise OutOfOrder(f"{type(event).__name__} in a night that has ended")
        night = APPLY[type(event)](self, event)
        return replace(night, now=event.at)

    # Reading.

    @property
    def tip(self) -> str:
        """The incumbent's commit; "" before the baseline stands."""
        return next(reversed(self.kept), "")

    @property
    def incumbent(self) -> Experiment | None:
        return self.experiments[self.kept[self.tip]] if self.kept else None

    @property
    def open(self) -> list[Experiment]:
        """Those without a final verdict, oldest first."""
        return [e for e in self.experiments.values() if e.state != "published"]

    @property
    def running(self) -> Iterator[tuple[Experiment, Trial]]:
        return ((e, t) for e in self.experiments.values() for t in e.trials if t.running)

    @property
    def testing(self) -> list[Experiment]:
        return [e for e in self.experiments.values() if e.test_slot is not None]

    def awaits(self, event: Event) -> bool:
        """Whether this result or request is news: not a second copy, and not of something that was given up."""
        match event:
            case ev.Replied() | ev.CallFailed():
                call = self.experiments[event.experiment].asking
                return call is not None and call.number == event.call
            case ev.Measured() | ev.TrialFailed() | ev.MachineFault() | ev.TrialCancelled():
                trial = self.experiments[event.experiment].trials[event.number]
                return trial.running and trial.attempt == event.attempt
            case ev.Tested():
                experiment = self.experiments[event.experiment]
                return experiment.test_slot is not None and experiment.test_attempt == event.attempt
            case ev.Requested():
                return event.id not in self.requests
        return True

    # What the events change.

    def change(self, number: int, **changes: Any) -> Night:
        experiment = replace(self.experiments[number], **changes)
        return replace(self, experiments={**self.experiments, number: experiment})

    def change_call(self, number: int, **changes: Any) -> Night:
        calls = self.experiments[number].calls
        return self.change(number, calls=(*calls[:-1], replace(calls[-1], **changes)))

    def change_trial(self, number: int, index: int, **changes: Any) -> Night:
        trials = list(self.experiments[number].trials)
        trials[index] = replace(trials[index], **changes)
        return self.change(number, trials=tuple(trials))

    def need(self, number: int, *states: State) -> Experiment:
        experiment = self.experiments.get(number)
        if experiment is None or experiment.state not in states:
            what = experiment.state if experiment else "missing"
            raise OutOfOrder(f"experiment {number} is {what}, not {' or '.join(states)}")
        return experiment

    def settle(self, number: int) -> Night:
        """After the end of a trial: is everything here that the judge was waiting for?"""
        e = self.experiments[number]
        ended = [t.measurement for t in e.current if t.measurement]
        broken = any(m.outcome != "ok" for m in ended) if number == 0 else bool(ended) and ended[-1].outcome != "ok"
        if e.state == "trials" and len(ended) == len(e.current) and (broken or len(ended) >= e.wanted):
            return self.change(number, state="measured")
        return self


E = TypeVar("E", bound=Event)
APPLY: dict[type[Event], Callable[[Night, Any], Night]] = {}


def applies(kind: type[E]) -> Callable[[Callable[[Night, E], Night]], Callable[[Night, E], Night]]:
    def register(function: Callable[[Night, E], Night]) -> Callable[[Night, E], Night]:
        APPLY[kind] = function
        return function

    return register


@applies(ev.Started)
def _started(night: Night, event: ev.Started) -> Night:
    for e in night.open:
        if e.asking:  # cut off: what was reserved for it stays spent
            night = night.change_call(e.number, in_flight=False).change(e.number, state="ask")
    for e, t in list(night.running):
        night = night.change_trial(e.number, t.number, running=False)
    for e in night.testing:
        night = night.change(e.number, test_slot=None)
    if night.baseline_failed:  # the person may have corrected it: it begins anew
        old = tuple(replace(t, superseded=True) for t in night.experiments[0].trials)
        night = replace(night, baseline_failed="", void=old, experiments={}, tried={})
    return replace(
        night,
        **{name: getattr(event, name) for name in ("rules", "program", "stoppers", "device", "sandbox", "proposer")},
        contract=night.contract or event.program,
        data=night.data or event.data,
        **{"started": event.at, "starts": night.starts + 1, "ended": None, "stopping": False},
        **{"blocked": "", "finishing": "", "outages": 0, "lost_slots": frozenset()},
    )


@applies(ev.Steered)
def _steered(night: Night, event: ev.Steered) -> Night:
    if event.refused:
        return replace(night, program_text=event.text, notes=(*night.notes, (event.at, event.refused)))
    return replace(night, program_text=event.text, program=event.program, rules=event.rules)


@applies(ev.Noted)
def _noted(night: Night, event: ev.Noted) -> Night:
    return replace(night, notes=(*night.notes, (event.at, event.text)))


@applies(ev.Requested)
def _requested(night: Night, event: ev.Requested) -> Night:
    if event.id in night.requests:
        raise OutOfOrder(f"request {event.id} twice")
    night = replace(night, requests=night.requests | {event.id})
    if night.ended:
        return night
    if event.what == "stop":
        return replace(night, stopping=True)
    return replace(night, finishing=event.text or "a person asked for an end")


@applies(ev.Waited)
def _waited(night: Night, event: ev.Waited) -> Night:
    return night


@applies(ev.Blocked)
def _blocked(night: Night, event: ev.Blocked) -> Night:
    return replace(night, blocked=event.reason)


@applies(ev.Ended)
def _ended(night: Night, event: ev.Ended) -> Night:
    return replace(night, ended=event)


@applies(ev.BaselineBegun)
def _baseline_begun(night: Night, event: ev.BaselineBegun) -> Night:
    if night.experiments:
        raise OutOfOrder("a second baseline")
    baseline = Experiment(
        number=0, parent=event.commit, created=event.at, state="trials", files=event.files,
        fingerprint=event.fingerprint, commit=event.commit, trials=night.void,
        wanted=night.rules.seeds if night.rules else 1,
    )  # fmt: skip
    return replace(night, experiments={0: baseline}, tried={event.fingerprint: 0})


@applies(ev.BaselineFailed)
def _baseline_failed(night: Night, event: ev.BaselineFailed) -> Night:
    night.need(0, "measured")
    return replace(night, baseline_failed=event.reason)


@applies(ev.Asked)
def _asked(night: Night, event: ev.Asked) -> Night:
    number, call = event.experiment, night.calls
    if event.call != call:
        raise OutOfOrder(f"call {event.call} after {call} calls")
    if event.kind == "first" and number not in night.experiments:
        if number != len(night.experiments):
            raise OutOfOrder(f"experiment {number} after {len(night.experiments)}")
        new = Experiment(number=number, parent=event.parent, created=event.at)
        night = replace(night, experiments={**night.experiments, number: new})
    e = night.need(number, "ask", "refused")
    asked = Call(call, event.kind, event.system, event.question, event.at, event.reserved_usd)
    night = night.change(number, state="asking", calls=(*e.calls, asked), parent=event.parent, refused="")
    return replace(night, calls=call + 1, spent=added(night.spent, event.reserved_usd))


@applies(ev.Replied)
def _replied(night: Night, event: ev.Replied) -> Night:
    call = _in_flight(night, event)
    reply = event.reply.model_copy(update={"text": ""})
    spent = settled(night.spent, call.charge, reply.usd)
    night = night.change_call(event.experiment, in_flight=False, charge=reply.usd, reply=reply, text=event.text)
    night = night.change(event.experiment, state="replied", defects=0)
    tokens = night.tokens + reply.input_tokens + reply.output_tokens
    outages = night.outages if reply.unusable else 0
    if event.final:
        night = replace(night, blocked=f"no more proposals: {reply.unusable}")
    return replace(night, spent=spent, tokens=tokens, replies=night.replies + 1, outages=outages)


@applies(ev.CallFailed)
def _call_failed(night: Night, event: ev.CallFailed) -> Night:
    call = _in_flight(night, event)
    charge = call.charge if event.charged else 0.0
    e = night.experiments[event.experiment]
    night = replace(night, spent=settled(night.spent, call.charge, charge))
    night = night.change_call(e.number, in_flight=False, charge=charge)
    night = night.change(e.number, state="ask", defects=e.defects + event.defect)
    outages, reason = night.outages + 1, f"no more proposals: {event.reason}"
    return replace(night, outages=outages, failed_at=event.at, blocked=reason if event.final else night.blocked)


@applies(ev.ReplyRefused)
def _reply_refused(night: Night, event: ev.ReplyRefused) -> Night:
    night.need(event.experiment, "replied")
    return night.change(event.experiment, state="refused", refused=event.error)


@applies(ev.Proposed)
def _proposed(night: Night, event: ev.Proposed) -> Night:
    night.need(event.experiment, "replied")
    new = {name: getattr(event, name) for name in ("proposal", "category", "files", "fingerprint")}
    return night.change(event.experiment, state="proposed", **new)


@applies(ev.Committed)
def _committed(night: Night, event: ev.Committed) -> Night:
    e = night.need(event.experiment, "proposed")
    night = night.change(e.number, state="trials", commit=event.commit, wanted=len(e.current) + 1)
    return replace(night, tried={**night.tried, e.fingerprint: e.number})


@applies(ev.TrialBegun)
def _trial_begun(night: Night, event: ev.TrialBegun) -> Night:
    e = night.need(event.experiment, "trials", "published")
    if event.slot in busy_slots(night):
        raise OutOfOrder(f"slot {event.slot} is taken")
    begun = {"slot": event.slot, "attempt": event.attempt, "began": event.at, "running": True, "turn": night.begins}
    night = replace(night, begins=night.begins + 1)
    if event.number == len(e.trials) and event.attempt == 1:
        trial = Trial(event.number, event.commit, event.seed, **begun)
        return night.change(e.number, trials=(*e.trials, trial))
    old = e.trials[event.number] if event.number < len(e.trials) else None
    if old is None or old.running or old.measurement or event.attempt != old.attempt + 1 or event.seed != old.seed:
        raise OutOfOrder(f"trial {event.number} of experiment {e.number} was begun before")
    return night.change_trial(e.number, event.number, **begun)


@applies(ev.Measured)
def _measured(night: Night, event: ev.Measured) -> Night:
    trial = _unmeasured(night, event)
    light = event.measurement.model_copy(update={"curve": (), "log_tail": "", "numbers": {}})
    number, index = event.experiment, trial.number
    night = night.change_trial(number, index, running=False, measurement=light, details=event.details)
    if night.experiments[number].state == "published":  # a rerun: whoever waits for it is judged again
        for e in night.open:
            if e.state == "waiting":
                night = night.change(e.number, state="measured")
    if night.incumbent and number == night.incumbent.number:
        for e in night.experiments.values():
            for t in e.trials:
                if t.faults >= 2:
                    night = night.change_trial(e.number, t.number, incumbent_ran=True)
    return night.settle(number)


@applies(ev.TrialFailed)
def _trial_failed(night: Night, event: ev.TrialFailed) -> Night:
    trial = _in_a_slot(night, event)
    return night.change_trial(event.experiment, trial.number, running=False, failures=trial.failures + 1)


@applies(ev.MachineFault)
def _machine_fault(night: Night, event: ev.MachineFault) -> Night:
    trial = _in_a_slot(night, event)
    night = night.change_trial(event.experiment, trial.number, running=False, faults=trial.faults + 1)
    incumbent = night.incumbent
    of_the_best = event.experiment == (incumbent.number if incumbent else 0)
    if not event.slot_lost and not (of_the_best and trial.faults + 1 >= 2):
        return night
    for e in night.experiments.values():  # elsewhere everything begins anew
        for t in e.trials:
            if t.faults and not t.measurement:
                night = night.change_trial(e.number, t.number, faults=0, incumbent_ran=False)
    return replace(night, lost_slots=night.lost_slots | {trial.slot})


@applies(ev.TrialCancelled)
def _trial_cancelled(night: Night, event: ev.TrialCancelled) -> Night:
    return night.change_trial(event.experiment, _in_a_slot(night, event).number, running=False)


@applies(ev.RerunWanted)
def _rerun_wanted(night: Night, event: ev.RerunWanted) -> Night:
    e = night.need(event.experiment, "measured")
    if event.of == "incumbent":
        return night.change(e.number, state="waiting")
    return night.change(e.number, state="trials", wanted=len(e.current) + 1)


@applies(ev.SentBack)
def _sent_back(night: Night, event: ev.SentBack) -> Night:
    night.need(event.experiment, "measured")
    return night.change(event.experiment, state="ask")


@applies(ev.Rebased)
def _rebased(night: Night, event: ev.Rebased) -> Night:
    e = night.need(event.experiment, "measured", "waiting", "judged")
    if event.parent != night.tip:
        raise OutOfOrder(f"experiment {e.number} was put onto what is not the incumbent")
    old = tuple(replace(t, superseded=True) for t in e.trials)
    new = {name: getattr(event, name) for name in ("parent", "commit", "files", "fingerprint")}
    night = night.change(e.number, state="trials", trials=old, wanted=1, verdict=None, **new)
    return replace(night, tried={**night.tried, event.fingerprint: e.number})


@applies(ev.Judged)
def _judged(night: Night, event: ev.Judged) -> Night:
    number, verdict = event.experiment, event.verdict
    night.need(number, "ask", "refused", "proposed", "measured", "waiting", "judged")
    return night.change(number, state="judged", verdict=verdict)


@applies(ev.Published)
def _published(night: Night, event: ev.Published) -> Night:
    e = night.need(event.experiment, "judged")
    night = night.change(e.number, state="published", published=event.commit)
    night = replace(night, order=(*night.order, e.number))
    if not e.kept:
        return night
    if night.tip and e.parent != night.tip:
        raise OutOfOrder(f"experiment {e.number} was confirmed on an older incumbent")
    for other in night.open:  # what waits for a trial of the old incumbent is judged again, on the new one
        if other.state == "waiting":
            night = night.change(other.number, state="measured")
    if night.rules and not night.rules.tests:
        night = night.change(e.number, test="")
    return replace(night, kept={**night.kept, event.commit: e.number})


@applies(ev.TestBegun)
def _test_begun(night: Night, event: ev.TestBegun) -> Night:
    e = night.need(event.experiment, "published")
    if event.slot in busy_slots(night) or e.test is not None or event.attempt != e.test_attempt + 1:
        raise OutOfOrder(f"the test of experiment {e.number} is begun out of turn")
    return night.change(e.number, test_attempt=event.attempt, test_slot=event.slot, test_began=event.at)


@applies(ev.Tested)
def _tested(night: Night, event: ev.Tested) -> Night:
    if not night.awaits(event):
        raise OutOfOrder(f"a test of experiment {event.experiment} that does not run")
    if event.reason:
        text = f"the test of experiment {event.experiment} failed: {event.reason}"
        night = replace(night, notes=(*night.notes, (event.at, text)))
    return night.change(event.experiment, test=event.numbers, test_slot=None)


def busy_slots(night: Night) -> set[int]:
    """Where a trial or a test runs."""
    return {t.slot for _, t in night.running} | {e.test_slot for e in night.testing if e.test_slot is not None}


def added(spent: float | None, more: float | None) -> float | None:
    return None if spent is None or more is None else spent + more


def settled(spent: float | None, reserved: float | None, cost: float | None) -> float | None:
    """What is spent, once a call that `reserved` was set aside for has cost `cost`."""
    return None if spent is None or reserved is None or cost is None else spent - reserved + cost


def _in_flight(night: Night, event: ev.Replied | ev.CallFailed) -> Call:
    call = night.experiments[event.experiment].asking
    if call is None or call.number != event.call:
        raise OutOfOrder(f"call {event.call} is not in flight")
    return call


def _unmeasured(night: Night, event: ev.Measured) -> Trial:
    trial = night.experiments[event.experiment].trials[event.number]
    if trial.measurement or trial.attempt != event.attempt:
        raise OutOfOrder(f"trial {event.number} of experiment {event.experiment} is measured twice")
    return trial


def _in_a_slot(night: Night, event: ev.TrialFailed | ev.MachineFault | ev.TrialCancelled) -> Trial:
    trial = night.experiments[event.experiment].trials[event.number]
    if not trial.running or trial.attempt != event.attempt:
        raise OutOfOrder(f"trial {event.number} of experiment {event.experiment} does not run")
    return trial
