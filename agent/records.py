"""The words of this program, as frozen records: what happened is never changed, only added to.

Everything here survives a round trip through JSON, because the ledger keeps it so.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

VerdictKind = Literal[
    "baseline",
    "keep",
    "simplification",
    "discard",
    "crash",
    "timeout",
    "invalid",
    "duplicate",
    "violation",
]
KEPT: frozenset[VerdictKind] = frozenset({"baseline", "keep", "simplification"})

State = Literal["proposing", "proposed", "committed", "running", "measured", "judged", "published"]
STATES: tuple[State, ...] = get_args(State)


class Record(BaseModel):
    """A frozen value; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Edit(Record):
    """One SEARCH/REPLACE block against one editable file; an empty `search` replaces the whole file."""

    path: str
    search: str
    replace: str


class Proposal(Record):
    """One atomic change and the reason to believe in it."""

    hypothesis: str
    category: str
    edits: tuple[Edit, ...]


class Reply(Record):
    """What one call of a proposer gave, and what it cost."""

    text: str
    proposer: str
    model: str = ""
    input_tokens: int = 0
    """As the provider's own usage figures say; 0 where no model was called."""
    output_tokens: int = 0
    usd: float | None = 0.0
    """None: the model's price is not known."""
    seconds: float = 0.0
    unusable: str = ""
    """Why this reply must never be applied, though it was paid for: cut off, refused."""


class Call(Record):
    """One call of a proposer: what was asked, and the reply once there is one."""

    turn: int
    kind: Literal["first", "repair", "slip"]
    question: str
    reserved_usd: float | None
    """Upper bound set aside before the call; it counts as spent until the reply tells."""
    reply: Reply | None = None


class Measurement(Record):
    """What one trial gave. `metric` is a finite number if and only if `outcome` is "ok"."""

    outcome: Literal["ok", "crash", "timeout", "violation", "interrupted"]
    reason: str = ""
    """One line for a person; empty when all went well."""
    metric: float | None = None
    numbers: dict[str, float] = {}
    """Every other `name: value` line of training and evaluation."""
    curve: tuple[tuple[float, float], ...] = ()
    """(share of the budget used in 0..1, training loss) as training went."""
    startup_seconds: float = 0.0
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    peak_memory_gb: float | None = None
    log_tail: str = ""
    """The last lines of the log, control characters removed, at most about 4,000 characters."""


class Trial(Record):
    """One run of the training command for one commit with one seed: a number within its experiment."""

    experiment: int
    number: int
    commit: str
    seed: int
    builds_on: int | None = None
    """The kept experiment that its change was made to: it may start from what that one compiled."""
    measurement: Measurement | None = None
    """None while it runs."""


class Verdict(Record):
    """What was decided about one experiment, and why."""

    kind: VerdictKind
    reason: str
    metric: float | None = None
    """The experiment's metric as judged: the mean over the trials that count."""
    effect: float | None = None
    """Improvement over the incumbent in the metric's unit; positive is better, whatever the direction."""
    interval: tuple[float, float] | None = None
    """95% interval of the effect, where it was measured."""
    review: bool = False
    """True: implausible or borderline; a person should look before trusting it."""

    @property
    def kept(self) -> bool:
        return self.kind in KEPT


class Experiment(Record):
    """One proposal and all that happened to it. Number 0 is the unchanged program: the baseline."""

    number: int
    state: State
    parent: str
    """The incumbent's commit when it was proposed."""
    commit: str | None = None
    """What was measured; once published as a keep, the same tree under its final message."""
    proposal: Proposal | None = None
    files: dict[str, str] = {}
    """Path -> whole new text of each file that the proposal changes."""
    verdict: Verdict | None = None
    trials: tuple[Trial, ...] = ()
    calls: tuple[Call, ...] = ()
    test_numbers: dict[str, float] | None = None
    """Held-out test figures of a kept commit, {} where they could not be had; never for a prompt."""
    created: float = 0.0
    """Unix time of the first intent."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of every finished trial, in order."""
        return tuple(t.measurement for t in self.trials if t.measurement)

    @property
    def metrics(self) -> tuple[float, ...]:
        """The metric of every trial that gave one, in order; the first is the one that selected it."""
        return tuple(m.metric for m in self.measurements if m.metric is not None)

    @property
    def usd(self) -> float | None:
        """What its calls cost, a call without a reply at its upper bound; None: a price is not known."""
        costs = [call.reply.usd if call.reply else call.reserved_usd for call in self.calls]
        return None if None in costs else sum(cost or 0.0 for cost in costs)

    @property
    def tokens(self) -> int:
        """Input and output tokens of all its calls."""
        return sum(c.reply.input_tokens + c.reply.output_tokens for c in self.calls if c.reply)

    @property
    def proposer(self) -> str:
        """`anthropic claude-...`, `search`; empty for the baseline."""
        replies = [call.reply for call in self.calls if call.reply]
        return f"{replies[-1].proposer} {replies[-1].model}".strip() if replies else ""

    @property
    def label(self) -> str:
        """What it is called in lists: its hypothesis, or what stood in for one."""
        if self.number == 0:
            return "baseline"
        return self.proposal.hypothesis if self.proposal else "no usable proposal"


class Turn(Record):
    """One message of the talk with a proposer."""

    role: Literal["user", "assistant"]
    text: str
