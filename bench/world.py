"""A world in which a night can be simulated in milliseconds: a virtual clock, and what the loop stands on as fakes -
journal, git, executor, proposer, inbox - with faults of every kind, all of it drawn from one seed.

What is durable survives a crash of the loop (`World`); workers and what is in memory die with it (`Process`). The
fakes keep the promises of agent/protocols.py; tests/test_contracts.py holds them and the real ones to the same.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent import events as ev
from agent.actions import answer
from agent.errors import EditError, ProposerError
from agent.events import Event
from agent.ledger import VERSION, decode, digest, encode
from agent.program import Program
from agent.protocols import Emit, Job, Request
from agent.records import Measurement, Reply, Turn

FILE = "train.py"
NAMES = "ABCDE"
RESERVE = 0.10  # dollars that a call may cost


class Crash(BaseException):
    """kill -9 of the loop."""


class Violation(Exception):
    """A promise was broken: which one, and how."""


@dataclass
class Faults:
    """How often what goes wrong; chances per occasion."""

    crash: float = 0.0
    reply: float = 0.0
    trial: float = 0.0
    machine: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    sigma: float = 0.0


@dataclass
class World:
    """What a crash leaves as it is."""

    rng: random.Random
    faults: Faults
    program: Program
    now: float = 1e9
    rows: list[tuple[str, str]] = field(default_factory=list)
    journal: list[Event] = field(default_factory=list)
    """The rows, read back once."""
    texts: dict[str, str] = field(default_factory=dict)
    commits: dict[str, tuple[dict[str, str], str]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    outputs: set[tuple[int, int]] = field(default_factory=set)
    spool: dict[str, ev.Requested] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    """Ids of all requests ever made."""
    billed: float = 0.0
    theirs: str = ""
    """A commit that a person has put on the night's branch."""
    broken: str = ""
    """What is wrong with program.md; "" while it is right."""
    later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    """What people do, by time."""
    counts: Counter[str] = field(default_factory=Counter)
    serial: int = 0
    inspector: Inspector | None = None

    def __post_init__(self):
        text = "".join(f"{name} = 0.5\n\n" for name in NAMES)
        self.commits["base"] = {FILE: text}, ""

    def point(self, name: str) -> None:
        """The loop may die here."""
        if self.faults.crash and self.rng.random() < self.faults.crash:
            self.counts[f"crash {name}"] += 1
            raise Crash(name)

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        self.serial += 1
        heapq.heappush(self.later, (self.now + seconds, self.serial, do))


class Inspector:
    """Looks on from outside; bench/simulate.py's says what must hold."""

    def appended(self, event: Event) -> None: ...
    def called(self, asked: ev.Asked) -> None: ...
    def submitted(self, job: Job) -> None: ...
    def advanced(self, commit: str) -> None: ...
    def delivered(self, events: list[Event]) -> None: ...


class SimJournal:
    """agent/ledger.py in memory: texts become durable with the event after them."""

    def __init__(self, world: World):
        self.world, self.waiting = world, dict[str, str]()

    def put(self, text: str) -> str:
        key = digest(text)
        self.waiting[key] = text
        return key

    def text(self, key: str) -> str:
        return self.waiting[key] if key in self.waiting else self.world.texts[key]

    def append(self, event: Event) -> None:
        self.world.point("before an append")
        encoded = encode(event)
        if len(encoded) > 1000:
            raise Violation(f"size: an event of {len(encoded)} bytes: {type(event).__name__}")
        self.world.texts |= self.waiting
        self.world.rows.append((type(event).__name__, encoded))
        self.world.journal.append(decode(VERSION, *self.world.rows[-1]))
        self.waiting.clear()
        if self.world.inspector:
            self.world.inspector.appended(event)
        self.world.point("after an append")

    def events(self, after: int = 0) -> Iterator[tuple[int, Event]]:
        return iter(list(enumerate(self.world.journal[after:], after + 1)))


class SimRepository:
    """agent/workspace.py without git."""

    def __init__(self, world: World):
        self.world = world

    @property
    def head(self) -> str:
        return "base"

    def read(self, commit: str, paths: Sequence[str]) -> dict[str, str]:
        files = self.world.commits[commit][0]
        return {path: files[path] for path in paths}

    def commit_files(self, parent: str, files: Mapping[str, str], message: str, when: float) -> str:
        before = self.world.commits[parent][0]
        if missing := files.keys() - before.keys():
            raise EditError(f"{sorted(missing)[0]} is not a plain file of the repository, so it can't be edited")
        return self._commit(before | dict(files), parent, message, when)

    def commit_tree(self, tree: str, parent: str, message: str, when: float) -> str:
        return self._commit(self.world.commits[tree][0], parent, message, when)

    def _commit(self, files: dict[str, str], parent: str, message: str, when: float) -> str:
        self.world.point("before a commit")
        sha = digest(json.dumps([files, parent, message, int(when)]))
        self.world.commits[sha] = files, parent
        self.world.point("after a commit")
        return sha

    def merge(self, ours: str, base: str, theirs: str) -> str | None:
        """By lines; a change of the same line or of one beside it conflicts, as in git."""
        mine, old, other = (text.split("\n") for text in (ours, base, theirs))
        if not len(mine) == len(old) == len(other):
            return None
        left = {i for i in range(len(old)) if mine[i] != old[i]}
        right = {i for i in range(len(old)) if other[i] != old[i]}
        if any(abs(i - j) <= 1 and mine[i] != other[i] for i in left for j in right):
            return None
        return "\n".join(other[i] if i in right else mine[i] for i in range(len(old)))

    def pins(self) -> dict[int, str]:
        return {int(name[4:]): commit for name, commit in self.world.refs.items() if name.startswith("pin-")}

    def pin(self, number: int, commit: str) -> None:
        self._set(f"pin-{number}", commit)

    def advance(self, commit: str, ours: Sequence[str] = ()) -> str:
        if self.world.inspector:
            self.world.inspector.advanced(commit)
        found = self.world.refs.get("branch", "")
        said = ""
        if found and found != commit and found not in ours:
            self.world.refs[f"saved-{found}"] = found
            said = f"the branch was moved to {found} by somebody else: that is saved"
        self._set("branch", commit)
        return said

    def _set(self, name: str, commit: str) -> None:
        assert commit in self.world.commits
        self.world.point("before a ref")
        self.world.refs[name] = commit
        self.world.point("after a ref")

    def clear_stale_locks(self) -> None: ...


class Process:
    """One process of the loop: its time goes on with what happens, its workers die with it. Also its inbox."""

    def __init__(self, world: World):
        self.world = world
        self.heap: list[tuple[float, int, Event]] = []
        self.skew = world.rng.choice([0.0, 0.0, 3600.0, -3600.0, 1e6]) if world.faults.crash else 0.0
        self.left = list(world.spool)

    def now(self) -> float:
        """A clock that was set since the last process; within this one it never goes back."""
        return self.world.now + self.skew

    def emit_in(self, seconds: float, event: Event) -> None:
        self.world.serial += 1
        heapq.heappush(self.heap, (self.world.now + seconds, self.world.serial, event))

    def put(self, event: Event) -> None:
        self.emit_in(0, event)

    def stale(self) -> list[Event]:
        return [self.world.spool[one] for one in self.left if one in self.world.spool]

    def take(self) -> list[Event]:
        found: list[Event] = list(self.world.spool.values())
        while self.heap and self.heap[0][0] <= self.world.now:
            found.append(heapq.heappop(self.heap)[2])
        if self.world.inspector:
            self.world.inspector.delivered(found)
        return found

    def wait(self, until: float | None) -> list[Event]:
        while True:
            times = [queue[0][0] for queue in (self.heap, self.world.later) if queue]
            end = None if until is None else until - self.skew
            if end is not None and (not times or min(times) > end):
                self.world.now = max(self.world.now, end)
                if self.world.inspector:
                    self.world.inspector.delivered([])
                return []
            if not times:
                raise Violation("progress: the loop waits for what can never come")
            self.world.now = max(self.world.now, min(times))
            while self.world.later and self.world.later[0][0] <= self.world.now:
                heapq.heappop(self.world.later)[2]()
            if found := self.take():
                return found

    def done(self, event: Event) -> None:
        if isinstance(event, ev.Requested):
            self.world.point("before a request is deleted")
            self.world.spool.pop(event.id, None)
            self.world.point("after a request is deleted")


class SimExecutor:
    """Trials that take virtual time, and fail in all ways there are."""

    def __init__(self, world: World, process: Process, slots: int):
        self.world, self.process, self.slots = world, process, slots

    def submit(self, job: Job, emit: Emit) -> None:
        world = self.world
        world.point("before a job")
        if world.inspector:
            world.inspector.submitted(job)
        key = {"experiment": job.experiment, "attempt": job.attempt}
        if job.what == "test":
            there = (job.experiment, job.number) in world.outputs
            result: Event = ev.Tested(**key, figures={"test_loss": 1.0}) if there else ev.Tested(**key, reason="gone")
            seconds = world.rng.uniform(5, 20)
        else:
            world.outputs.add((job.experiment, job.number))
            result = self.trial(job, key | {"number": job.number})
            seconds = world.rng.choice([60.0, 60.0, 120.0, 301.0])  # several end at once
        if world.rng.random() < world.faults.lost:
            world.counts["lost result"] += 1
        else:
            self.process.emit_in(seconds, result)
            if world.rng.random() < world.faults.doubled:
                world.counts["doubled result"] += 1
                self.process.emit_in(seconds + world.rng.choice([0.0, 500.0]), result)
        world.point("after a job")

    def trial(self, job: Job, key: dict[str, int]) -> Event:
        rng, faults = self.world.rng, self.world.faults
        if rng.random() < faults.machine:
            self.world.counts["machine fault"] += 1
            return ev.MachineFault(**key, reason="the GPU fell off the bus", slot_lost=rng.random() < 0.2)
        if rng.random() < faults.trial:
            if rng.random() < 0.3:
                self.world.counts["worker broke"] += 1
                return ev.TrialFailed(**key, reason="ValueError: what it printed", traceback="Traceback ...\n" * 50)
            outcome = rng.choice(["crash", "timeout", "violation"])
            if job.experiment:
                self.world.counts[f"trial {outcome}"] += 1
                tail = "Traceback (most recent call last)\n" if rng.random() < 0.5 else ""
                bad = Measurement(outcome=outcome, reason="it failed " * 60, log_tail=tail)  # type: ignore[arg-type]
                return ev.Measured(**key, measurement=bad)
        values = dict(line.split(" = ") for line in self.world.commits[job.commit][0][FILE].splitlines() if line)
        loss = sum((float(value) - 0.1) ** 2 for value in values.values())
        loss += random.Random(job.seed).gauss(0, faults.sigma)
        return ev.Measured(**key, measurement=Measurement(outcome="ok", metric=loss, numbers={"n": 1.0}))

    def cancel(self, experiment: int, number: int, why: str) -> None:
        for index, (when, serial, event) in enumerate(self.process.heap):
            key = {"experiment": experiment, "attempt": getattr(event, "attempt", 0)}
            if not isinstance(event, ev.Measured | ev.TrialFailed | ev.MachineFault | ev.Tested):
                continue
            if event.experiment == experiment and getattr(event, "number", number) == number:
                ended = ev.Tested(**key, reason=why) if isinstance(event, ev.Tested) else None
                self.process.heap[index] = when, serial, ended or ev.TrialCancelled(**key, number=number, reason=why)
                return
        # Nothing will be heard of it any more; a real executor kills the process and says so.
        night = self.world.inspector.night if self.world.inspector else None  # type: ignore[attr-defined]
        trials = night.experiments[experiment].trials if night else ()
        if night and number < len(trials) and trials[number].running:
            key = {"experiment": experiment, "number": number, "attempt": trials[number].attempt}
            self.process.emit_in(0, ev.TrialCancelled(**key, reason=why))
        elif night and night.experiments[experiment].test_slot is not None:
            test = night.experiments[experiment].test_attempt
            self.process.emit_in(0, ev.Tested(experiment=experiment, attempt=test, reason=why))

    def forget(self, experiment: int, number: int, kept: bool) -> None:
        self.world.outputs.discard((experiment, number))

    def close(self, now: bool = False) -> None: ...


class SimProposer:
    """Changes one constant at a time; or answers what can't be used."""

    name, model, converses = "sim", "", True

    def __init__(self, world: World):
        self.world = world

    def most_usd(self, request: Request) -> float | None:
        return RESERVE

    def propose(self, request: Request) -> Reply:
        rng, faults = self.world.rng, self.world.faults
        usd, kind = rng.uniform(0, RESERVE), rng.random()
        if kind < faults.reply * 0.3:
            self.world.counts["outage"] += 1
            raise ProposerError("HTTP 503: overloaded")
        if kind < faults.reply * 0.4:
            self.world.counts["defect"] += 1
            raise ValueError("a defect of the proposer")
        if kind < faults.reply * 0.5:
            error = ProposerError("it was cut off")
            error.reply = Reply(text="Hypothesis: half", proposer=self.name, usd=usd)
            raise error
        if kind < faults.reply:
            self.world.counts["unusable reply"] += 1
            return Reply(text="I would rather not.", proposer=self.name, usd=usd, output_tokens=5)
        old = rng.choice([line for line in request.files[FILE].splitlines() if line])
        new = f"{old.split(' = ')[0]} = {rng.choice([0.1, 0.2, 0.3, 0.4, 0.6])}"
        text = (
            f"Hypothesis: {new} is better than {old}\nCategory: hyperparameter\n\n{FILE}\n"
            f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE\n"
        )
        return Reply(text=text, proposer=self.name, usd=usd, input_tokens=100, output_tokens=50)


class SimCaller:
    """The proposer's calls, in virtual time; each is billed when it is made, whoever lives to hear the answer."""

    def __init__(self, world: World, process: Process):
        self.world, self.process, self.proposer = world, process, SimProposer(world)

    def call(self, asked: ev.Asked, request: Request, emit: Emit) -> None:
        world = self.world
        world.point("before a call")
        if world.inspector:
            world.inspector.called(asked)
        result = answer(self.proposer, asked, request)
        if isinstance(result, ev.Replied):
            world.billed += result.reply.usd or 0.0
        seconds = world.rng.choice([5.0, 5.0, 30.0, 77.0])
        if world.rng.random() < world.faults.lost:
            world.counts["lost reply"] += 1
        else:
            self.process.emit_in(seconds, result)
            if world.rng.random() < world.faults.doubled:
                world.counts["doubled reply"] += 1
                self.process.emit_in(seconds + world.rng.choice([0.0, 30.0]), result)
        world.point("after a call")


class SimPrompter:
    """Prompts without templates."""

    def first_request(self, number, program, files, history, facts) -> Request:
        turn = Turn(role="user", text=f"propose #{number} after {len(history)}: {facts['Noise between seeds']}")
        return Request(
            number=number, system="system", turns=(turn,), program=program, files=dict(files), history=tuple(history)
        )

    def repair(self, request: Request, reply_text: str, error: str, attempt: int) -> Request:
        return self._on(request, reply_text, f"repair {attempt}: {error}")

    def slip(self, request: Request, reply_text: str, traceback: str) -> Request:
        return self._on(request, reply_text, f"slip {len(request.turns)}: {traceback}")

    def _on(self, request: Request, reply: str, text: str) -> Request:
        turns = (Turn(role="assistant", text=reply), Turn(role="user", text=text))
        return request.model_copy(update={"turns": request.turns + turns})
