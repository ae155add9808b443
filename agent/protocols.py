"""The three places where this program can be extended, on one screen.

A new provider, executor or journal is one new file that satisfies one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

from agent.program import Program
from agent.records import Call, Experiment, Measurement, Proposal, Record, Reply, Trial, Turn, Verdict


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


class Proposer(Protocol):
    """Where proposals come from. `propose` may take minutes; it runs in a thread of its own."""

    name: str
    model: str
    converses: bool
    """Whether it can learn from an answer: a repair turn, a traceback."""

    def propose(self, request: Request) -> Reply:
        """Answer in the reply format of agent/propose/edits.py. Raises errors.ProposerError when it can't."""
        ...

    def most_usd(self, request: Request) -> float | None:
        """Upper bound of what the call may cost, reserved before it is made; None: price unknown."""
        ...


class Executor(Protocol):
    """Where trials run. It gets a commit and gives a measurement; it shares no memory with the loop."""

    slots: int

    def submit(self, trial: Trial, program: Program) -> Future[Measurement]:
        """Start the trial. The future never raises for what the code under test does."""
        ...

    def test(self, trial: Trial, program: Program) -> Future[dict[str, float]]:
        """Score what this trial saved on the held-out split. The future raises Failure where that fails."""
        ...

    def forget(self, experiment: int, kept: bool = False) -> None:
        """Delete what the experiment's trials saved: it has been decided."""
        ...

    def stop(self, now: bool = False) -> None:
        """End every running trial (SIGTERM, then SIGKILL; `now`: SIGKILL) with outcome "interrupted"."""
        ...


class Journal(Protocol):
    """What the loop asks of a ledger. Every method is durable when it returns, and safe to repeat."""

    def begin(self, parent: str, files: Mapping[str, str]) -> Experiment: ...
    def ask(self, number: int, call: Call) -> None: ...
    def replied(self, number: int, turn: int, reply: Reply) -> None: ...
    def proposed(self, number: int, proposal: Proposal, files: Mapping[str, str]) -> None: ...
    def committed(self, number: int, commit: str) -> None: ...
    def running(self, trial: Trial) -> None: ...
    def measured(self, trial: Trial, measurement: Measurement) -> None: ...
    def judged(self, number: int, verdict: Verdict) -> None: ...
    def tested(self, number: int, numbers: Mapping[str, float]) -> None: ...
    def published(self, number: int, commit: str | None) -> None: ...
    def experiment(self, number: int) -> Experiment: ...
    def experiments(self) -> tuple[Experiment, ...]: ...
