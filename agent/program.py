"""program.md -> Program: the contract (front matter, validated) and the direction (prose).

It is read again before every proposal, so that an edit made at night steers the next experiment.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import frontmatter
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agent.commands import PLACES, arguments, misspelt, shell_syntax
from agent.errors import ProgramError
from agent.typed import typed

EXAMPLE = "metric: {name: val_bpb, direction: minimize}, edit: [train.py], run: python train.py, budget: 5m"
TOKENS_WALL_CAP = 600.0  # seconds of training allowed to a token budget that names no cap
SMALLEST_DIRECTION = 6  # words; below that nobody could tell what to try
UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
Device = Literal["cpu", "cuda"]
PLACEHOLDER = "Say here what to try first, what has been tried before, and what to leave alone."
"""What `init` writes below the front matter; while it stands there nobody has said what to do."""
# Names of which more is better, by their words: to minimize one of them by default would turn a night upside down.
MORE_IS_BETTER = re.compile(
    r"acc(uracy)?|f1|f_?beta|auc|au?roc|auprc|bleu|rouge[a-z]?|meteor|reward|returns?|score|precision|recall|m?ap|m?iou|"
    r"dice|r2|ndcg|mrr|psnr|ssim|win|wins|winrate|elo|top|em|exact|correct|success|pass|likelihood|throughput"
)
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}

LOSSES = ("loss", "bpb", "perplexity", "ppl", "error", "mse", "mae", "rmse", "nll", "regret")


def parse_seconds(text: str | float) -> float:
    """`20s`, `5m`, `1.5h` or a plain number of seconds -> seconds. Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(s|sec|m|min|h)?\s*", str(text))
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is no duration: write 20s, 5m or 1h")
    return float(match[1]) * UNITS[match[2] or "s"]


class Part(BaseModel):
    """A frozen part of the contract; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Budget(Part):
    """What one trial may spend on training: time, or tokens with a cap on time."""

    seconds: float
    """Training seconds; for a token budget the wall cap."""
    tokens: int | None = None

    @classmethod
    def parse(cls, text: str | float) -> Budget:
        """`20s`, `5m`, `2M tokens`, `600k tokens within 90s`. Raises ValueError."""
        tokens_within = r"\s*([0-9]*\.?[0-9]+)\s*([kKmMbB]?)\s*tokens(?:\s+within\s+(.+))?\s*"
        match = re.fullmatch(tokens_within, str(text))
        if not match:
            try:
                return cls(seconds=parse_seconds(text))
            except ValueError:
                raise ValueError(f"{text!r} is no budget: write 20s, 5m, or 2M tokens within 60s") from None
        tokens = round(float(match[1]) * COUNTS[match[2].lower()])
        if tokens <= 0:
            raise ValueError(f"{text!r} is no budget: write 20s, 5m, or 2M tokens within 60s")
        return cls(seconds=parse_seconds(match[3]) if match[3] else TOKENS_WALL_CAP, tokens=tokens)

    def __str__(self) -> str:
        time = f"{self.seconds:g}s" if self.seconds < 120 else f"{self.seconds / 60:g}m"
        return time if self.tokens is None else f"{self.tokens:,} tokens within {time}"


class Metric(Part):
    """The one number that decides."""

    name: str = Field(min_length=1, pattern=r"\S")
    """As it is printed: a line `name: value`, unless `pattern` says otherwise."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Which way is better. Must be said for a name of which more is better, like accuracy."""
    target: float | None = None
    """Reached by a kept commit, it ends the night."""
    pattern: str | None = None
    """Regular expression whose first group is the value, matched with each line; the last match counts."""

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        if groups != 1:
            raise ValueError("needs one group, around the number, like accuracy=([0-9.]+); write others as (?:...)")
        return pattern

    def gain(self, before: float, after: float) -> float:
        """How much better `after` is than `before`; positive is better, whatever the direction."""
        return before - after if self.direction == "minimize" else after - before

    def reached(self, value: float) -> bool:
        return self.target is not None and self.gain(self.target, value) >= 0


class Timeouts(Part):
    """Hard wall limits beside the training budget, in seconds or as 30s, 2m."""

    startup: float = 300.0
    """From the start of the process to the first progress line (imports, compilation). Once the baseline has run, a
    start that takes twice as long as the slowest so far is ended sooner."""
    evaluation: float = 300.0
    """For the `evaluate` command, and for `test`."""
    prepare: float = 7200.0
    """For the `prepare` command, at every start."""

    @field_validator("*", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> float:
        return parse_seconds(value)


class Program(Part):
    """program.md, parsed: the contract, and the direction in prose."""

    metric: Metric
    """The one number that decides."""
    edit: tuple[str, ...] = ("train.py",)
    """The only files that a proposal may change."""
    protect: tuple[str, ...] = ()
    """Files that must stay as they were at the start; their hashes are checked around every trial."""
    prepare: str | None = None
    """Run at every start, outside the sandbox: data, tokenizer. Must be quick where it was done before."""
    python: str | None = None
    """The interpreter of every command, or the folder of its environment; None: the environment that is found in the
    project (run/environment.py), else the one that the loop runs in."""
    run: str = "python train.py"
    """May hold {seed}, {seconds} and {output}, for scripts that take flags; so may `evaluate` and `test`."""
    feed: str | None = None
    """Hands the training data to the stdin of `run` (run/feed.py); then `data` is not in the room that trains."""
    evaluate: str | None = None
    """Without it the metric is read from the training log."""
    test: str | None = None
    """Scores the held-out split for kept commits only; shown to the person, never to a proposer."""
    budget: dict[Device, str] = {"cpu": "5m", "cuda": "5m"}
    """Of one trial's training: `20s`, `5m`, `1h`, or `2M tokens within 60s`. One for every machine, or one each for
    `cpu` and `cuda`."""
    device: Device | None = None
    """Where trials run; None: on the GPU where one can be seen, else on the CPU."""
    timeouts: Timeouts = Timeouts()
    """Hard limits of time beside the budget: seconds, or `30s`, `2m`."""
    limits: dict[str, float] = {}
    """The most that a kept change may have of a number that the evaluation prints, by its name; or of
    peak_memory_gb."""
    data: tuple[str, ...] = ()
    """Folders outside the repository, or untracked in it, that training reads."""
    holdout: tuple[str, ...] = ()
    """Folders that only the evaluation reads."""
    environment: tuple[str, ...] = ()
    """Further environment variables, by name, that a trial gets to see."""
    reruns: int = Field(6, ge=0)
    """How many further seeds one candidate may cost before the answer is no."""
    simplify: bool = False
    """Also keep a change that is equal within the noise and shorter, or lighter by 5% of peak memory."""
    direction: str = ""
    """The prose: what to try, what to leave alone."""

    @field_validator("edit", "protect", "data", "holdout", "environment", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("budget", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        budgets = value if isinstance(value, Mapping) else {"cpu": value, "cuda": value}
        for text in budgets.values():
            Budget.parse(text)
        return {device: str(text) for device, text in budgets.items()}

    @field_validator("run", "feed", "evaluate", "test", "prepare")
    @classmethod
    def _command(cls, command: str | None) -> str | None:
        if command is None:
            return None
        try:
            if not shlex.split(command):
                raise ValueError("is empty; write for example: python train.py")
        except ValueError as error:
            raise ValueError(f"{command!r} is no command line ({error})") from None
        if syntax := shell_syntax(command):
            raise ValueError(
                f"{command!r} is run without a shell, which {syntax!r} would need: write sh -c '...' around it, "
                "or put it into a script of its own"
            )
        if name := misspelt(command):
            places = ", ".join(f"{{{place}}}" for place in PLACES)
            raise ValueError(f"{command!r}: {{{name}}} is none of what can stand there: {places}")
        arguments(command)
        return command

    @field_validator("edit", "protect")
    @classmethod
    def _inside(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            pure = PurePosixPath(path)
            if pure.is_absolute() or ".." in pure.parts or path.startswith("~"):
                raise ValueError(f"{path!r} is outside the repository: name files relative to its root")
        return tuple(str(PurePosixPath(path)) for path in paths)

    @model_validator(mode="after")
    def _consistent(self) -> Program:
        if not self.edit:
            raise ValueError("edit is empty: name the file the agent may change, like edit: [train.py]")
        if "program.md" in self.edit:
            raise ValueError("program.md is in edit, but it is yours: the agent may not change its own contract")
        if both := sorted(set(self.edit) & set(self.protect)):
            raise ValueError(f"{both[0]} is in edit and in protect: take it out of one of them")
        return self

    def incomparable(self, other: Program) -> str | None:
        """The first field in which the two can't be compared any more; None when a night may go on."""
        commands = ("prepare", "run", "feed", "evaluate", "test", "python")
        for field in ("metric", "edit", "protect", *commands, "budget", "device", "data", "holdout"):
            mine, theirs = (p.model_dump(include={field}, exclude={"metric": {"target"}}) for p in (self, other))
            if mine != theirs:
                return field
        return None

    def budget_on(self, device: Device) -> Budget:
        """The budget on this kind of machine. Raises ProgramError where the contract has none."""
        if device not in self.budget:
            raise ProgramError(f"program.md has no budget for {device}: write budget: 5m, or {device}: 5m")
        return Budget.parse(self.budget[device])


def parse_program(text: str, overrides: Mapping[str, Any] | None = None) -> Program:
    """The text of program.md, and what flags put over it -> Program. Raises ProgramError, one line."""
    try:
        front, prose = frontmatter.parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 2}" if mark else "its front matter"
        raise ProgramError(f"program.md: {where} is not YAML; between --- lines write: {EXAMPLE}") from None
    contract = _merge(front, overrides or {})
    try:
        program = Program.model_validate({**contract, "direction": prose.strip()})
    except ValidationError as error:
        raise ProgramError("program.md: " + _explain(error)) from None
    if "direction" not in program.metric.model_fields_set and more_is_better(program.metric.name):
        raise ProgramError(
            f"program.md: metric.direction: is more {program.metric.name} better? "
            "Say direction: maximize, or direction: minimize (as a flag: --direction)"
        )
    if PLACEHOLDER in " ".join(prose.split()):
        raise ProgramError(
            "program.md still says what `init` wrote: replace its last paragraph by what to try first, what has been "
            "tried before, and what to leave alone"
        )
    words = re.findall(r"\w+", re.sub(r"(?m)^#.*$", "", prose))
    if len(words) < SMALLEST_DIRECTION:
        said = " ".join(words) or "nothing"
        raise ProgramError(
            f"program.md is too vague (its direction says {said!r}): below the front matter write "
            "what to try, what to leave alone and what counts, in a few sentences"
        )
    return program


def more_is_better(name: str) -> bool:
    """Whether a metric of this name is one that people maximize."""
    if any(loss in name.lower() for loss in LOSSES):
        return False
    return any(MORE_IS_BETTER.fullmatch(word) for word in re.findall(r"[a-z]+(?:[12](?![0-9]))?", name.lower()))


def load_program(path: Path, overrides: Mapping[str, Any] | None = None) -> Program:
    """Read and parse the file. Raises ProgramError, one line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ProgramError(f"{path} does not exist: `{typed('init')}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProgramError(f"{path} can't be read: {error}") from None
    return parse_program(text, overrides)


def _merge(front: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Flags over front matter; a dotted key (`metric.target`) goes into the mapping it names."""
    contract = dict(front)
    if isinstance(contract.get("metric"), str):
        contract["metric"] = {"name": contract["metric"]}
    metric = contract.get("metric")
    if isinstance(metric, Mapping) and overrides.get("metric.name", metric.get("name")) != metric.get("name"):
        contract["metric"] = {}  # what the file says is of another metric: its direction, its target, its pattern
    for key, value in overrides.items():
        outer, _, inner = key.partition(".")
        if not inner:
            contract[outer] = value
        elif outer not in contract or isinstance(contract[outer], Mapping):
            contract[outer] = {**contract.get(outer, {}), inner: value}
    return contract


def _explain(error: ValidationError) -> str:
    """The first thing wrong, in one line that says what to write."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a misspelt key explains the rest
    place = [str(part) for part in first["loc"]]
    name = ".".join(place) or "the contract"
    if first["type"] == "extra_forbidden":
        known = _keys(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "known keys: " + ", ".join(known)
        return f"unknown key {name!r}; {hint}"
    if place == ["metric"] and first["type"] in ("missing", "model_type"):
        return f"it names no metric, so nothing can be measured; between --- lines write: {EXAMPLE}"
    if first["type"] == "missing":
        return f"{name} is missing; write for example: {EXAMPLE}"
    said = first["msg"].removeprefix("Value error, ")
    return f"{name}: {said}" if place else said


def _keys(place: list[str]) -> list[str]:
    model = {"metric": Metric, "timeouts": Timeouts}.get(place[0], Program) if place else Program
    return [key for key in model.model_fields if (model, key) != (Program, "direction")]
