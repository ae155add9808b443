"""The seams of this program on one screen: where proposals come from, where trials run, and what the loop stands on.

A new provider or executor is one new file that satisfies one of the first two, and one line in a table
(agent/cli/wiring.py). The others are written so that whole nights can be simulated: bench/simulate.py has a second
implementation of each, and tests/test_contracts.py holds both to the same behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from agent.events import Asked, Event
from agent.program import Program
from agent.records import Experiment, Record, Reply, Turn


class Request(Record):
    """All that a proposer may know: the talk so far, and the facts it was rendered from."""

    number: int
    """The experiment that is being proposed."""
    system: str
    turns: tuple[Turn, ...]
    """The last one is from the user; earlier ones are this experiment's own repair turns."""
    program: Program
    files: dict[str, str]
    """Path -> text of each editable file at the incumbent."""
    history: tuple[Experiment, ...]
    """Every finished experiment, oldest first."""
    suggestion: str = ""
    """What the person wants to be tried with this proposal."""
    replies: int | None = None
    """Replies that this night has had, or waits for, before this one; None: as many as the history tells."""


class Proposer(Protocol):
    """Where proposals come from. `propose` may take minutes; it runs in a thread of its own."""

    name: str
    model: str
    converses: bool
    """Whether it can learn from an answer: a repair turn, a traceback."""
    reads: bool
    """Whether it reads what a person writes: the direction, a suggestion."""

    def propose(self, request: Request) -> Reply:
        """Answer in the reply format of agent/propose/edits.py. Raises errors.ProposerError when it can't."""
        ...

    def check(self, request: Request) -> None:
        """What would make every call fail, as far as it can be told without a cost. Raises errors.Failure."""
        ...

    def close(self) -> None:
        """End the processes of calls that are under way."""
        ...

    def most_usd(self, request: Request) -> float | None:
        """Upper bound of what the call may cost, reserved before it is made; None: price unknown."""
        ...


Emit = Callable[[Event], None]
"""Takes a result; may be called from any thread."""


class Job(Record):
    """One trial, or the held-out test of what a trial has saved. `experiment`, `number` and `attempt` are its key:
    each result carries them back."""

    what: Literal["train", "test"]
    experiment: int
    number: int
    """Of the trial within its experiment; counts on for ever."""
    attempt: int
    """Of this trial, or of this test; a result of an earlier attempt is no news."""
    commit: str
    seed: int
    slot: int
    program: Program
    builds_on: int | None = None
    """The kept experiment that its change was made to: it may start from what that one compiled."""
    slowest_start: float | None = None
    """Most seconds that a trial of what was kept spent beside its training budget, so that one which hangs is ended
    sooner than the contract says. None: not known yet."""
    slowest_end: float | None = None
    """As slowest_start, from the first progress line on."""
    incumbent: float | None = None
    """The metric of what this trial is compared with: its evaluation may look as deep as a gain over it deserves."""
    slowest_load: float | None = None
    """Most seconds that its evaluations took to load it, where they say `load_seconds`: one of this trial may take so
    long twice, and 10 s."""
    speaks: bool = False
    """The training command was seen to print progress in this night."""


class Executor(Protocol):
    """Where trials run, in `slots` places numbered from 0. It shares no memory with the loop but these calls."""

    slots: int

    def submit(self, job: Job, emit: Emit) -> None:
        """Start the job in its slot, which is free; returns at once. Exactly one of these is emitted at its end: for
        a trial Measured, TrialFailed, MachineFault or TrialCancelled; for a test Tested."""
        ...

    def cancel(self, experiment: int, number: int, why: str) -> None:
        """End this trial, or the test of it, if it runs here. It emits TrialCancelled, or Tested with a reason."""
        ...

    def forget(self, experiment: int, number: int) -> None:
        """Delete what this trial saved."""
        ...

    def discard(self, experiment: int) -> None:
        """It was not kept: delete what its trials compiled, so that it serves no other."""
        ...

    def shorten(self, experiment: int, number: int) -> None:
        """This trial is long over, and was not kept: of what it printed the last lines are enough."""
        ...

    def close(self, now: bool = False) -> None:
        """End whatever still runs; `now`: without letting it clean up."""
        ...


class Caller(Protocol):
    """Makes the calls of the proposer, aside from the loop."""

    def call(self, asked: Asked, request: Request, emit: Emit) -> None:
        """Start the call; returns at once. Replied or CallFailed is emitted at its end."""
        ...

    def close(self) -> None:
        """Nothing is waited for any more, and nothing that was started goes on."""
        ...


class Prompter(Protocol):
    """Renders prompts; agent/propose/context.py. Each raises ProgramError where a template can't be rendered."""

    def first_request(
        self,
        number: int,
        program: Program,
        files: Mapping[str, str],
        history: Sequence[Experiment],
        facts: Mapping[str, object],
        suggestion: str = "",
    ) -> Request: ...
    def repair(self, request: Request, reply_text: str, error: str, attempt: int) -> Request: ...
    def slip(self, request: Request, reply_text: str, traceback: str) -> Request: ...
    def shorter(self, request: Request, facts: Mapping[str, object]) -> Request | None:
        """With less to read; None where nothing is left to drop."""
        ...


class Repository(Protocol):
    """The git side. Objects are written and refs are set; doing so again changes nothing."""

    @property
    def head(self) -> str: ...
    def read(self, commit: str, paths: Sequence[str]) -> dict[str, str]: ...
    def commit_files(self, parent: str, files: Mapping[str, str], message: str, when: float) -> str: ...
    def commit_tree(self, tree: str, parent: str, message: str, when: float) -> str: ...
    def merge(self, ours: str, base: str, theirs: str) -> str | None: ...
    def pins(self) -> dict[int, str]: ...
    def missing(self, commits: Collection[str]) -> set[str]: ...
    def pin(self, number: int, commit: str, ours: Collection[str]) -> None: ...
    def pin_older(self, number: int, commit: str) -> None: ...
    def advance(self, commit: str, ours: Collection[str]) -> str: ...
    def clear_stale_locks(self) -> None: ...


class Journal(Protocol):
    """Events and texts, durable when `append` returns."""

    def put(self, text: str) -> str: ...
    def text(self, key: str) -> str: ...
    def append(self, event: Event) -> None: ...
    def events(self, after: int = 0) -> Iterator[tuple[int, Event]]: ...


class Clock(Protocol):
    def now(self) -> float:
        """Unix time that never goes back within a process."""
        ...


class Inbox(Protocol):
    """What arrives while the loop is busy: results and requests."""

    def put(self, event: Event) -> None: ...
    def stale(self) -> list[Event]:
        """Requests that were left for a process before this one, and have to be heard before this one's start is
        recorded: to end (they ask nothing of this one), and limits (the flags of this one were said later)."""
        ...

    def take(self) -> list[Event]:
        """All that is here, without waiting."""
        ...

    def wait(self, until: float | None) -> list[Event]:
        """At least one event; none once it is `until`."""
        ...

    def done(self, event: Event) -> None:
        """The event is journaled: a request need not be kept any longer."""
        ...
