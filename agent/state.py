"""Where a night stands, as records: what agent/night.py makes of the journal, and what can be read from it.

It knows no clock, disk, thread, git, judge or parser. Long texts are named here by their hash; agent/history.py
reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent import events as ev
from agent.events import Event, Hash, Rules
from agent.records import CallKind, Measurement, Reply, State, Stoppers, Verdict

S = TypeVar("S")
FAILED_MORE = 3  # trials of a commit that fail, over those that work, before it is not run again


def replace(state: S, /, **changes: Any) -> S:
    """dataclasses.replace, without its checks: a night is folded anew at every start, and by every observer."""
    new = object.__new__(type(state))
    if isinstance(state, Call | Trial | Experiment):
        for name in type(state).__slots__:
            object.__setattr__(new, name, changes[name] if name in changes else getattr(state, name))
    else:
        new.__dict__.update(state.__dict__, **changes)
    return new


@dataclass(frozen=True, slots=True)
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
    fallback: bool = False
    """It went to what proposes while the proposer can't."""
    reply: Reply | None = None
    """Without its text."""
    text: Hash = ""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
    shortened: int = 0
    """Times that the talk did not fit the model."""
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
    test_number: int = 0
    """Of the trial whose output is tested."""
    suggestion: Hash = ""
    """Of the person, which its question passes on."""
    stale: str = ""
    """What the person has said since its question, so that it is asked for again."""
    ending: str = ""
    """Why the person wants it to end, undecided."""
    parts: tuple[int, ...] = ()
    """Experiments that were kept, and whose changes it puts on again ..."""
    without: int = 0
    """... without this one, which was vetoed."""
    accepted: bool = False
    """It was held for review, and the person accepted it."""

    @property
    def current(self) -> tuple[Trial, ...]:
        return tuple(t for t in self.trials if not t.superseded)

    @property
    def missing(self) -> int:
        """Trials that are still to be begun before it is judged. Those of the baseline that failed are made again with
        fresh seeds; of any other experiment the judge says after each trial whether it wants one more."""
        if self.number:
            return max(0, self.wanted - len(self.current))
        ended = [t.measurement for t in self.current if t.measurement]
        failed = sum(m.outcome != "ok" for m in ended)
        sure = failed == len(ended) and any(m.certain or m.outcome in ("timeout", "violation") for m in ended)
        given_up = sure or too_flaky(len(ended) - failed, failed)
        return 0 if given_up else max(0, self.wanted + failed - len(self.current))

    @property
    def kept(self) -> bool:
        return self.verdict is not None and self.verdict.kept

    @property
    def asking(self) -> Call | None:
        return self.calls[-1] if self.calls and self.calls[-1].in_flight else None

    @property
    def talk(self) -> tuple[Call, ...]:
        """The calls that belong together: from the newest question that began anew."""
        first = max((i for i, call in enumerate(self.calls) if call.kind == "first"), default=0)
        return self.calls[first:]

    @property
    def origins(self) -> tuple[int, ...]:
        """The experiments that its change was proposed by."""
        return self.parts or (self.number,)


@dataclass(frozen=True)
class Standing:
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
    flags: Stoppers = Stoppers()
    """What this process was started with."""
    device: str = ""
    sandbox: str = ""
    proposer: str = ""
    data: str = ""
    inputs: Hash = ""
    """Lists the files of the data as this process found them at its start."""
    hardware: str = ""
    weaker: str = ""
    cards: str = ""
    other_cards: bool = False
    """These are not the GPUs that the incumbent was measured on."""
    notes: tuple[tuple[float, str], ...] = ()
    requests: frozenset[str] = frozenset()
    stopping: bool = False
    blocked: str = ""
    """Why the proposer can't be called any more by this process."""
    unblock: str = ""
    """What the person can change about that."""
    blocked_by_limit: bool = False
    exhausted: bool = False
    """It is, because the proposer has nothing more to propose."""
    paused: ev.Paused | None = None
    """What the night waits for now, once it was said."""
    fallback: str = ""
    """What proposes while the proposer can't; "" where nothing does, or where it has nothing more to propose."""
    finishing: str = ""
    """Why a person wants nothing new to be begun."""
    after_finish: str = ""
    """What they have to do before the night can go on."""
    ended: ev.Ended | None = None
    experiments: dict[int, Experiment] = field(default_factory=dict)
    undecided: tuple[int, ...] = ()
    """Experiments without a final verdict, oldest first."""
    order: tuple[int, ...] = ()
    kept: dict[str, int] = field(default_factory=dict)
    """The chain that the branch holds: published commit -> experiment, oldest first; the last is the incumbent."""
    ever_kept: dict[str, int] = field(default_factory=dict)
    """The same, with what a veto has taken off the branch."""
    suggestions: tuple[Hash, ...] = ()
    """What the person wants to be tried, and was not put to the proposer yet; oldest first."""
    reads: bool = True
    """The proposer reads what a person writes."""
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
    failure: str = ""
    """Why it did."""
    hopeless: bool = False
    """Asking again can't help before a person, or time, changes something."""
    retry_after: float = 0.0
    """Seconds that the server asked to wait."""
    begins: int = 0
    """Trials that were begun, each time counted."""
    fruitless: int = 0
    """Proposals in a row that could not be trained."""
    fruitless_at: float = 0.0
    fruitless_why: str = ""
    """Of the last of them."""
    fault: str = ""
    """The newest fault of the machine."""
    fault_at: float = 0.0
    stalls: int = 0
    """Pauses for the machine since a trial was measured."""
    lost_slots: frozenset[int] = frozenset()
    baseline_failed: str = ""
    void: tuple[Trial, ...] = ()
    """Trials of a baseline that did not run: the next one goes on counting."""

    @property
    def tip(self) -> str:
        """The incumbent's commit; "" before the baseline stands."""
        return next(reversed(self.kept), "")

    @property
    def measured(self) -> bool:
        """Something is known that later trials will be compared with: there is more than a baseline without a trial."""
        trials = (t for e in self.experiments.values() for t in e.trials)
        return not self.baseline_failed and (len(self.experiments) > 1 or any(t.measurement for t in trials))

    @property
    def incumbent(self) -> Experiment | None:
        return self.experiments[self.kept[self.tip]] if self.kept else None

    @property
    def open(self) -> list[Experiment]:
        """Those without a final verdict, oldest first."""
        return [self.experiments[number] for number in self.undecided]

    @property
    def alive(self) -> list[Experiment]:
        """All of which a trial or a test may run: those that were kept may be run again."""
        return [*(self.experiments[number] for number in self.ever_kept.values()), *self.open]

    @property
    def running(self) -> Iterator[tuple[Experiment, Trial]]:
        return ((e, t) for e in self.alive for t in e.trials if t.running)

    @property
    def testing(self) -> list[Experiment]:
        return [e for e in self.alive if e.test_slot is not None]

    @property
    def busy(self) -> set[int]:
        """Slots where a trial or a test runs."""
        return {t.slot for _, t in self.running} | {e.test_slot for e in self.testing if e.test_slot is not None}

    def limits_with(self, flags: Stoppers) -> Stoppers:
        """Those that hold once a process is started with these flags. What the one before was started with too is
        nothing new: the same command goes on, with what was changed meanwhile."""
        same = [name for name, value in self.flags.__dict__.items() if value == getattr(flags, name)]
        return self.stoppers.stated(flags.model_copy(update=dict.fromkeys(same)))

    @property
    def on_hold(self) -> bool:
        """A person wants nothing to be begun for now."""
        return self.paused is not None and self.paused.what == "person"

    def awaits(self, event: Event) -> bool:
        """Whether this result or request is news: not a second copy, and not of something that was given up."""
        if isinstance(event, ev.Requested):
            return event.id not in self.requests
        number = getattr(event, "experiment", None)
        if number is not None and number not in self.experiments:  # a baseline that has begun anew since
            return False
        match event:
            case ev.Replied() | ev.CallFailed():
                call = self.experiments[event.experiment].asking
                return call is not None and call.number == event.call
            case ev.Measured() | ev.TrialFailed() | ev.MachineFault() | ev.TrialCancelled():
                trials = self.experiments[event.experiment].trials
                trial = trials[event.number] if event.number < len(trials) else None
                return trial is not None and trial.running and trial.attempt == event.attempt
            case ev.Tested():
                experiment = self.experiments[event.experiment]
                return experiment.test_slot is not None and experiment.test_attempt == event.attempt
        return True


def too_flaky(worked: int, failed: int) -> bool:
    """Whether a commit has failed so often that one more trial of it is not worth its time."""
    return failed >= FAILED_MORE + worked


def added(spent: float | None, more: float | None) -> float | None:
    return None if spent is None or more is None else spent + more


def settled(spent: float | None, reserved: float | None, cost: float | None) -> float | None:
    """What is spent, once a call that `reserved` was set aside for has cost `cost`."""
    return None if spent is None or reserved is None or cost is None else spent - reserved + cost
