"""The chain of kept commits, and the chain made again without some of them: three-way merges by git."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agent.program import Program
from agent.records import Experiment
from agent.workspace import Workspace


class Kept(NamedTuple):
    """One link of the chain: a kept experiment, and the files that it changed, before and after."""

    experiment: Experiment
    before: dict[str, str]
    after: dict[str, str]


def link(workspace: Workspace, program: Program, experiment: Experiment) -> Kept:
    """The files of the contract as the experiment found and left them."""
    before = workspace.read(experiment.parent, program.edit)
    after = workspace.read(experiment.commit or "", program.edit)
    changed = [path for path in program.edit if before[path] != after[path]]
    return Kept(experiment, {p: before[p] for p in changed}, {p: after[p] for p in changed})


def rebuild(workspace: Workspace, start: str, chain: Sequence[Kept], without: set[int]) -> str | None:
    """The chain replayed from `start` without some experiments, each commit with its own message.

    Returns the last commit; None where a three-way merge conflicts, or the outcome is no Python any more.
    """
    tip = start
    for experiment, before, after in chain:
        if experiment.number in without:
            continue
        now = workspace.read(tip, list(after))
        texts = {path: merge(workspace, now[path], before[path], after[path]) for path in after}
        files = {path: text for path, text in texts.items() if text is not None and _parses(path, text)}
        if len(files) < len(texts):
            return None
        message = str(workspace.repo.commit(experiment.commit or "").message)
        tip = workspace.commit_files(tip, files, message, experiment.created)
    return tip


def merge(workspace: Workspace, ours: str, base: str, theirs: str) -> str | None:
    """Git's three-way merge of one text; None where it conflicts."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, name) for name in ("ours", "base", "theirs")]
        for path, text in zip(paths, (ours, base, theirs), strict=True):
            path.write_bytes(text.encode())
        command = ["git", "merge-file", "-p", *map(str, paths)]
        options = {"with_extended_output": True, "with_exceptions": False, "strip_newline_in_stdout": False}
        status, merged, _ = workspace.repo.git.execute(command, **options)  # type: ignore[arg-type,misc]
    return str(merged) if status == 0 else None


def _parses(path: str, text: str) -> bool:
    try:
        ast.parse(text) if path.endswith(".py") else None
    except (SyntaxError, ValueError):
        return False
    return True
