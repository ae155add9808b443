"""What trials need not compile again: kernels compiled for a commit, and Python's own compiled modules.

Entries of a compile cache are code that later trials run. So they go only where the code that made them goes: a trial
starts from a copy of what its own experiment compiled, or else of what the kept experiment it builds on compiled. An
experiment that is not kept leaves nothing, and one that is taken back takes its entries with it. Entries hold absolute
paths, so they serve only at the place where they were made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 4 << 30  # of one experiment's entries
DEEPEST = 32  # folders; no compiler nests deeper


class CompileCache:
    """Below `home`: a folder for each experiment and place."""

    def __init__(self, home: Path):
        self._home = home

    def lend(self, experiment: int, builds_on: int | None, place: Path, to: Path) -> None:
        """Fill the empty folder `to` with what a trial of this experiment may start from."""
        for maker in (experiment, builds_on):
            if maker is not None and (kept := self._folder(maker, place)).is_dir():
                shutil.copytree(kept, to, dirs_exist_ok=True)
                return

    def take(self, experiment: int, place: Path, made: Path) -> None:
        """Save what a working trial compiled and its experiment's trials before it did not. A later one compiles a few
        kernels more, where what the first one had tried out is found in the cache."""
        folder = self._folder(experiment, place)
        if folder.is_dir() and all((folder / path).exists() for path, _ in plain_files(made)):
            return
        part, old = (folder.with_name(f"{folder.name}.{os.getpid()}{end}") for end in ("", ".old"))
        part.mkdir(parents=True, exist_ok=True)
        copy_plain(folder, part)
        copy_plain(made, part, MOST_BYTES - sum(about.st_size for _, about in plain_files(part)))
        with contextlib.suppress(OSError):  # whole or not at all; two trials of an experiment may end at once
            if folder.is_dir():
                folder.rename(old)
            part.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    def forget(self, experiment: int) -> None:
        shutil.rmtree(self._home / str(experiment), ignore_errors=True)

    def _folder(self, experiment: int, place: Path) -> Path:
        return self._home / str(experiment) / hashlib.sha256(str(place).encode()).hexdigest()[:16]


class ModuleCache:
    """Python's compiled modules of the interpreter and its packages, read-only for trials.

    Images often ship packages without them, and a trial can't write where they would belong, so that each import
    would compile torch anew: 9 to 14 s a trial. The first trial of the unchanged program fills this cache.
    """

    def __init__(self, home: Path):
        self._home = home

    @property
    def needed(self) -> bool:
        """Whether Python or an installed package lacks its compiled modules."""
        return any(not (folder / "__pycache__").is_dir() for folder in packages())

    @property
    def filled(self) -> bool:
        return self._home.is_dir()

    @property
    def folder(self) -> Path:
        return self._home

    def take(self, made: Path) -> None:
        """Adopt what was compiled of the interpreter's own folders; nothing of the commit's own modules."""
        part = self._home.with_name(f"{self._home.name}.{os.getpid()}")
        part.mkdir(parents=True)
        for folder in map(Path, dict.fromkeys(python_folders())):
            inside = folder.relative_to(folder.anchor)
            copy_plain(made / inside, part / inside)
        with contextlib.suppress(OSError):  # another of the first trials was faster
            part.rename(self._home)
        shutil.rmtree(part, ignore_errors=True)


def packages() -> Iterator[Path]:
    """Folders whose modules a trial is likely to import: the standard library's, and each installed package's."""
    yield Path(sysconfig.get_path("stdlib"))
    for folder in python_folders():
        if folder.endswith("-packages") and os.path.isdir(folder):
            yield from (path.parent for path in Path(folder).glob("*/__init__.py"))


def python_folders() -> list[str]:
    """Where this interpreter's modules lie, the person's repository left out."""
    return [sysconfig.get_path("stdlib"), *(path for path in sys.path if path.endswith("-packages"))]


def copy_plain(source: Path, target: Path, most_bytes: int = MOST_BYTES) -> None:
    """Copy the plain files that `target` lacks, `most_bytes` at most."""
    for path, about in plain_files(source):
        to = target / path
        if to.exists():
            continue
        most_bytes -= about.st_size
        if most_bytes < 0:
            return
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, to, follow_symlinks=False)
        os.chmod(to, about.st_mode & 0o755 | 0o644)


def plain_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The paths, relative to `folder`, of the plain files below it; no links are followed, and no odd depths."""
    waiting = [(folder, 0)]
    while waiting:
        inside, depth = waiting.pop()
        try:
            entries = list(os.scandir(inside))
        except OSError:
            continue
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode) and depth < DEEPEST:
                waiting.append((inside / entry.name, depth + 1))
            elif stat.S_ISREG(about.st_mode):
                yield Path(entry.path).relative_to(folder), about


def compiled_modules(folder: Path | None) -> dict[str, str]:
    """Environment under which Python looks for compiled modules in `folder`."""
    return {} if folder is None else {"PYTHONPYCACHEPREFIX": str(folder)}
