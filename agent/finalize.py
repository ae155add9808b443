"""A night's kept commits as a clean branch on the person's own: one commit each with its evidence, or one for all.

Made by git's plumbing: objects and one new branch are written, and nothing else is touched.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import git

from agent.errors import Failure
from agent.judge.audit import AuditReport
from agent.judge.chain import put_onto
from agent.lab_note import SUBJECT, lab_note, number
from agent.program import Program
from agent.records import Experiment
from agent.workspace import Workspace


class Branch(NamedTuple):
    """What was made."""

    name: str
    base: str
    tip: str
    commits: int
    measured: bool
    """The base is what the night began from, so that the branch's end is what was measured."""


def confirmed(report: AuditReport | None, chain: Sequence[Experiment]) -> str:
    """Why an audit does not speak for this chain of kept experiments; "" where one does."""
    if report is None:
        return "its gain was never measured again"
    if (report.baseline, report.final) != (chain[0].commit, chain[-1].commit):
        return "its last audit was of other kept commits"
    if report.gain.interval[0] <= 0:
        return f"the audit did not confirm its gain ({report.gain})"
    return ""


def finalize(
    workspace: Workspace, program: Program, chain: Sequence[Experiment], name: str, onto: str, squash: bool,
    audited: AuditReport | None,
) -> Branch:  # fmt: skip
    """Make the branch `name` of the kept experiments, whole, the baseline first; on the revision `onto`. Raises Failure
    where the branch is there, or a change does not apply."""
    base = commit_of(workspace, onto)
    check_name(workspace, name)
    sign(workspace.repo)
    tip, made = replay(workspace, program, chain, base, onto)
    if not made:
        raise Failure(f"{onto} holds all that this night kept already")
    if squash:
        message = squashed(workspace.tag, program, chain, made, audited)
        tip = workspace.commit_tree(tip, base, message, chain[-1].created)
    workspace.refs.set(f"refs/heads/{name}", tip, "")
    return Branch(name, base, tip, 1 if squash else len(made), same_tree(workspace.repo, base, chain[0].commit or ""))


def replay(
    workspace: Workspace, program: Program, chain: Sequence[Experiment], base: str, onto: str
) -> tuple[str, list[Experiment]]:
    """Each change put onto the one before, the first onto `base`: the last commit, and whose were made. A change
    that is there already makes none."""
    state, tip, made = dict(chain[0].files), base, list[Experiment]()
    merged = max((k for k, e in enumerate(chain) if holds(workspace.repo, base, e.commit or "")), default=0)
    for e in chain[1 : merged + 1]:
        state |= e.files
    for before, e in zip(chain[merged:], chain[merged + 1 :], strict=False):
        now = present(workspace, tip, sorted(e.files), onto)
        files = put_onto(workspace, e.files, {path: state[path] for path in e.files}, now)
        if files is None:
            label = textwrap.shorten(e.label, 60, placeholder="...")
            raise Failure(
                f"#{e.number} ({label}) does not apply to {onto}, where {' and '.join(sorted(e.files))} changed since "
                f"the night began: --onto {(chain[0].commit or '')[:12]} makes the branch where it began, to be merged "
                "by hand"
            )
        if files != now:
            trailers = f"Night: {workspace.tag}\nMeasured-As: {e.commit}\n"
            tip = workspace.commit_files(tip, files, lab_note(e, before, program) + trailers, e.created)
            made.append(e)
        state |= e.files
    return tip, made


def present(workspace: Workspace, commit: str, paths: Sequence[str], onto: str) -> dict[str, str]:
    for path in paths:
        if workspace.read_bytes(commit, path) is None:
            raise Failure(f"{onto} has no file {path}, which this night changed: name another branch with --onto")
    return workspace.read(commit, paths)


def squashed(
    tag: str, program: Program, chain: Sequence[Experiment], made: Sequence[Experiment], audited: AuditReport | None
) -> str:
    """The message of the one commit: what was gained, each change in it, and how sure that is."""
    first, last = chain[0].verdict, chain[-1].verdict
    assert first is not None and last is not None
    before, after = (f"{program.metric.name} {number(verdict.metric)}" for verdict in (first, last))
    subject = textwrap.shorten(f"{before} -> {number(last.metric)} in the night {tag}", SUBJECT, placeholder="...")
    trailers = {"Night": tag, "Metric-Before": before, "Metric-After": after}
    trailers["Audit"] = f"{audited.gain}; {audited.rounds} fresh seeds" if audited else "none"
    trailers["Measured-As"] = chain[-1].commit or ""
    changes = "\n".join(map(change, made))
    return f"{subject}\n\n{changes}\n\n" + "".join(f"{key}: {value}\n" for key, value in trailers.items())


def change(e: Experiment) -> str:
    """One line of a list, folded."""
    told = f"#{e.number} {' '.join(e.label.split())}"
    if e.verdict and e.verdict.interval:
        low, high = e.verdict.interval
        told += f" ({number(e.verdict.effect)} better, {e.verdict.level} {number(low)} .. {number(high)})"
    return textwrap.fill(told, SUBJECT, initial_indent="- ", subsequent_indent="  ")


def commit_of(workspace: Workspace, revision: str) -> str:
    try:
        wanted = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
        return str(workspace.repo.git.execute(wanted))  # type: ignore[arg-type]
    except git.GitCommandError:
        raise Failure(f"--onto {revision} is no branch or commit of this repository") from None


def check_name(workspace: Workspace, name: str) -> None:
    """Raises Failure where no branch of this name can be made."""
    if name.startswith("research/"):
        raise Failure(f"{name} can't be the branch: research/ is where nights keep theirs; choose another --branch")
    try:
        workspace.repo.git.execute(["git", "check-ref-format", "--branch", name])
    except git.GitCommandError:
        raise Failure(f"{name!r} can't name a branch: choose another --branch") from None
    if name in (head.name for head in workspace.repo.heads):
        raise Failure(f"there is a branch {name} already, which stays as it is: choose another --branch")


def sign(repo: git.Repo) -> None:
    """The loop stays the author of what it wrote; who makes this branch is its committer, as git is configured."""
    told: dict[str, str] = {}
    with repo.config_reader() as config:
        for part in ("name", "email"):
            told[f"GIT_COMMITTER_{part.upper()}"] = str(config.get_value("user", part, ""))
    if all(told.values()):
        repo.git.update_environment(**told)


def holds(repo: git.Repo, commit: str, older: str) -> bool:
    """Whether one commit has the other among those before it."""
    try:
        return repo.is_ancestor(repo.commit(older), repo.commit(commit))
    except (git.BadName, ValueError):
        return False


def same_tree(repo: git.Repo, one: str, other: str) -> bool:
    try:
        return repo.commit(one).tree == repo.commit(other).tree
    except (git.BadName, ValueError):
        return False
