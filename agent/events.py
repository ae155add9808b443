"""The events of a night: what happened, and what was decided, as it is journaled. Nothing here is ever changed.

An event holds decisions and not only inputs (the verdict, the hash of the applied files), so that a night is read
back without asking a judge or a parser again. Long texts lie beside the journal under their hash, as a `Hash`
field says; an event stays under 1 KB.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BeforeValidator

from agent.records import CallKind, Measurement, Record, Reply, Stoppers, Verdict

LONGEST_LINE = 600  # bytes, as JSON


def cut(text: str) -> str:
    """One bounded piece of text: what does not fit into an event is left out."""
    clean = text.encode("utf-8", "replace").decode()
    short = text = text if clean == text else clean  # one object where it is the same: nights hold many of them
    while len(json.dumps(short, ensure_ascii=False).encode()) > LONGEST_LINE:
        short = short[: min(LONGEST_LINE, len(short) * 9 // 10)]
    return short if short == text else short + "..."


Line = Annotated[str, BeforeValidator(cut)]
Hash = str
"""Of a text in the side table of the journal; "" where there is none."""


class Rules(Record):
    """What the policy needs to know of program.md."""

    metric: str
    minimize: bool
    target: float | None
    seeds: int
    """Trials of the baseline."""
    tests: bool
    """A kept commit is scored on the held-out split."""
    trial_seconds: float
    """No trial lasts longer; one of which nothing was heard for so long is lost."""
    budget_seconds: float = 0.0
    """Of the training of one trial."""
    evaluates: bool = True
    """The metric comes from a command of its own, and not from the training that is edited."""
    limit_seconds: float = 0.0
    """The same, where that is what ends it; 0 where it trains on a number of tokens."""

    def reached(self, value: float) -> bool:
        if self.target is None:
            return False
        return value <= self.target if self.minimize else value >= self.target


class Event(Record):
    """One thing that happened. `at`: unix time by the loop's clock, set when it is journaled."""

    at: float = 0.0


RequestKind = Literal[
    "stop",  # end the trials now, and this process
    "finish",  # let what has begun come to its end, and begin nothing new
    "pause",  # the same, but stay
    "resume",
    "skip",  # end an experiment without a decision on its change
    "suggest",  # put an idea to the proposer
    "veto",  # an experiment must not be on the branch
    "accept",  # one that was held for review may be
    "limits",  # change how far the night goes
]

# The night.


class Started(Event):
    """A process took up the night: what was in flight in the process before it has ended without an answer."""

    program: Hash
    """The parsed program; the first one is the contract of the whole night."""
    rules: Rules
    stoppers: Stoppers
    device: str
    sandbox: str
    proposer: Line
    data: str = ""
    inputs: Hash = ""
    hardware: str = ""
    """As records.Surroundings; the first data and hardware hold for the whole night."""
    weaker: Line = ""
    cards: Line = ""
    """Other cards of the same name may go on: what was kept is measured on them first."""
    fallback: Line = ""
    """What proposes while the proposer can't: `search`, where the person chose it."""
    reads: bool = True
    """The proposer reads what a person writes: the direction, a suggestion."""


class Steered(Event):
    """program.md was edited. `refused` says why the edit is not used; otherwise it counts from now on."""

    text: Hash
    program: Hash = ""
    rules: Rules | None = None
    refused: Line = ""
    unseen: bool = False
    """Nothing of it stands in a prompt: no proposal would be another one."""


class Noted(Event):
    """Something the person should find in the morning."""

    text: Line


class Requested(Event):
    """A person, from another process or by a signal. `id` is given once; a request counts once."""

    id: str
    what: RequestKind
    text: Line = ""
    then: Line = ""
    """What has to be done before the night can go on."""
    experiment: int | None = None
    """Of a skip, a veto or an accept."""
    until: float = 0.0
    """Unix time at which a pause ends by itself; 0: only when a person says so."""
    words: str = ""
    """Of a suggestion; "" once it is journaled: they are in `idea`."""
    idea: Hash = ""
    limits: Stoppers = Stoppers()
    lifted: tuple[str, ...] = ()
    """Names of limits that hold no longer."""


class Waited(Event):
    """A time that the policy waited for has passed."""

    stopped: float = 0.0
    """Seconds of a wait in which this process was stopped: nothing in flight is the later for them."""


class Blocked(Event):
    """The proposer can't be called any more by this process, and why: no money is left, a prompt can't be rendered."""

    reason: Line
    then: Line = ""
    """What the person can change, so that the night goes on."""
    limit: bool = False
    """It is a limit of the person's, who may state another one."""


class Paused(Event):
    """The night waits for what it can't change itself, and why; it goes on by itself. Said once for each pause. A pause
    that a person asked for is a request, and no event of this kind."""

    reason: Line
    until: float = 0.0
    """Unix time of the next try; further ones follow, at growing distances."""
    what: Literal["model", "machine", "person"] = "model"
    """What it waits for."""


class Resumed(Event):
    """What the night waited for is here again."""


class Ended(Event):
    """The night is over, or this process's part in it. `code`: 0 finished, 2 a person's mistake, 3 unfinished."""

    reason: Line
    code: int
    then: Line = ""
    """How to go on; "" where there is nothing to go on with."""


# Experiments: intents, results, decisions.


class BaselineBegun(Event):
    """The program as it is at `commit` is experiment 0. It is begun again where it did not run."""

    commit: str
    files: Hash
    """Path -> text of the editable files, as JSON."""
    fingerprint: str


class Asked(Event):
    """A call is about to be made; `reserved_usd` is the most that it may cost (None: unknown). With kind "first"
    this begins the experiment."""

    experiment: int
    call: int
    kind: CallKind
    parent: str
    """The incumbent's commit, on which the proposal is to stand."""
    system: Hash
    question: Hash
    reserved_usd: float | None
    fallback: bool = False
    """It goes to what proposes while the proposer can't."""
    suggestion: Hash = ""
    """Of the person, which the question passes on."""


class Replied(Event):
    """The answer to a call. From here on it is paid for, and never asked for again."""

    experiment: int
    call: int
    reply: Reply
    """Without its text once it is journaled."""
    text: Hash = ""
    final: bool = False
    """It can't be used, and another call would give no better one."""


class CallFailed(Event):
    """A call ended without a reply."""

    experiment: int
    call: int
    reason: Line
    final: bool = False
    """Asking again can't help before a person, or time, changes something: the key, credit, the model's name."""
    charged: bool = False
    """It may have been billed all the same, so that what was reserved counts as spent."""
    defect: bool = False
    """It is this program that failed, and not the provider."""
    exhausted: bool = False
    """It has nothing more to propose, whatever time brings."""
    too_long: bool = False
    """The talk does not fit the model: a shorter one may."""
    retry_after: float | None = None
    """Seconds that the server asks to wait."""


class ReplyRefused(Event):
    """The reply can't be applied; `error` goes back to the proposer."""

    experiment: int
    error: Hash


class Proposed(Event):
    """The reply was parsed and applied."""

    experiment: int
    proposal: Hash
    category: Line
    files: Hash
    """Path -> new text of the files that it changes, as JSON."""
    fingerprint: str
    """Of all editable files with the change."""


class Committed(Event):
    """The change passed the checks and is a commit on top of `parent`."""

    experiment: int
    commit: str


class TrialBegun(Event):
    """A trial is about to start; begun again after a crash or a fault it keeps number and seed."""

    experiment: int
    number: int
    attempt: int
    commit: str
    seed: int
    slot: int


class Measured(Event):
    """A trial has ended with a measurement, good or bad."""

    experiment: int
    number: int
    attempt: int
    measurement: Measurement
    """Without curve, log and numbers once it is journaled: these are in `details`."""
    details: Hash = ""


class TrialFailed(Event):
    """What runs the trial broke: no measurement, and not known to be the fault of the code under test."""

    experiment: int
    number: int
    attempt: int
    reason: Line
    traceback: str = ""
    details: Hash = ""


class MachineFault(Event):
    """The machine failed the trial: never a verdict."""

    experiment: int
    number: int
    attempt: int
    reason: Line
    slot_lost: bool = False
    """The executor has found that the slot can't work any more."""


class TrialCancelled(Event):
    """The trial was ended from here, as `Executor.cancel` was asked to: it did not happen."""

    experiment: int
    number: int
    attempt: int
    reason: Line = ""


class RerunWanted(Event):
    """The judge can't decide yet: one more trial, of the candidate or of the incumbent."""

    experiment: int
    of: Literal["candidate", "incumbent"]
    reason: Line


class SentBack(Event):
    """It crashed within seconds: the traceback goes back to the proposer, as the same experiment."""

    experiment: int


class Rebased(Event):
    """A win on an older incumbent (or what a person accepted, or kept changes without a vetoed one) was put onto the
    present one: a new commit of the same experiment, which has to be confirmed there."""

    experiment: int
    parent: str
    commit: str
    files: Hash
    fingerprint: str
    left_out: tuple[int, ...] = ()
    """Of its parts those that can't be put on."""


class Overtaken(Event):
    """It was proposed for an older incumbent, and can't be put onto the present one: it is asked for again."""

    experiment: int
    by: int


class Judged(Event):
    experiment: int
    verdict: Verdict


class BaselineFailed(Event):
    """The unchanged program does not run, so there is nothing to compare with."""

    reason: Line


class Published(Event):
    """The verdict is final. Kept: `commit` is the new incumbent, with its final message."""

    experiment: int
    commit: str


class TestBegun(Event):
    """A kept commit is about to be scored on the held-out split, from what its trial `number` has saved."""

    experiment: int
    number: int
    attempt: int
    slot: int


class Tested(Event):
    """Held-out figures, for the person only; `numbers` is "" and `reason` says why where there are none."""

    experiment: int
    attempt: int
    figures: dict[str, float] = {}
    """Empty once it is journaled: they are in `numbers`."""
    numbers: Hash = ""
    reason: Line = ""


KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in Event.__subclasses__()}
"""By the name under which an event is journaled."""
