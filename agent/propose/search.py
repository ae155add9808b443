"""Proposals without a model: one constant at a time, by Optuna's TPE on the history.

The space is a tree: first which constant, then which of its values. Each finished experiment that changed one
constant is a sample of it, scored by its gain over its own parent. Every constant is tried once before the
estimator decides (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"). All is derived from
the request, so that a restarted night goes on with the same proposals.
"""

from __future__ import annotations

import ast
import contextlib
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from agent.errors import EditError, ProposerError
from agent.program import Device
from agent.propose.edits import parse_reply, render
from agent.protocols import Request
from agent.records import Edit, Proposal, Reply
from agent.source import read_python

Value = bool | int | float | str

# Words of names that are left alone: seeds, clocks, places, and how the result is measured.
OFF_LIMITS = (
    r"SEED|STATE|BUDGET|TIME|TIMEOUT|SECONDS|MINUTES|HOURS|DEADLINE|PATH|DIR|FOLDER|FILE|OUT|OUTPUT|CACHE|DATA|LOG|"
    r"LOGS|PRINT|REPORT|PROGRESS|VERBOSE|DEBUG|EVAL|EVALUATE|VAL|VALIDATION|TEST|HELDOUT|HOLDOUT|METRIC|VOCAB|URL|"
    r"HOST|PORT|VERSION|DEVICE|WORKERS|THREADS"
)
# Groups of those that matter most in most trainings, by words in their names, and the way of the first step:
# up (+1), down (-1) or either. First tries take one of each group in turn. In short trainings larger models and
# smaller batches, so more steps, are the changes that were kept most often in published nights of autoresearch.
FIRST = (
    ("LR|RATE", 0),
    ("DEPTH|LAYERS?|WIDTH|DIM|EMBD|HIDDEN", +1),
    ("BATCH", -1),
    ("DECAY|WARMUP|WARMDOWN|MOMENTUM|BETA", 0),
)
FACTORS = tuple(2.0 ** (k / 3) for k in range(-6, 7) if k)  # from a quarter to four times
FROM_ZERO = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
FIRST_STEP = 1.5  # factor of the first try, at least
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Constant:
    """A module-level literal: where it is, what it is, and what it could be."""

    path: str
    name: str
    """`BETAS[1]` for an element of a tuple or list."""
    value: Value
    line: int
    span: tuple[int, int]
    """Bytes of the line that hold the literal."""
    grid: tuple[Value, ...]
    """Its possible values, its own among them; numbers in rising order."""

    @property
    def key(self) -> str:
        return f"{self.path} {self.name}"


@dataclass(frozen=True)
class Try:
    """One constant that one experiment set to another value."""

    key: str
    old: Value
    new: Value
    parent: str
    gain: float | None = None
    """Over the experiment's parent, positive is better; None where nothing was measured."""
    kept: bool = False
    failed: bool = False


class SearchProposer:
    """Needs no key. `seed` makes two nights differ; `device` tells which side of `if CUDA:` counts."""

    name = "search"
    model = ""
    converses = False
    reads = False

    def __init__(self, seed: int = 0, device: Device = "cpu"):
        self.seed, self.cuda = seed, device == "cuda"

    def check(self, request: Request) -> None:
        self.constants(request)

    def close(self) -> None: ...

    def most_usd(self, request: Request) -> float | None:
        return 0.0

    def constants(self, request: Request) -> list[Constant]:
        """Raises ProposerError where there are none."""
        found = [c for path, text in request.files.items() for c in constants(path, text, self.cuda)]
        if not found:
            raise ProposerError(
                f"search finds no constant in {', '.join(request.files)}: write numbers at the top like "
                "LEARNING_RATE = 1e-3, or use a model (--proposer anthropic, openai or command)",
                exhausted=True,
            )
        return found

    def propose(self, request: Request) -> Reply:
        """Raises an exhausted ProposerError when there is nothing (left) to try."""
        found = self.constants(request)
        tries, parent = list(evidence(request)), incumbent(request)
        fresh = {c: left for c in found if (left := untried(c, tries, parent))}
        if not fresh:
            raise ProposerError(f"search has tried all it can of {len(found)} constants", exhausted=True)
        rng = random.Random(f"{self.seed} {request.number} {len(request.turns)}")
        constant, aim, why = choose(list(fresh), tries, rng, request.program.metric.name)
        index = min(fresh[constant], key=lambda i: abs(i - aim))
        edit, old, new = change(constant, constant.grid[index], request.files[constant.path])
        hypothesis = f"{constant.name} from {old} to {new}: {why}"
        proposal = Proposal(hypothesis=hypothesis, category="hyperparameter", edits=(edit,))
        return Reply(text=render(proposal), proposer=self.name)


def choose(
    constants: Sequence[Constant], tries: Sequence[Try], rng: random.Random, metric: str
) -> tuple[Constant, int, str]:
    """Which constant, the place in its grid to aim at, and why."""
    tried = Counter(t.key for t in tries)
    if new := [c for c in constants if not tried[c.key]]:
        served = Counter(rank(c) for c in constants if tried[c.key])
        constant = min(new, key=lambda c: (served[rank(c)], rank(c)))
        return constant, first_step(constant, rng), "its first try, one moderate step to see whether it matters"
    by_key = {c.key: c for c in constants}
    sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**32), n_startup_trials=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(samples(by_key, tries))
    trial = study.ask()
    constant = by_key[trial.suggest_categorical("constant", list(by_key))]
    aim = trial.suggest_int(constant.key, 0, len(constant.grid) - 1)
    gains = [t.gain for t in tries if t.key == constant.key and t.gain is not None]
    best = f", the best gain in {metric} was {max(gains):+.2g}" if gains else ""
    times = "once" if tried[constant.key] == 1 else f"{tried[constant.key]} times"
    return constant, aim, f"tried {times}{best}; TPE expects the most of this value"


def rank(constant: Constant) -> int:
    return next((i for i, (words, _) in enumerate(FIRST) if has_word(constant.name, words)), len(FIRST))


def first_step(constant: Constant, rng: random.Random) -> int:
    """The place in the grid of a moderate change: one place where the grid is coarse, two where it is fine."""
    here, group = constant.grid.index(constant.value), rank(constant)
    way = (FIRST[group][1] if group < len(FIRST) else 0) or rng.choice((-1, +1))
    value = constant.value
    beside = constant.grid[here + way] if 0 <= here + way < len(constant.grid) else value
    if isinstance(value, str) or isinstance(beside, str) or not value or not beside:
        return here + way
    return here + way * (2 if max(beside / value, value / beside) < FIRST_STEP else 1)


def samples(by_key: dict[str, Constant], tries: Sequence[Try]) -> Iterator[optuna.trial.FrozenTrial]:
    """The history as Optuna's trials; a failure counts as worse than anything measured."""
    gains = [t.gain for t in tries if t.gain is not None] or [0.0]
    worst = min(0.0, *gains) - (max(abs(g) for g in gains) or 1.0)
    for t in tries:
        score = worst if t.failed else t.gain
        if t.key not in by_key or score is None:
            continue
        params: dict[str, Any] = {"constant": t.key}
        distributions: dict[str, BaseDistribution] = {"constant": CategoricalDistribution(list(by_key))}
        grid = by_key[t.key].grid
        if (place := place_of(t.new, grid)) is not None:
            params[t.key], distributions[t.key] = place, IntDistribution(0, len(grid) - 1)
        yield optuna.trial.create_trial(value=score, params=params, distributions=distributions)


def place_of(value: Value, grid: Sequence[Value]) -> int | None:
    """The index of the grid's nearest value; None outside its range, or where order means nothing."""
    if value in grid:
        return grid.index(value)
    if isinstance(value, str | bool) or any(isinstance(v, str | bool) for v in grid):
        return None
    apart = [abs(float(v) - value) for v in grid]
    return apart.index(min(apart)) if float(grid[0]) <= value <= float(grid[-1]) else None


# What the history says.


def incumbent(request: Request) -> str:
    return next((e.commit or "" for e in reversed(request.history) if e.verdict and e.verdict.kept), "")


def evidence(request: Request) -> Iterator[Try]:
    """Every change of exactly one constant so far, by whichever proposer, oldest first."""
    measured = {e.commit: e.verdict.metric for e in request.history if e.verdict and e.verdict.kept}
    for e in request.history:
        if e.proposal is None:
            yield from not_run((call.reply.text for call in e.calls if call.reply), e.parent)
        elif e.verdict and (change := changed(e.proposal)):
            before, after = measured.get(e.parent), e.verdict.metric
            gain = None if before is None or after is None else request.program.metric.gain(before, after)
            failed = e.verdict.kind in ("crash", "timeout", "held", "vetoed")  # the person does not want it
            yield Try(*change, parent=e.parent, gain=gain, kept=e.verdict.kept, failed=failed)
    yield from not_run((turn.text for turn in request.turns if turn.role == "assistant"), incumbent(request))


def not_run(replies: Iterable[str], parent: str) -> Iterator[Try]:
    """Replies that came back before anything was measured."""
    for reply in replies:
        with contextlib.suppress(EditError):
            if change := changed(parse_reply(reply)):
                yield Try(*change, parent=parent)


def changed(proposal: Proposal) -> tuple[str, Value, Value] | None:
    """(key, old value, new value) of a proposal that changes one constant, else None."""
    if len(proposal.edits) != 1:
        return None
    edit = proposal.edits[0]
    # A block that does not parse, as it begins inside a string, still has its last line.
    texts = [(constants(edit.path, t) or constants(edit.path, t.rstrip("\n").split("\n")[-1].strip()))
             for t in (edit.search, edit.replace)]  # fmt: skip
    old, new = ({c.key: c.value for c in text} for text in texts)
    keys = [key for key in old if key in new and new[key] != old[key]]
    return (keys[0], old[keys[0]], new[keys[0]]) if len(keys) == 1 and len(old) == len(new) else None


def untried(constant: Constant, tries: Sequence[Try], parent: str) -> list[int]:
    """Indices into the grid that may be tried.

    Never a value twice on one incumbent, one that a keep left behind, or one beyond a value that failed.
    """
    mine = [t for t in tries if t.key == constant.key]
    known = {constant.value} | {t.new for t in mine if t.parent == parent} | {t.old for t in mine if t.kept}
    left = [i for i, value in enumerate(constant.grid) if value not in known]
    if isinstance(constant.value, str | bool):
        return left
    failed = [float(t.new) for t in mine if t.failed]
    low = max((v for v in failed if v < constant.value), default=-math.inf)
    high = min((v for v in failed if v > constant.value), default=math.inf)
    return [i for i in left if low < float(constant.grid[i]) < high]


# Constants in the text.


def constants(path: str, text: str, cuda: bool = False) -> list[Constant]:
    """The literals that may be tuned: assigned on one line at the top level to an upper-case name.

    Of several assignments the last one counts, under `if CUDA:` on a GPU and beside it elsewhere; a name that is
    assigned under any other condition is left alone, because here that line may have no effect.
    """
    tree = read_python(text.replace("\r\n", "\n")).tree if path.endswith(".py") else None
    if tree is None:
        return []
    statements = list(live(tree.body, cuda))
    stores = Counter(
        n.id for s in statements for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    )
    plain = [(assigned(s), s) for s in statements if isinstance(s, ast.Assign | ast.AnnAssign)]
    counts, last = Counter(name for name, _ in plain), dict(plain)
    found = []
    for name, statement in last.items():
        allowed = re.fullmatch(r"[A-Z][A-Z0-9_]*", name) and not has_word(name, OFF_LIMITS)
        if not allowed or stores[name] > counts[name] or statement.lineno != statement.end_lineno:
            continue
        parts = [(name, statement.value)]
        if isinstance(statement.value, ast.Tuple | ast.List):
            parts = [(f"{name}[{i}]", element) for i, element in enumerate(statement.value.elts)]
        for part, node in parts:
            value = literal(node)
            if node is None or value is None:
                continue
            grid = alternatives(tree, name, value) if isinstance(value, str) else numbers(value, name)
            span = (node.col_offset, node.end_col_offset or 0)
            found.append(Constant(path, part, value, node.lineno - 1, span, grid))
    return found


def live(body: Sequence[ast.stmt], cuda: bool) -> Iterator[ast.stmt]:
    """The statements that run here: `if CUDA:` (or torch.cuda.is_available()) is replaced by the branch taken."""
    for statement in body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in ("CUDA", "torch.cuda.is_available()"):
            yield from live(statement.body if cuda else statement.orelse, cuda)
        else:
            yield statement


def assigned(statement: ast.Assign | ast.AnnAssign) -> str:
    """The one name that an assignment binds, empty where it is no plain name."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    return target.id if isinstance(target, ast.Name) else ""


def has_word(name: str, pattern: str) -> bool:
    return any(re.fullmatch(pattern, word.rstrip("0123456789")) for word in name.split("[")[0].split("_"))


def literal(node: ast.expr | None) -> Value | None:
    """The value of a plain literal: a number (with its sign), True, False or a string."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = literal(node.operand)
        return -value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if not isinstance(node, ast.Constant) or not isinstance(node.value, bool | int | float | str):
        return None
    return None if isinstance(node.value, float) and not math.isfinite(node.value) else node.value


def alternatives(tree: ast.Module, name: str, value: str) -> tuple[Value, ...]:
    """The strings that the code compares `name` with, and its own."""
    said = {value}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == name:
            for other in node.comparators:
                parts = other.elts if isinstance(other, ast.Tuple | ast.List | ast.Set) else [other]
                said |= {part for part in map(literal, parts) if isinstance(part, str)}
    return tuple(sorted(said))


def numbers(value: bool | int | float, name: str) -> tuple[bool | int | float, ...]:
    """The values to try around a number, itself among them, in rising order.

    A power of two stays one (not a number of layers), a multiple of 64 a multiple, a share in 0..1 a share.
    Near 1 the distance to 1 is what varies, as for 0.95 and 0.99.
    """
    if isinstance(value, bool):
        return (False, True)
    if value < 0:
        return tuple(-v for v in reversed(numbers(-value, name)))
    if value == 0:
        return FROM_ZERO if isinstance(value, float) else (0, 1, 2, 3, 4)
    if isinstance(value, float):
        if 0.5 < value < 1:
            values = {round(1 - (1 - value) * f, 4) for f in FACTORS if (1 - value) * f < 1}
        else:
            values = {float(f"{value * f:.2g}") for f in FACTORS if value > 1 or value * f <= 1}
        return tuple(sorted(values | {value}))
    unit = value & -value  # the largest power of two that divides it
    if value == unit > 1 and not has_word(name, "DEPTH|LAYERS?"):
        return tuple(v for v in (value // 4, value // 2, value, value * 2, value * 4) if v)
    unit = unit if value >= 16 and value != unit else 1
    return tuple(sorted({max(1, round(value / unit * f)) * unit for f in FACTORS} | {value}))


def change(constant: Constant, value: Value, text: str) -> tuple[Edit, str, str]:
    """The edit that sets the constant, and its old and new source.

    A block of whole lines, with as many lines above as make it the only match; the rest of the line stays.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    raw, (first, last) = lines[constant.line].encode(), constant.span
    old = raw[first:last].decode()
    grouped = isinstance(value, int) and not isinstance(value, bool) and "_" in old
    new = f"{value:_}" if grouped else repr(value)
    top, end = constant.line, constant.line + 1
    while top > 0 and sum(lines[i : i + end - top] == lines[top:end] for i in range(len(lines))) > 1:
        top -= 1
    above = lines[top : constant.line]
    after = (raw[:first] + new.encode() + raw[last:]).decode()
    edit = Edit(
        path=constant.path,
        search="\n".join([*above, lines[constant.line], ""]),
        replace="\n".join([*above, after, ""]),
    )
    return edit, old, new
