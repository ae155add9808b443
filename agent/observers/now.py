"""A night at this moment, for those who look at it while it runs: what is at work, and its figures so far.

Figures are kept up with the events; what is at work is read when somebody looks: from the files of agent/live.py, and
from the driver of the GPUs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from agent import events as ev
from agent import live, state
from agent.errors import MachineFault
from agent.events import Event
from agent.history import History
from agent.judge.noise import Noise, gain, groups
from agent.judge.verdict import worked
from agent.lab_note import duration
from agent.live import Curve, Live
from agent.night import Night
from agent.observers import steering
from agent.observers.report.times import Times
from agent.observers.tsv import cell
from agent.records import Measurement
from agent.run.gpu import Gpu, gpu_of
from agent.run.log import clean

ASKING = {"first": "asking for a proposal", "repair": "asking for a repair", "slip": "sending back the crash"}
AHEAD = {
    "ask": "waits for a call",
    "replied": "reading the reply",
    "refused": "waits for a repair",
    "proposed": "checking the change",
    "trials": "ready: waits for a slot",
    "waiting": "waits for a trial of the incumbent",
    "measured": "is judged",
    "judged": "its verdict is published",
}
EARLY = 0.05  # of the budget: before it, what is left is the budget itself
LOG_BYTES = 8000


@dataclass(frozen=True)
class Running:
    """A trial, or a test, at work."""

    job: Live
    label: str
    seconds: float
    """Since its start."""
    left: float | None = None
    """Seconds of training that are left; None where it does not train."""
    loss: float | None = None
    against: float | None = None
    """The incumbent's loss at the same point of the budget; None where it is not known."""
    base: Curve = ()
    """The incumbent's whole curve."""


@dataclass(frozen=True)
class Ahead:
    """An experiment of which nothing runs now."""

    experiment: int
    doing: str
    label: str = ""
    since: float = 0.0
    """Unix time; 0: not worth saying."""


@dataclass(frozen=True)
class Card:
    """A GPU in use; memory in GB."""

    index: int
    uuid: str
    name: str
    busy: float | None
    """Share of the last moment; None where it does not tell."""
    used: float
    total: float


@dataclass(frozen=True)
class Now:
    """What is at work."""

    at: float
    state: str
    """In a few words: at work, why it is paused, why it ended."""
    running: Sequence[Running] = ()
    ahead: Sequence[Ahead] = ()
    cards: Sequence[Card] = ()
    since: float | None = None
    """Seconds since this process began; None where none works on the night."""
    left: float | None = None
    """Seconds of the hours that it was given; None where it was given none."""


@dataclass(frozen=True)
class Figures:
    """What the night has brought so far."""

    baseline: float | None
    best: float | None
    gain: float | None
    interval: tuple[float, float] | None
    kept: int
    tried: int
    per_hour: float | None
    training: float | None
    """Share of the slots' time that was training."""
    spent: float | None
    cap: float | None


@dataclass
class Tally:
    """The figures of one night, kept up with its events."""

    times: Times = field(default_factory=Times)
    trained: float = 0.0
    """Seconds of all trials that have ended."""
    groups: dict[int, list[Sequence[float]]] = field(default_factory=dict)
    """Experiment -> its metrics by commit, from which the noise is known."""

    @classmethod
    def of(cls, events: Iterable[Event], night: Night, history: History) -> Tally:
        """As these events and the night that they add up to say."""
        tally = cls()
        for event in events:
            tally.count(event)
        tally.groups = {n: groups(history.whole(night.experiments[n], brief=True)) for n in night.order}
        return tally

    def see(self, event: Event, night: Night, history: History) -> None:
        self.count(event)
        number = getattr(event, "experiment", None)
        if isinstance(event, ev.Published | ev.Measured) and number in night.order:
            self.groups[number] = groups(history.whole(night.experiments[number], brief=True))

    def count(self, event: Event) -> None:
        self.times.see(event)
        if isinstance(event, ev.Measured):
            self.trained += event.measurement.training_seconds

    def figures(self, night: Night, history: History, now: Now) -> Figures:
        noise = Noise.of(group for groups in self.groups.values() for group in groups)
        first = history.brief(night.experiments[0]) if 0 in night.order else None
        last = history.brief(night.incumbent) if night.incumbent else None
        claim = None
        if first and last and last.number and worked(first) and worked(last):
            claim = gain(history.program(night.program), worked(first), worked(last), noise)
        times = replace(self.times)
        times.pass_to(now.at, counts=times.running and now.since is not None)
        done = sum(1 for n in night.order if n)
        training = self.trained + sum(now.at - r.job.trains_since for r in now.running if r.job.phase == "training")
        return Figures(
            baseline=first.verdict.metric if first and first.verdict else None,
            best=last.verdict.metric if last and last.verdict else None,
            gain=claim[0] if claim else None,
            interval=claim[1] if claim else None,
            kept=max(0, len(night.kept) - 1),
            tried=done,
            per_hour=done / times.alive * 3600 if times.alive else None,
            training=min(1.0, training / (times.alive * times.slots)) if times.alive else None,
            spent=night.spent,
            cap=night.stoppers.usd,
        )


def look(home: Path, night: Night, history: History, at_work: bool, stands: str = "") -> Now:
    """What is at work on the night in `home` now; `stands` says why no loop works on it."""
    at = time.time()
    jobs = live.read(home) if at_work else []
    known = [job for job in jobs if job.experiment in night.experiments]
    running = tuple(run_of(job, night, history, at) for job in known)
    busy = {job.experiment for job in known}
    ahead = tuple(ahead_of(e, history) for e in night.open if e.number not in busy) if at_work else ()
    hours = night.stoppers.hours
    since = at - night.started if at_work and night.started else None
    return Now(
        at=at,
        state=said(night, stands) if at_work or stands else "nothing works on it",
        running=running,
        ahead=ahead,
        cards=cards({job.gpu for job in known if job.gpu}),
        since=since,
        left=max(0.0, hours * 3600 - since) if hours is not None and since is not None else None,
    )


def said(night: Night, stands: str) -> str:
    if stands:
        return stands
    if night.paused:
        return paused(night.paused, night)
    if night.stopping:
        return "stopping"
    return f"ends after what has begun: {night.finishing}" if night.finishing else "at work"


def paused(event: ev.Paused, night: Night) -> str:
    """What is said of a pause."""
    if event.what == "person":
        return f"paused by a person {steering.pause_ends(event.until, night.now)}"
    meanwhile = f"; {night.fallback} proposes meanwhile" if night.fallback and event.what == "model" else ""
    again = f", next at {time.strftime('%H:%M:%S', time.localtime(event.until))}" if event.until else ""
    return f"paused: {event.reason}{meanwhile}; it is tried again by itself{again}"


def run_of(job: Live, night: Night, history: History, at: float) -> Running:
    e = night.experiments[job.experiment]
    base = incumbent_curve(night, history)
    loss, left = live.loss_at(job.curve, job.share), None
    if job.phase == "training" and job.trains_since and night.rules:
        took = at - job.trains_since
        slow = took / job.share if job.share > EARLY else 0.0  # of a budget in tokens nobody knows the seconds before
        left = max(0.0, (slow or night.rules.budget_seconds) - took)
    against = live.loss_at(base, job.share) if job.curve else None
    return Running(job, label(e, history), at - job.since, left, loss, against, base)


def incumbent_curve(night: Night, history: History) -> Curve:
    """Of its newest trial that has one."""
    for trial in reversed(night.incumbent.trials if night.incumbent else ()):
        if trial.details and (curve := curve_of(history.read(trial.details))):
            return curve
    return ()


@lru_cache(maxsize=4)
def curve_of(details: str) -> Curve:
    """Of a trial's details; those of the incumbent are asked for again and again."""
    return live.thinned(Measurement.model_validate_json(details).curve)


def ahead_of(e: state.Experiment, history: History) -> Ahead:
    if e.asking:
        return Ahead(e.number, ASKING[e.asking.kind], label(e, history), e.asking.began)
    return Ahead(e.number, AHEAD.get(e.state, e.state), label(e, history))


def label(e: state.Experiment, history: History) -> str:
    """What it tries, in one line; "" where that is not known yet."""
    if e.number == 0:
        return "the program as it is, with several seeds"
    return cell(history.proposal(e, brief=True).hypothesis) if e.proposal else ""


def cards(uuids: set[str]) -> tuple[Card, ...]:
    """What the GPUs that are in use do; one that does not answer is left out."""
    found = []
    for uuid in uuids:
        with contextlib.suppress(MachineFault):
            gpu = card_of(uuid)
            used, total = gpu.used_bytes() / 1e9, gpu.total_bytes() / 1e9
            found.append(Card(gpu.index, gpu.uuid, gpu.name, busy_share(gpu), used, total))
    return tuple(sorted(found, key=lambda card: card.index))


card_of = lru_cache(maxsize=16)(gpu_of)
"""Found once; it is asked twice a second."""


def busy_share(gpu: Gpu) -> float | None:
    try:
        return gpu.busy_share()
    except MachineFault:  # a part of a card does not tell
        return None


def tail(log: Path, lines: int) -> list[str]:
    """The last lines of a growing log that are not empty, without what a terminal would obey; oldest first."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LOG_BYTES))
            text = file.read().decode("utf-8", "replace").replace("\r", "\n")
    except OSError:
        return []
    found = [clean(line.expandtabs()).rstrip()[:400] for line in text.splitlines()]
    return [line for line in found if line][-lines:]


def doing(now: Now) -> list[str]:
    """The same in plain lines."""
    lines = [] if now.state == "at work" else [now.state]
    for r in now.running:
        what = "trains" if r.job.what == "train" else "is tested"
        lines.append(f"#{r.job.experiment} {what} (trial {r.job.number + 1}), {duration(r.seconds)}")
    return [*lines, *(f"#{a.experiment} {a.doing}" for a in now.ahead)]
