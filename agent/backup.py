"""A copy of each night's ledger inside the repository's .git, where `git clean` and `rm -r .research` don't reach; made
with every keep (observers/backup.py), and put back at the next start where the ledger is gone or damaged.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import git

from agent.errors import Failure
from agent.ledger import Damaged, Ledger, copy, damage, is_old, lock
from agent.run.leftovers import clear
from agent.storage import Reserve


def copy_path(repo: git.Repo, home: Path) -> Path:
    """Where the copy of the night in `home` lies; projects in several folders of one repository have their own."""
    project = home.parents[1].resolve().relative_to(Path(str(repo.working_dir)).resolve())
    return Path(repo.common_dir) / "overnight" / project / f"{home.name}.db"


def tags_with_refs(repo: git.Repo) -> set[str]:
    """Names of all nights that have a branch or a pinned commit in this repository."""
    wanted = ("git", "for-each-ref", "--format=%(refname)", "refs/heads/research", "refs/experiments")
    names = str(repo.git.execute(list(wanted))).splitlines()  # type: ignore[arg-type]
    branches = {name.removeprefix("refs/heads/research/") for name in names if name.startswith("refs/heads/research/")}
    return branches | {name.split("/")[2] for name in names if name.startswith("refs/experiments/")}


def bring_back(repo: git.Repo, research: Path) -> list[str]:
    """Put back every ledger of a project that is gone though its night's refs are here; what to tell the person."""
    said = []
    for tag in sorted(tags_with_refs(repo)):
        path, backup = research / tag / "ledger.db", copy_path(repo, research / tag)
        if backup.exists() and not (path.exists() and path.stat().st_size):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = lock(path.parent)
            try:
                said.append(restore(path, backup))
            finally:
                held.release()
    return [text for text in said if text]


def open_ledger(repo: git.Repo, home: Path) -> tuple[Ledger, list[str]]:
    """The night's ledger, with this process as its one writer, and what to tell the person. What a killed loop has left
    goes first: it may be what fills the disk. Raises Failure."""
    Reserve(home).free_if_full()
    free_reserves(home)
    held = lock(home)
    try:
        said = [clear(home)]
        if home.name in tags_with_refs(repo):
            said.append(restore(home / "ledger.db", copy_path(repo, home)))
        return Ledger(home, held=held), [text for text in said if text]
    except BaseException:
        held.release()
        raise


def free_reserves(home: Path) -> None:
    """What was set aside for other nights, and left by a kill: nobody works on them now."""
    for path in home.parent.glob("*/reserve"):
        if path.parent != home:
            with contextlib.suppress(Failure):
                held = lock(path.parent)
                Reserve(path.parent).free()
                held.release()


def unreadable(path: Path) -> str:
    """Why what a whole file says is no journal of a night; "" where it is one."""
    if is_old(path):
        return ""
    with contextlib.closing(Ledger(path.parent, readonly=True, name=path.name)) as ledger:
        try:
            ledger.night()
        except Damaged as failure:
            return failure.why
    return ""


def restore(path: Path, backup: Path) -> str:
    """Where the ledger is not whole: its copy put back, and what to tell the person of it. The caller holds the lock.
    Raises Failure where there is no whole copy of what is damaged; a ledger that is only missing is a new night."""
    why = damage(path) or unreadable(path)
    if not why or (not backup.exists() and why in ("it is missing", "it is empty")):
        return ""
    if not backup.exists() or damage(backup) or unreadable(backup):
        raise Damaged(path, why)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-journal"):
        if (old := path.with_name(name)).exists():
            os.replace(old, path.with_name(f"damaged-{stamp}-{name}"))
    copy(backup, path)
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(backup.stat().st_mtime))
    return f"the ledger of {path.parent.name} was not whole ({why}): its copy of {made} is put back"
