"""The chain of kept commits, and the chain made again without some of them: three-way merges by git."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent.program import Program
from agent.protocols import Repository
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
        files = put_onto(workspace, after, before, now)
        if files is None:
            return None
        message = str(workspace.repo.commit(experiment.commit or "").message)
        tip = workspace.commit_files(tip, files, message, experiment.created)
    return tip


def put_onto(
    repository: Repository, files: Mapping[str, str], before: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, str] | None:
    """The change from `before` to `files`, made on the files as they are `now`: path -> text of the changed ones.

    None where a three-way merge conflicts, or the outcome is no Python any more.
    """
    texts = {path: repository.merge(now[path], before[path], text) for path, text in files.items()}
    merged = {path: text for path, text in texts.items() if text is not None and _parses(path, text)}
    return merged if len(merged) == len(texts) else None


def _parses(path: str, text: str) -> bool:
    try:
        ast.parse(text) if path.endswith(".py") else None
    except (SyntaxError, ValueError):
        return False
    return True
