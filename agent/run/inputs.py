"""Is the data still what this night's first trials were measured on? A listing that is cheap to make before each
trial: paths, sizes and times, where links lead, and what small files say (a pointer to a corpus is one).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.places import place

SMALL = 4096  # bytes: of such a file the contents count, and not its time
MOST_READ = 1000  # small files whose contents are read
MOST_LISTED = 2000  # entries that are named one by one; of more, folder by folder
MOST_WALKED = 200_000  # entries that are looked at; of what lies beyond, folders only
IGNORED = ("__pycache__", ".cache")  # what a library may write beside the data it reads


class Listing:
    """One walk over the data of a contract."""

    def __init__(self):
        self.found: dict[str, str] = {}
        self.read = 0
        self.entered: set[tuple[int, int]] = set()

    def take(self, name: str, path: Path) -> None:
        """This file or folder and all below it."""
        waiting = [(name, str(path))]
        while waiting:
            name, place = waiting.pop()
            try:
                said = f"-> {os.path.realpath(place)} " if os.path.islink(place) else ""
                status = os.stat(place)
                if not stat.S_ISDIR(status.st_mode):
                    self.found[name] = said + self.file(place, status)
                    continue
                self.found[name] = said + "folder"
                if (identity := (status.st_dev, status.st_ino)) in self.entered:
                    continue  # a link back, or data named twice
                self.entered.add(identity)
                if len(self.found) > MOST_WALKED:
                    self.found[name] += f" {status.st_mtime_ns}"
                    continue
                waiting += [(f"{name}/{e}", f"{place}/{e}") for e in os.listdir(place) if e not in IGNORED]
            except OSError as error:
                self.found[name] = error.strerror or "unreadable"

    def file(self, place: str, status: os.stat_result) -> str:
        if status.st_size <= SMALL and self.read < MOST_READ and stat.S_ISREG(status.st_mode):
            self.read += 1
            return hashlib.sha256(Path(place).read_bytes()).hexdigest()[:16]
        return f"{status.st_size} bytes, {status.st_mtime_ns}"

    def short(self) -> dict[str, str]:
        if len(self.found) <= MOST_LISTED:
            return self.found
        folders: dict[str, list[str]] = {}
        for name in sorted(self.found):
            folders.setdefault(name.rpartition("/")[0], []).append(f"{name}\n{self.found[name]}")
        return {name: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] for name, lines in folders.items()}


def listing(root: Path, names: Sequence[str]) -> dict[str, str]:
    """What the data of a contract looks like now; `names` as in program.md, relative ones below `root`."""
    found = Listing()
    for name in names:
        found.take(name, place(root, name))
    return found.short()


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What changed, for the person; "": nothing."""
    other = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if not other:
        return ""
    name = max(other, key=lambda name: name.count("/") * (name in before and name in now))
    what = "is gone" if name not in now else "is new" if name not in before else "changed"
    more = f", and {len(other) - 1} more" if len(other) > 1 else ""
    return f"the data is not what this night began with: {name} {what}{more}; put it back, or begin another with --new"
