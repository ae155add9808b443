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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent import events as ev
from agent.errors import EditError
from agent.events import Event
from agent.inbox import BEFORE_THE_START
from agent.ledger import VERSION, decode, digest, encode
from agent.program import Program
from agent.protocols import Job

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
    away: str = ""
    """Why the proposer fails now, as it does until somebody does something about it."""
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


    def request(self, what: str, **said: Any) -> None:
        """A person's, which reaches the loop when that looks next."""
        one = ev.Requested(id=f"r{len(self.sent)}", what=what, **said)  # type: ignore[arg-type]
        self.sent.append(one.id)
        self.spool[one.id] = one
        self.counts[f"request {what}"] += 1


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

    def missing(self, commits: Collection[str]) -> set[str]:
        assert "" not in commits
        return set(commits) - set(self.world.commits)

    def pin(self, number: int, commit: str, ours: Collection[str] = ()) -> None:
        self._set(f"pin-{number}", commit)

    def pin_older(self, number: int, commit: str) -> None:
        self._set(f"older-{number}-{commit}", commit)

    def advance(self, commit: str, ours: Collection[str] = ()) -> str:
        if self.world.inspector:
            self.world.inspector.advanced(commit)
        found = self.world.refs.get("branch", "")
        if found and found != commit and found not in ours:
            before = self.world.refs.get("second", "")
            self._set("second", commit)
            return "" if before else f"the branch was moved to {found} by somebody else, and stays"
        self._set("branch", commit)
        return ""

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
        left = (self.world.spool[one] for one in self.left if one in self.world.spool)
        return [request for request in left if request.what in BEFORE_THE_START]

    def take(self) -> list[Event]:
        found: list[Event] = list(self.world.spool.values())
        while self.heap and self.heap[0][0] <= self.world.now:
            found.append(heapq.heappop(self.heap)[2])
        if self.world.inspector:
            self.world.inspector.delivered(found)
        return found

    def wait(self, until: float | None) -> list[Event]:
        if found := self.take():
            return found
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
