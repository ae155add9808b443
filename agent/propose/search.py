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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from agent.errors import EditError, ProposerError
from agent.propose.edits import parse_reply, render
from agent.protocols import Request
from agent.records import Edit, Experiment, Proposal, Reply

Value = bool | int | float | str

OFF_LIMITS = frozenset(
    re.findall(
        r"\w+",
        """SEED STATE BUDGET TIME TIMEOUT SECONDS MINUTES HOURS DEADLINE PATH DIR FOLDER FILE OUTPUT OUT CACHE DATA
        LOG LOGS PRINT REPORT PROGRESS VERBOSE DEBUG EVAL EVALUATE VAL VALIDATION TEST HELDOUT HOLDOUT METRIC VOCAB
        URL HOST PORT VERSION DEVICE WORKERS THREADS""",
    )
)
FIRST = (
    "LR RATE",
    "BATCH",
    "DEPTH LAYER LAYERS WIDTH DIM EMBD HIDDEN",
    "DECAY WARMUP WARMDOWN MOMENTUM BETA",
)
STEPS_PER_OCTAVE = 3
OCTAVES = 2  # a number is tried from a quarter to four times what it is
FROM_ZERO = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
FIRST_STEP = 2  # grid steps of a constant's first try: a factor of 1.6
FAILED = frozenset({"crash", "timeout"})
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Constant:
    """A module-level literal: where it is, what it is, and what it could be."""

    path: str
    name: str
    """`BETAS[1]` for an element of a tuple or list."""
    value: Value
    span: tuple[int, int, int]
    """Line (from 0), first and last byte in it."""
    source: str
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
    """Needs no key. `seed` makes two nights differ."""

    name = "search"
    model = ""
    converses = False

    def __init__(self, seed: int = 0):
        self.seed = seed

    def most_usd(self, request: Request) -> float | None:
        return 0.0

    def propose(self, request: Request) -> Reply:
        """Raises a final ProposerError when there is nothing (left) to try."""
        found = [c for path, text in request.files.items() for c in constants(path, text)]
        if not found:
            raise ProposerError(
                f"search finds no constant in {', '.join(request.files)}: write numbers at the top like "
                "LEARNING_RATE = 1e-3, or use a model (--proposer anthropic, openai or command)",
                final=True,
            )
        tries = list(evidence(request))
        parent = incumbent(request.history)
        seen = {text.replace("\r\n", "\n") for e in request.history for text in e.files.values()}
        fresh = {
            c: [
                i
                for i in untried(c, tries, parent)
                if substitute(c, c.grid[i], request.files[c.path]) not in seen
            ]
            for c in found
        }
        fresh = {c: left for c, left in fresh.items() if left}
        if not fresh:
            raise ProposerError(
                f"search has tried all it can with the {len(found)} constants it finds", final=True
            )
        random_seed = f"{self.seed} {request.number} {len(request.turns)}"
        constant, index, why = choose(fresh, tries, random.Random(random_seed), request.program.metric.name)
        new = constant.grid[index]
        proposal = Proposal(
            hypothesis=f"{constant.name} from {constant.source} to {written(new, constant.source)}: {why}",
            category="hyperparameter",
            edits=(edit(constant, new, request.files[constant.path]),),
        )
        return Reply(text=render(proposal), proposer=self.name)


def choose(
    fresh: dict[Constant, list[int]], tries: Sequence[Try], rng: random.Random, metric: str
) -> tuple[Constant, int, str]:
    """Which constant, the index of its new value, and why. `fresh`: constant -> indices that may be tried."""
    tried = Counter(t.key for t in tries)
    new = sorted((rank(c), i) for i, c in enumerate(fresh) if not tried[c.key])
    if new:
        constant = list(fresh)[new[0][1]]
        here = constant.grid.index(constant.value)
        aim = here + rng.choice((-FIRST_STEP, FIRST_STEP))
        why = "its first try, one moderate step to see whether it matters"
        return constant, nearest(fresh[constant], aim), why
    by_key = {c.key: c for c in fresh}
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=rng.randrange(2**32), n_startup_trials=0),
    )
    study.add_trials(samples(by_key, tries))
    trial = study.ask()
    constant = by_key[trial.suggest_categorical("constant", list(by_key))]
    aim = trial.suggest_int(constant.key, 0, len(constant.grid) - 1)
    gains = [t.gain for t in tries if t.key == constant.key and t.gain is not None]
    best = f", best gain {max(gains):+.2g} of {metric}" if gains else ""
    why = f"tried {tried[constant.key]} times{best}; TPE expects the most of this value"
    return constant, nearest(fresh[constant], aim), why


def samples(by_key: dict[str, Constant], tries: Sequence[Try]) -> Iterator[optuna.trial.FrozenTrial]:
    """The history as Optuna's trials; a failure counts as worse than anything measured."""
    gains = [t.gain for t in tries if t.gain is not None] or [0.0]
    worst = min(0.0, *gains) - (max(abs(g) for g in gains) or 1.0)
    names = CategoricalDistribution(list(by_key))
    for t in tries:
        score = worst if t.failed else t.gain
        if t.key not in by_key or score is None:
            continue
        grid = by_key[t.key].grid
        params: dict[str, Any] = {"constant": t.key}
        distributions: dict[str, BaseDistribution] = {"constant": names}
        if (index := position(grid, t.new)) is not None:
            params[t.key], distributions[t.key] = index, IntDistribution(0, len(grid) - 1)
        yield optuna.trial.create_trial(value=score, params=params, distributions=distributions)


def position(grid: Sequence[Value], value: Value) -> int | None:
    """The index of the grid's nearest value; None outside its range, or where order means nothing."""
    if value in grid:
        return grid.index(value)
    if isinstance(value, str | bool) or not all(isinstance(v, int | float) for v in grid):
        return None
    apart = [abs(float(v) - value) for v in grid]
    return apart.index(min(apart)) if float(grid[0]) <= value <= float(grid[-1]) else None


def nearest(indices: Sequence[int], aim: int) -> int:
    return min(indices, key=lambda i: abs(i - aim))


def rank(constant: Constant) -> int:
    """Those that matter most in most trainings come first."""
    words = words_of(constant.name)
    return next((i for i, group in enumerate(FIRST) if words & set(group.split())), len(FIRST))


# What the history says.


def incumbent(history: Sequence[Experiment]) -> str:
    return next((e.commit or "" for e in reversed(history) if e.verdict and e.verdict.kept), "")


def evidence(request: Request) -> Iterator[Try]:
    """Every change of exactly one constant so far, by whichever proposer, oldest first."""
    measured = {e.commit: e.verdict.metric for e in request.history if e.verdict and e.verdict.kept}
    for e in request.history:
        if e.proposal is None or e.verdict is None or (change := changed(e.proposal)) is None:
            continue
        before, after = measured.get(e.parent), e.verdict.metric
        gain = None if before is None or after is None else request.program.metric.gain(before, after)
        yield Try(*change, parent=e.parent, gain=gain, kept=e.verdict.kept, failed=e.verdict.kind in FAILED)
    for turn in request.turns:
        if turn.role == "assistant":  # sent back before it ran
            with contextlib.suppress(EditError):
                if change := changed(parse_reply(turn.text)):
                    yield Try(*change, parent=incumbent(request.history))


def changed(proposal: Proposal) -> tuple[str, Value, Value] | None:
    """(key, old value, new value) of a proposal that changes one constant, else None."""
    if len(proposal.edits) != 1:
        return None
    edit = proposal.edits[0]
    old, new = ({c.key: c.value for c in quoted(edit.path, text)} for text in (edit.search, edit.replace))
    keys = [key for key in old if key in new and new[key] != old[key]]
    return (keys[0], old[keys[0]], new[keys[0]]) if len(keys) == 1 and len(old) == len(new) else None


def quoted(path: str, text: str) -> list[Constant]:
    """The constants of a block; one that does not parse (it begins inside a string) still has its last line."""
    return constants(path, text) or constants(path, text.rstrip("\n").split("\n")[-1])


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


def constants(path: str, text: str) -> list[Constant]:
    """The literals that may be tuned: assigned once, at the top level, under an upper-case name.

    A name that is assigned again (as under `if CUDA:`) is left alone: here it may have no effect.
    """
    text = text.replace("\r\n", "\n")
    try:
        tree = ast.parse(text) if path.endswith(".py") else ast.Module([], [])
    except (SyntaxError, ValueError, RecursionError):
        return []
    stores = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    lines = text.split("\n")
    found = []
    for statement in tree.body:
        target = (
            statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        )
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name):
            continue
        name, value = target.id, statement.value
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name) or words_of(name) & OFF_LIMITS or stores[name] > 1:
            continue
        if isinstance(value, ast.Tuple | ast.List):
            parts = [(f"{name}[{i}]", node) for i, node in enumerate(value.elts)]
        else:
            parts = [(name, value)]
        for part, node in parts:
            literal = number_of(node)
            if node is None or literal is None or statement.lineno != statement.end_lineno:
                continue
            first, last = node.col_offset, node.end_col_offset or 0
            source = lines[node.lineno - 1].encode()[first:last].decode()
            grid = alternatives(tree, name) if isinstance(literal, str) else grid_of(literal, words_of(name))
            found.append(
                Constant(path, part, literal, (node.lineno - 1, first, last), source, grid or (literal,))
            )
    return found


def words_of(name: str) -> set[str]:
    return {word.rstrip("0123456789") for word in name.split("[")[0].split("_")}


def number_of(node: ast.expr | None) -> Value | None:
    """The value of a plain literal: a number (with its sign), True, False or a string."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number_of(node.operand)
        return -value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if not isinstance(node, ast.Constant) or not isinstance(node.value, bool | int | float | str):
        return None
    return None if isinstance(node.value, float) and not math.isfinite(node.value) else node.value


def alternatives(tree: ast.Module, name: str) -> tuple[str, ...]:
    """The strings that the code compares `name` with, or looks up by it in a literal dict."""
    said: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == name:
            for other in node.comparators:
                said += other.elts if isinstance(other, ast.Tuple | ast.List | ast.Set) else [other]
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name) and node.slice.id == name:
            said += node.value.keys if isinstance(node.value, ast.Dict) else []
        elif isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            said.append(node.value)
    return tuple(sorted({n.value for n in said if isinstance(n, ast.Constant) and isinstance(n.value, str)}))


def grid_of(value: bool | int | float, words: set[str]) -> tuple[bool | int | float, ...]:
    """The values to try around a number, itself among them, in rising order.

    A power of two stays one (not a number of layers), a multiple of 64 a multiple, a share in 0..1 a share.
    Near 1 the distance to 1 is what varies, as for 0.95 and 0.99.
    """
    if isinstance(value, bool):
        return (False, True)
    if value < 0:
        return tuple(-v for v in reversed(grid_of(-value, words)))
    octaves = OCTAVES * STEPS_PER_OCTAVE
    factors = [2.0 ** (k / STEPS_PER_OCTAVE) for k in range(-octaves, octaves + 1) if k]
    if isinstance(value, float):
        if value == 0:
            return FROM_ZERO
        if 0.5 < value < 1:
            values = {round(1 - (1 - value) * f, 4) for f in factors if (1 - value) * f < 1}
        else:
            values = {float(f"{value * f:.2g}") for f in factors if value > 1 or value * f <= 1}
        return tuple(sorted(values | {value}))
    if value == 0:
        return (0, 1, 2, 3, 4)
    unit = value & -value  # the largest power of two that divides it
    if value == unit and value > 1 and not words & {"DEPTH", "LAYER", "LAYERS"}:
        return tuple(value * 2**k // 2**OCTAVES for k in range(2 * OCTAVES + 1) if value * 2**k >= 2**OCTAVES)
    unit = unit if value >= 16 and value != unit else 1
    return tuple(sorted({max(1, round(value / unit * f)) * unit for f in factors} | {value}))


def written(value: Value, source: str) -> str:
    """As Python source, in the style of what it replaces."""
    if isinstance(value, int) and not isinstance(value, bool) and "_" in source:
        return f"{value:_}"
    return repr(value)


def substitute(constant: Constant, value: Value, text: str) -> str:
    """The file with the constant's literal replaced, and nothing else."""
    lines = text.replace("\r\n", "\n").split("\n")
    lines[constant.span[0]] = new_line(constant, value, lines)
    return "\n".join(lines)


def new_line(constant: Constant, value: Value, lines: Sequence[str]) -> str:
    number, first, last = constant.span
    raw = lines[number].encode()
    return (raw[:first] + written(value, constant.source).encode() + raw[last:]).decode()


def edit(constant: Constant, value: Value, text: str) -> Edit:
    """A block of whole lines, with as many lines above as make it the only match."""
    lines = text.replace("\r\n", "\n").split("\n")
    number = constant.span[0]
    top = number
    while top > 0 and times(lines, lines[top : number + 1]) > 1:
        top -= 1
    above = lines[top:number]
    return Edit(
        path=constant.path,
        search="\n".join([*above, lines[number]]) + "\n",
        replace="\n".join([*above, new_line(constant, value, lines)]) + "\n",
    )


def times(lines: Sequence[str], block: Sequence[str]) -> int:
    """How often these lines stand in a row."""
    return sum(list(lines[i : i + len(block)]) == list(block) for i in range(len(lines)))
