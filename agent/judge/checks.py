"""What a proposal must pass before any GPU time: it runs something new, not tried before, and one change.

Everything here compares the code by its AST without comments, docstrings and layout, so that the same program in
other clothes is the same program. Seeds, clock and evaluation are the business of integrity.py.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations

from agent.propose.edits import syntax_error
from agent.records import Experiment, Proposal, VerdictKind

MOST_PARTS = 3  # unrelated parts of a file that one experiment may change
MOST_SETTINGS = 8  # assigned names that one experiment may change; and code that names more does not tie them together
EVERYWHERE = frozenset(dir(builtins)) | {"self", "cls", "torch", "nn", "F", "np", "math", "Tensor", "x"}


def check(
    proposal: Proposal, before: Mapping[str, str], after: Mapping[str, str], history: Sequence[Experiment]
) -> tuple[VerdictKind, str] | None:
    """Why this change is not worth a trial, or None.

    `before`: every editable file at the incumbent. `after`: the changed ones, or all. `history`: finished
    experiments with their files, the baseline included, oldest first.
    """
    new = {**before, **after}
    for path in sorted(after):
        runs = path not in before or not syntax_error(before[path], path)  # else it is for another Python
        if path.endswith(".py") and runs and (error := syntax_error(after[path], path)):
            return "invalid", error
    mark = fingerprint(new)
    if mark == fingerprint(before):
        return "invalid", "changes nothing that runs: only comments, docstrings or layout differ"
    if same := _tried(mark, new, before, history):
        metric = "" if same.verdict is None or same.verdict.metric is None else f", {same.verdict.metric:.6g}"
        kind = same.verdict.kind if same.verdict else "unknown"
        return "duplicate", f"same code as experiment {same.number}: {kind}{metric}; propose something else"
    return _several(before, new)


def fingerprint(files: Mapping[str, str]) -> str:
    """One hash for the program in these files: path and normalized AST of each; text where it is no Python."""
    parts = [f"{path}\0{_normal(text) if path.endswith('.py') else _plain(text)}" for path, text in files.items()]
    return hashlib.sha256("\1".join(sorted(parts)).encode(errors="surrogatepass")).hexdigest()


# Tried before?


def _tried(
    mark: str, new: Mapping[str, str], before: Mapping[str, str], history: Sequence[Experiment]
) -> Experiment | None:
    """The earlier experiment that ran the same code.

    An experiment records only the files it changed; the others are its parent's, and so on up the chain of kept
    commits. What no kept experiment has changed is as it is now. A file that can't be told so is not guessed: its
    experiment does not count.
    """
    by_commit = {e.commit: e for e in history if e.commit}
    constant = {path: text for path, text in before.items() if not any(_kept(e) and path in e.files for e in history)}
    for experiment in reversed(history):
        if experiment.verdict is None or experiment.verdict.kind in ("invalid", "duplicate"):
            continue
        files: dict[str, str] = {}
        ancestor: Experiment | None = experiment
        seen: set[int] = set()
        while ancestor is not None and ancestor.number not in seen:
            seen.add(ancestor.number)
            files = {**ancestor.files, **files}
            ancestor = by_commit.get(ancestor.parent)
        files = {**constant, **files}
        if new.keys() == files.keys() and fingerprint(files) == mark:
            return experiment
    return None


def _kept(experiment: Experiment) -> bool:
    return experiment.number > 0 and experiment.verdict is not None and experiment.verdict.kept


# One change?


@dataclass
class Part:
    """A top-level definition, an assigned name (of the module, or of a class: a field), or the rest of a file."""

    name: str
    dump: str = ""
    names: Counter[str] = field(default_factory=Counter)
    """Every name, attribute and keyword in it."""
    setting: bool = False
    """It is assigned, not defined."""
    alias: str = ""
    """A field that only passes on a name of the module (`width: int = WIDTH`) stands for that name."""


def _several(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[VerdictKind, str] | None:
    """Refuse a change whose parts fall into more than MOST_PARTS groups that have nothing to do with each other,
    or that gives more than MOST_SETTINGS assigned names another value.

    Two changed parts belong together if one names the other, if what changed in both involves a common name, or if
    some piece of code (before or after) uses both: a function or a statement of the module, or where that names
    more than MOST_SETTINGS assigned names, like a long main, its statements. Doubt speaks for the proposal.
    """
    old, new = _parts(before), _parts(after)
    none = Part("")
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k, none).dump != new.get(k, none).dump]
    values = [k for k in changed if k in old and k in new and old[k].setting and new[k].setting]
    if len(values) > MOST_SETTINGS:
        said = ", ".join(old[k].name for k in values)[:600]
        return "invalid", f"changes {len(values)} settings at once ({said}): propose one idea, with what it needs"
    if len(changed) <= MOST_PARTS:
        return None
    label = {k: (old.get(k) or new[k]).name for k in changed}
    was, now = ({k: side.get(k, none).names for k in changed} for side in (old, new))
    uses = {k: was[k] | now[k] for k in changed}
    moved = {k: {n for n in uses[k] if was[k][n] != now[k][n]} - EVERYWHERE for k in changed}
    pieces = [*_pieces(before, old), *_pieces(after, new)]
    groups = [{k} for k in changed]
    for a, b in combinations(changed, 2):
        together = label[a] in uses[b] or label[b] in uses[a] or moved[a] & moved[b]
        if together or any(label[a] in piece and label[b] in piece for piece in pieces):
            joined = set().union(*(group for group in groups if a in group or b in group))
            groups = [group for group in groups if not group & joined] + [joined]
    if len(groups) <= MOST_PARTS:
        return None
    said = "; ".join(", ".join(sorted(label[k] for k in group)[:6]) for group in groups)
    return "invalid", (f"changes {len(groups)} things that have nothing to do with each other ({said[:600]}): propose "
                       "the one you believe in most, and the others as experiments of their own")  # fmt: skip


def _parts(files: Mapping[str, str]) -> dict[str, Part]:
    """Path:name -> part, for every Python file; any other file is one part."""
    parts: dict[str, Part] = {}

    def add(path: str, name: str, node: ast.AST) -> None:
        part = parts.setdefault(f"{path}:{name}", Part(name))
        part.dump += ast.dump(node) + "\n"
        part.names.update(_names(node))
        part.setting = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
        value = node.value if isinstance(node, ast.AnnAssign) else None
        part.alias = value.id if isinstance(value, ast.Name) else ""

    def walk(path: str, body: Sequence[ast.stmt], rest: str) -> None:
        for node in body:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                plain = len(targets) == 1 and isinstance(targets[0], ast.Name)
                add(path, targets[0].id if plain and isinstance(targets[0], ast.Name) else rest, node)
            elif isinstance(node, ast.ClassDef):
                fields = [n for n in node.body if isinstance(n, ast.Assign | ast.AnnAssign)]
                walk(path, fields, node.name)
                for n in [*node.decorator_list, *node.bases, *node.keywords, *node.body]:
                    if n not in fields:
                        add(path, node.name, n)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                add(path, node.name, node)
            elif isinstance(node, ast.If) and not _is_main(node):
                add(path, rest, node.test)
                walk(path, [*node.body, *node.orelse], rest)
            elif not isinstance(node, ast.Import | ast.ImportFrom):
                add(path, rest, node)

    for path, text in files.items():
        tree = _tree(text) if path.endswith(".py") else None
        if tree is None:
            parts[f"{path}:"] = Part(path, _plain(text))
        else:
            walk(path, tree.body, f"the top level of {path}")
    return parts


def _pieces(files: Mapping[str, str], parts: Mapping[str, Part]) -> Iterator[set[str]]:
    """The sets of names that some piece of the code uses together."""
    settings = {part.name for part in parts.values() if part.setting}
    alias = {part.name: part.alias for part in parts.values() if part.alias}

    def of(node: ast.AST) -> Iterator[set[str]]:
        found = {alias.get(name, name) for name in _names(node)}
        inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.ExceptHandler | ast.match_case)]
        whole = not isinstance(node, ast.Module | ast.ClassDef) and len(found & settings) <= MOST_SETTINGS
        if whole:
            yield found
        for child in inner if not whole else ():
            yield from of(child)

    for path, text in files.items():
        tree = _tree(text) if path.endswith(".py") else None
        if tree is not None:
            yield from of(tree)


def _names(node: ast.AST) -> Iterator[str]:
    for n in ast.walk(node):
        if isinstance(n, ast.Name):
            yield n.id
        elif isinstance(n, ast.Attribute):
            yield n.attr
        elif isinstance(n, ast.keyword | ast.arg) and n.arg:
            yield n.arg


def _is_main(node: ast.If) -> bool:
    return any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))


# The normalized AST.


class _Strip(ast.NodeTransformer):
    """Drop docstrings and every other bare constant: they do nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None


@lru_cache(maxsize=512)
def _tree(text: str) -> ast.Module | None:
    """The stripped tree; None where it does not parse. Shared by every caller: not to be changed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Strip().visit(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@lru_cache(maxsize=4096)
def _normal(text: str) -> str:
    tree = _tree(text)
    return _plain(text) if tree is None else hashlib.sha256(ast.dump(tree).encode(errors="surrogatepass")).hexdigest()


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()
