"""What a proposal must pass before any GPU time: it parses, changes something that runs, and was not tried before.

Seeds, clock and evaluation are the business of integrity.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from agent.records import Experiment, VerdictKind
from agent.source import program_hash, syntax_error


def check(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[VerdictKind, str] | None:
    """Why this change is not worth a trial, whatever was tried before, or None.

    `before`: every editable file at the incumbent. `after`: the changed ones, or all.
    """
    for path in sorted(path for path in after if path.endswith(".py")):
        runs = path not in before or not syntax_error(before[path], path)  # else it is written for another Python
        if runs and (error := syntax_error(after[path], path)):
            return "invalid", error
    if fingerprint({**before, **after}) == fingerprint(before):
        return "invalid", "changes nothing that runs: only comments, docstrings or layout differ"
    return None


def fingerprint(files: Mapping[str, str]) -> str:
    """One hash for the program in these files: equal where only comments, docstrings or layout differ."""
    parts = sorted(f"{path}\0{program_hash(path, text)}" for path, text in files.items())
    return hashlib.sha256("\1".join(parts).encode(errors="surrogatepass")).hexdigest()


def tried(
    before: Mapping[str, str], after: Mapping[str, str], history: Sequence[Experiment]
) -> tuple[VerdictKind, str] | None:
    """That an earlier experiment ran the same code, and how it went, or None. `before` and `after`: as for `check`.

    `history`: finished experiments, the baseline included, oldest first. Each records only the files it changed; the
    others are its parent's, and so on up the chain of kept commits. What no kept experiment has changed is as it is
    now. A file that can't be found so is not guessed: its experiment does not count.
    """
    new = {**before, **after}
    mark = fingerprint(new)
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
            metric = "" if experiment.verdict.metric is None else f", {experiment.verdict.metric:.6g}"
            said = f"same code as experiment {experiment.number}: {experiment.verdict.kind}{metric}"
            return "duplicate", f"{said}; propose something else"
    return None


def _kept(experiment: Experiment) -> bool:
    return experiment.number > 0 and experiment.verdict is not None and experiment.verdict.kept
