"""The refs of one night: research/<tag>, where its kept chain stands, and refs/experiments/<tag>/, which hold every
commit that was measured.

A ref is moved only from the value that was read, and never away from a commit that this night did not make: such a
branch stays as it is, and the night goes on under a second one; such a pin is saved under a name of its own first.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path

import git

from agent.errors import Failure

STALE_SECONDS = 10.0  # git holds a lock of a ref for milliseconds: one that is older was left by a git that was killed
TRIES = 5
GOES_ON = "-goes-on"  # behind the name of a branch that somebody else has moved


class Refs:
    """`run` is git with the night's safe settings; `common`: the repository's .git, also of a linked worktree."""

    def __init__(self, run: Callable[..., str], common: Path, tag: str):
        self.run, self.common, self.tag = run, common, tag
        self.branch = f"refs/heads/research/{tag}"
        self.second = self.branch + GOES_ON
        self.pinned = f"refs/experiments/{tag}"

    def all(self) -> dict[str, str]:
        """Every ref of this night -> what it points to."""
        names = (self.branch, self.second, self.pinned)
        lines = self.run("for-each-ref", "--format=%(objectname) %(refname)", *names).splitlines()
        return {name: commit for commit, _, name in (line.partition(" ") for line in lines)}

    def at(self, name: str) -> str:
        """What this ref points to; "" where there is none. `all` would read thousands at the end of a long night."""
        try:
            return self.run("rev-parse", "--verify", "--quiet", name).strip()
        except git.GitCommandError:
            return ""

    def pins(self) -> dict[int, str]:
        """Experiment -> its pinned commit."""
        pairs = ((name.removeprefix(f"{self.pinned}/"), commit) for name, commit in self.all().items())
        return {int(name): commit for name, commit in pairs if name.isdigit()}

    def checked_out(self) -> set[str]:
        lines = self.run("worktree", "list", "--porcelain").splitlines()
        return {line.removeprefix("branch ") for line in lines if line.startswith("branch ")}

    def claim(self, known: Collection[str], restored: bool = False) -> None:
        """At the start: may this night, whose ledger names these commits, move its refs? A ledger that was put back
        from a copy may not know the last of them. Raises Failure, one line."""
        refs, name = self.all(), f"research/{self.tag}"
        for other in self.run("for-each-ref", "--format=%(refname)", "refs/heads/research").splitlines():
            if other == "refs/heads/research" or other.startswith(f"{self.branch}/"):
                short = other.removeprefix("refs/heads/")
                raise Failure(f"git can't make {name} beside the branch {short}: rename that one (git branch -m)")
        if not known and refs:
            raise Failure(
                f"{name} or its refs/experiments/{self.tag}/ are here, but no ledger of such a night: choose another "
                f"--tag, or put the ledger back at .research/{self.tag}/ledger.db"
            )
        tip = refs.get(self.branch, "")
        if tip and tip not in known and refs.get(self.second) not in known and not restored:
            raise Failure(
                f"{name} stands at {tip[:12]}, which this night did not make: keep that under another name "
                f"(git branch -m {name} NAME) and start again, or choose another --tag"
            )
        if self.branch in self.checked_out():
            raise Failure(f"{name} is checked out, and the loop moves it: check out another branch first")

    def advance(self, commit: str, ours: Collection[str]) -> str:
        """Move the night's branch to a kept commit; what there is to say of it. A branch that stands at what is not
        one of `ours`, or is checked out somewhere, is left alone."""
        checked_out, why = self.checked_out(), ""
        for name in (self.branch, self.second):
            found = self.at(name)
            if found == commit:
                return ""
            if found and found not in ours:
                why = why or f"was moved to {found[:12]} by somebody else"
            elif name in checked_out:
                why = why or "is checked out"
            elif (now := self.try_to_set(name, commit, found)) != commit:
                why = why or f"was moved to {now[:12]} by somebody else"
            else:
                return self.told(why, found) if name == self.second else ""
        return f"research/{self.tag} {why}: the kept commits are at {self.pinned}/ alone"

    def told(self, why: str, before: str) -> str:
        second = self.second.removeprefix("refs/heads/")
        said = f"research/{self.tag} {why} and stays as it is: the night goes on under {second}"
        return "" if before else said  # once

    def new_branch(self, name: str, commit: str) -> str:
        """research/<name> at this commit, with a number behind it where there is another of that name."""
        heads = self.run("for-each-ref", "--format=%(refname:lstrip=3) %(objectname)", "refs/heads/research/")
        taken = dict(line.split() for line in heads.splitlines())
        names = [name, *(f"{name}-{n}" for n in range(2, 1000))]
        free = next(one for one in names if taken.get(one, commit) == commit)
        if free not in taken:
            self.set(f"refs/heads/research/{free}", commit, "")
        return f"research/{free}"

    def pin(self, number: int, commit: str, ours: Collection[str]) -> None:
        """Keep an experiment's commit for ever, whatever was decided about it."""
        self.keep(f"{self.pinned}/{number}", commit, ours)

    def pin_older(self, number: int, commit: str) -> None:
        """Keep a commit that its experiment was measured on before it was put onto a newer incumbent."""
        self.keep(f"{self.pinned}/{number}-{commit[:12]}", commit, ())

    def keep(self, name: str, commit: str, ours: Collection[str]) -> None:
        found = self.at(name)
        if found == commit:
            return
        if found and found not in ours:
            saved = f"{self.pinned}/saved-{found[:12]}"
            self.set(saved, found, self.at(saved))
        self.set(name, commit, found)

    def set(self, name: str, commit: str, before: str) -> None:
        """Only from this value ("": from nothing). Raises Failure where git can't."""
        for attempt in range(TRIES):
            try:
                self.run("update-ref", name, commit, before or "0" * len(commit))
                return
            except git.GitCommandError as error:
                said = str(error.stderr).strip()
            if attempt == TRIES - 1 or not self.outlast(self.common / f"{name}.lock"):
                break
        raise Failure(f"git can't move {name.removeprefix('refs/heads/')}: {said}")

    def try_to_set(self, name: str, commit: str, before: str) -> str:
        """Where the ref stands then: elsewhere, if somebody moved it just now. Raises Failure where git can't."""
        try:
            self.set(name, commit, before)
        except Failure:
            if (now := self.at(name)) in ("", before):
                raise
            return now
        return commit

    def outlast(self, lock: Path) -> bool:
        """Wait until this lock is gone, and remove it once no living git can be its owner. False: there is none."""
        if not lock.exists():
            return False
        until = time.monotonic() + STALE_SECONDS
        while lock.exists() and time.monotonic() < until and age(lock) < STALE_SECONDS:
            time.sleep(0.05)
        lock.unlink(missing_ok=True)
        return True

    def clear_stale_locks(self) -> None:
        """At the start: what a killed git left beside the refs that only this night writes."""
        for name in (self.branch, self.second):
            (self.common / f"{name}.lock").unlink(missing_ok=True)
        for lock in (self.common / self.pinned).glob("*.lock"):
            lock.unlink(missing_ok=True)


def branch_at(project: Path, tag: str, tip: str) -> str:
    """The branch that stands at the night's last kept commit: research/<tag>, or the one beside it where somebody else
    has moved that."""
    wanted = [f"refs/heads/research/{tag}{more}" for more in ("", GOES_ON)]
    command = ["git", "for-each-ref", f"--points-at={tip}", "--format=%(refname:lstrip=2)", *wanted]
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True) if tip else None
    return next(iter(ran.stdout.split()), f"research/{tag}") if ran else f"research/{tag}"


def age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0
