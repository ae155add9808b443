"""The words of this program, as frozen records: what happened is never changed, only added to.

Everything here survives a round trip through JSON, because the ledger keeps it so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, Literal, Self

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
    "skipped",
    "held",  # for a person to look at: it is not on the branch
    "vetoed",
]
KEPT: frozenset[VerdictKind] = frozenset({"baseline", "keep", "simplification"})

NO_NAMES: frozenset[str] = frozenset()

CallKind = Literal["first", "repair", "slip"]
State = Literal[
    "ask",  # a call has to be made
    "asking",
    "replied",
    "refused",  # the reply can't be applied
    "proposed",
    "trials",  # trials run, or are to be begun
    "waiting",  # for a further trial of the incumbent
    "measured",
    "judged",
    "published",
    "detached",  # its change is to be put onto the incumbent
]


class Record(BaseModel):
    """A frozen value; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_post_init(self, context: Any) -> None:
        """Which fields were given is never asked for, and a set of them takes more memory than most records."""
        object.__setattr__(self, "__pydantic_fields_set__", NO_NAMES)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """It takes less memory than what was validated: with each field set by itself, the copies of one class share
        the names of their fields."""
        values = {**self.__dict__, **(update or {})}
        return self.filled(deepcopy(values) if deep else values)

    @classmethod
    def filled(cls, values: Mapping[str, Any]) -> Self:
        record = object.__new__(cls)
        for name in ("__pydantic_extra__", "__pydantic_private__"):
            object.__setattr__(record, name, None)
        object.__setattr__(record, "__pydantic_fields_set__", NO_NAMES)
        for name in cls.model_fields:
            object.__setattr__(record, name, values[name])
        return record

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Python learns the names that are to be shared from the first instances of a class: this is the first."""
        cls.filled(dict.fromkeys(cls.model_fields))


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
    kind: CallKind
    question: str
    reserved_usd: float | None
    """Upper bound set aside before the call; it counts as spent until the reply tells."""
    reply: Reply | None = None


class Measurement(Record):
    """What one trial gave. `metric` is a finite number if and only if `outcome` is "ok"."""

    outcome: Literal["ok", "crash", "timeout", "violation", "interrupted"]
    reason: str = ""
    """One line for a person; empty when all went well."""
    certain: bool = False
    """Of a failure: another seed would end in the same way."""
    metric: float | None = None
    numbers: dict[str, float] = {}
    """Every other `name: value` line of training and evaluation."""
    evaluated: tuple[str, ...] | None = None
    """Those that the evaluation printed; None: there is no evaluation, or nobody wrote it down."""
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
    measurement: Measurement | None = None
    """None while it runs."""
    superseded: bool = False
    """It ran on an older commit of its experiment, before that was put onto a newer incumbent."""


class Surroundings(Record):
    """What a process works with beside the program. A night stays on one kind of data and hardware."""

    sandbox: str = "none"
    weaker: str = ""
    """What a trial can do in it that it can't in bubblewrap."""
    data: str = ""
    """Hash of the prepared data, as `prepare` says it."""
    inputs: str = ""
    """Hash of the text that lists the files of data and held-out data (agent/run/inputs.py)."""
    hardware: str = ""
    """`cpu`, or `cuda` and the GPU's name."""
    cards: str = ""
    """UUIDs of the GPUs."""
    fallback: str = ""
    """What proposes while the proposer can't."""


class Stoppers(Record):
    """What ends the night besides its target; each None: no such limit, or none was stated. All but `hours` count the
    whole night."""

    experiments: int | None = None
    """The baseline not counted."""
    hours: float | None = None
    """From the start of each process; what was begun by then is finished."""
    usd: float | None = None
    """What calls may cost; the most that a call may cost is reserved before it is made."""
    tokens: int | None = None
    """Input and output tokens of all calls."""
    plateau: int | None = None
    """Experiments in a row without a keep."""

    def stated(self, later: Stoppers, lifted: Collection[str] = ()) -> Stoppers:
        """Those that hold once `later` was said, and these were `lifted`: the latest one counts."""
        said = {name: value for name, value in later.__dict__.items() if value is not None}
        return self.model_copy(update=dict.fromkeys(lifted) | said)


class Verdict(Record):
    """What was decided about one experiment, and why."""

    kind: VerdictKind
    reason: str
    metric: float | None = None
    """The experiment's metric as judged: the mean over the trials that count."""
    effect: float | None = None
    """Improvement over the incumbent in the metric's unit; positive is better, whatever the direction."""
    interval: tuple[float, float] | None = None
    """Of the effect, where it was measured: two-sided 90%, so that its ends are those of the one-sided 5% tests that
    decide; see `level`. A keep's lies above 0."""
    trials: int | None = None
    """Trials that `metric` is the mean of; None in nights of before, and where there is no metric."""
    review: bool = False
    """True: implausible or borderline; a person should look before trusting it."""

    @property
    def kept(self) -> bool:
        return self.kind in KEPT

    @property
    def level(self) -> str:
        """Of the interval. It was 95% until verdicts began to say their trials as well."""
        return "95%" if self.trials is None else "90%"


class Experiment(Record):
    """One proposal and all that happened to it. Number 0 is the unchanged program: the baseline."""

    number: int
    state: State
    parent: str
    """The commit that it stands on: the incumbent's when it was proposed, or last put onto a newer one."""
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
    suggestion: str = ""
    """What the person wanted to be tried here."""
    parts: tuple[int, ...] = ()
    """Experiments that were kept, and whose changes it puts on again without one that was vetoed."""
    accepted: bool = False
    """It was held for review, and the person accepted it."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of every finished trial, in order."""
        return tuple(t.measurement for t in self.trials if t.measurement)

    @property
    def metrics(self) -> tuple[float, ...]:
        """The metric of every trial of the present commit that gave one, in order."""
        return tuple(m.metric for m in self.current if m.metric is not None)

    @property
    def current(self) -> tuple[Measurement, ...]:
        """Of every finished trial of the present commit, in order; a crash that was sent back was another commit's."""
        newest = self.trials[-1].commit if self.trials else ""
        return tuple(t.measurement for t in self.trials if t.measurement and not t.superseded and t.commit == newest)

    @property
    def counted(self) -> int:
        """Trials that its metric is the mean of, as the verdict says it; without a metric those that have ended."""
        if self.verdict and self.verdict.trials is not None:
            return self.verdict.trials
        return len(self.metrics) or len(self.current)

    @property
    def unselected(self) -> bool:
        """None of the current trials was picked for being extreme: it is the baseline, or made of what was confirmed
        before, or the trial that selected the experiment ran on an older commit of it."""
        return self.number == 0 or bool(self.parts) or any(t.superseded for t in self.trials)

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
