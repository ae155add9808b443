"""The second wall, where namespaces can't be had, as in most rented containers: Landlock decides which files a command
may open and whom it may signal, seccomp leaves it no way to connect to anything, and where the loop runs as root each
room has a user id of its own. Weaker than Bubblewrap, and says in what. Source: landlock(7), kernel.org.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.errors import Failure
from agent.run import sandbox, syscalls
from agent.run.installed import program_files
from agent.run.sandbox import SYSTEM, Limits, Room, gpu_nodes, is_below, is_root

WALL = Path(__file__).with_name("wall.py")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
READABLE = 1 << syscalls.CAP_DAC_READ_SEARCH
OVERRIDE = 1 << syscalls.CAP_DAC_OVERRIDE


class Landlock(sandbox.Wall):
    """Raises Failure, with what to do about it, where the kernel has no Landlock, or too little of it."""

    name = "landlock"
    known = frozenset({"see a process of the host"})

    def __init__(self, limits: Limits | None = None, private: Iterable[Path] = ()):
        super().__init__(limits, private)
        version = syscalls.landlock_version()
        if platform.machine() not in syscalls.AUDIT_ARCH or not version:
            raise Failure("this kernel has no Landlock (Linux 5.13 and later, unless it is switched off at boot)")
        if not is_root() and version < syscalls.SIGNALS_SINCE:
            raise Failure("without root it needs Linux 6.12, which keeps a trial from signalling your other processes")
        self.capabilities = reading_capability() if is_root() else 0
        self.weaker = weaknesses(self.capabilities)

    def compiled(self, room: Room) -> Path:
        return room.compiled or room.scratch / "compiled"

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        writable = [room.scratch, *([room.compiled] if room.compiled else []), *room.settings]
        if room.kind != "model":
            writable.append(room.output)
        # Links are followed first: a rule for /lib is one for /usr/lib, and for all in it.
        system = [Path(root).resolve() for root in SYSTEM]
        python = [path.resolve() for path in program_files(room.program or argv[0], room.env)]
        # Without /dev/shm there are no locks between processes. It is the machine's, so the model is not let in: what
        # it leaves there another process of the evaluation, or a later trial, could read.
        shared = [] if room.kind in ("model", "proposer") else ["/dev/shm"]
        spec = {
            "workdir": str(room.workdir),
            "read": by_folder(self._readable(room, system, python)),
            # what Python imports lies beside what is hidden, and it looks through the folder of both
            "list": [str(path.parent) for path in self.hidden if is_below(path, (*system, *python))],
            "write": [*map(str, writable), *shared],
            "devices": [*DEVICES, *gpu_nodes(room.slot)],
            "connects": room.kind == "evaluation",  # to ask for the model's rooms; the evaluation is no code under test
            "online": room.online,
            "capabilities": 0 if room.online else self.capabilities,
            "groups": [],
            "environment": self._environment(room),
        }
        command = [sys.executable, "-I", "-S", str(WALL), json.dumps(spec), *argv]
        own = [path for path in writable if path != room.output or room.kind == "training"]
        counted = [path for path in writable if path not in room.settings]
        # what a proposer has of the person's must stay theirs
        others = own if is_root() and not room.online else None
        return sandbox.guarded(self.limits, room, command, counted=counted, own=others, common=shared)

    def _readable(self, room: Room, system: list[Path], python: list[Path]) -> list[Path]:
        readable = [path for root in system for path in without(root, (*self.private, *self.hidden))]
        readable += [Path("/etc", name) for name in sandbox.ETC]
        readable += [Path("/etc", name) for name in sandbox.ETC_OF_NETWORK if room.online]
        readable += [path for folder in python for path in without(folder, self.hidden)]
        readable += [path for folder in room.data for path in without(folder, (*room.hidden, *self.hidden))]
        return [*readable, room.workdir, room.output, *([room.rooms] if room.rooms else [])]

    def _environment(self, room: Room) -> dict[str, str]:
        """Home keeps its name, because data may lie below it, and stays closed: what libraries would write there goes
        to the scratch folder, as far as they can be told."""
        scratch = str(room.scratch)
        if room.online:
            return {"TMPDIR": scratch}
        caches = dict.fromkeys(("XDG_CACHE_HOME", "CUDA_CACHE_PATH", "TRITON_HOME"), scratch)
        return {**sandbox.USER, "HOME": scratch, **caches, **room.env, "TMPDIR": scratch}


def by_folder(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Paths as names by folder: thousands of them have to fit into an argument of a command."""
    names: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        names.setdefault(str(path.parent), []).append(path.name)
    return names


def without(folder: Path, hidden: Iterable[Path]) -> list[Path]:
    """`folder`, or, where it holds something hidden, all in it that is not: Landlock only ever adds rights."""
    inside = [path for path in hidden if path.is_relative_to(folder)]
    if not inside:
        return [folder]
    if folder in inside or not folder.is_dir():
        return []
    return [path for entry in sorted(folder.iterdir()) if not entry.is_symlink() for path in without(entry, inside)]


def reading_capability() -> int:
    """The bits of the least capability with which another user can read what root can, as in root's home: Landlock
    then decides alone what may be opened. 0 where the container has taken both from root."""
    held = syscalls.capabilities()
    return READABLE if held & READABLE else OVERRIDE if held & OVERRIDE else 0


def weaknesses(capabilities: int) -> tuple[str, ...]:
    """In what this wall is weaker than Bubblewrap, each in words that follow 'a trial can'."""
    said = [
        "see the names and command lines of other processes (give no keys there)",
        "see that files exist, their sizes and owners, by guessing their paths",
        "leave a process behind where its guard is killed by SIGKILL",
    ]
    if not is_root():
        said.append("read, change or fill your files in /dev/shm, and leave some there for a later trial")
        said.append("change the times of your files")
    elif capabilities & OVERRIDE:
        said.append("read, change or fill /dev/shm")
    else:
        said.append("read or fill /dev/shm")
    return tuple(said)
