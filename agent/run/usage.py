"""What the processes of a room take of the machine: memory, wherever it lies, and disk. guard.py uses it, isolated from
every installed package.

Memory is what is theirs alone, and what lies in the kernel's own file systems in memory: /tmp and /dev/shm of the room,
files without a name (memfd, shared mappings) while a process holds or maps them. What is read of files on disk is left
out: the kernel drops it when memory is short. A control group would count the same, but most containers have none that
can be written.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import stat
import time
from collections.abc import Container, Iterable, Iterator

PAGE = resource.getpagesize()
DEEPEST = 64  # folders in one another; no training nests deeper, and each is held open while its files are counted
File = tuple[int, int]  # device and number


def processes() -> dict[int, tuple[int, int]]:
    """pid -> (parent, threads) of everything that runs."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b") ")[2].split()
            except OSError:
                continue  # it ended between the listing and the reading
            found[int(name)] = (int(fields[1]), int(fields[17]))
    return found


def tree(root: int) -> dict[int, int]:
    """pid -> threads of `root`'s descendants."""
    everything = processes()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in everything.items():
        children.setdefault(parent, []).append(pid)
    found, waiting = {}, [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            found[pid] = everything[pid][1]
            waiting.append(pid)
    return found


def alone(pid: int) -> int:
    """Bytes in memory that it has in common with no file; 0 for a process that has ended."""
    return resident(pid)[0]


def resident(pid: int) -> tuple[int, int]:
    """Bytes in memory that it has in common with no file, and with one."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            whole, shared = map(int, file.read().split()[1:3])
    except OSError:
        return 0, 0
    return (whole - shared) * PAGE, shared * PAGE


class Held:
    """What the processes of a room hold, map or have put into the kernel's file systems in memory, and files on disk
    that have no name any more. `mounts`: what of the room lies in memory, by paths in it; `folders`: on disk; `common`:
    folders in memory that are the machine's own. What lies there counts where it belongs to the room's `user`, or,
    where there is none, to this one, and is new."""

    def __init__(self, mounts: Iterable[str], folders: Iterable[str], common: Iterable[str], user: int | None):
        self.mounts, self.common = list(mounts), list(common)
        self.user, self.since = (os.getuid(), time.time()) if user is None else (user, 0.0)
        self.disks = {os.stat(folder).st_dev for folder in folders}
        nameless = os.memfd_create("device")
        self.memory = {os.fstat(nameless).st_dev}
        os.close(nameless)
        with contextlib.suppress(OSError):
            self.memory.add(os.stat("/dev/shm").st_dev)
        devices = b"|".join(b"%02x:%02x" % (os.major(device), os.minor(device)) for device in self.memory)
        self.mapping = re.compile(
            rb"(?m)^(\w+)-(\w+) \S+ (\w+) (?:(%s) (\d+) .*|(\S+) (\d+) .* \(deleted\))$" % devices
        )

    def look(self, pids: Iterable[int]) -> tuple[int, int]:
        """Bytes in memory, and on disk without a name."""
        pids, sizes, hidden = list(pids), dict[File, int](), 0
        spaces = dict(filter(None, (self._space(mount, pids) for mount in self.mounts)))
        for pid in pids:
            for found in opened(pid):
                if stat.S_ISREG(found.st_mode):
                    self._add(sizes, found)
        for pid in pids:
            hidden += self._mapped(pid, sizes, spaces)
        for _, found in (found for folder in self.common for found in below(folder, skips=True)):
            if found.st_uid == self.user and found.st_ctime >= self.since:
                self._add(sizes, found)
        disk = sum(size for (device, _), size in sizes.items() if device not in self.memory)
        memory = sum(size for (device, _), size in sizes.items() if device in self.memory)
        return memory + sum(spaces.values()) + hidden, disk

    def _add(self, sizes: dict[File, int], found: os.stat_result) -> None:
        if found.st_dev in self.memory - self.disks or (found.st_dev in self.disks and not found.st_nlink):
            sizes[found.st_dev, found.st_ino] = found.st_blocks * 512

    def _space(self, mount: str, pids: list[int]) -> tuple[int, int] | None:
        """(device, bytes used) of what is mounted there in the room. Where that is what is mounted there outside, the
        room is not made yet."""
        for pid in pids:
            with contextlib.suppress(OSError):
                place = os.open(f"/proc/{pid}/root{mount}", os.O_PATH)
                try:
                    device, space = os.fstat(place).st_dev, os.statvfs(f"/proc/self/fd/{place}")
                finally:
                    os.close(place)
                if not os.path.exists(mount) or device != os.stat(mount).st_dev:
                    return device, (space.f_blocks - space.f_bfree) * space.f_frsize
        return None

    def _mapped(self, pid: int, sizes: dict[File, int], counted: Container[int]) -> int:
        """Add what this process maps without holding it open. Bytes of that whose size can't be asked for, which takes
        root's rights: there its own share of the pages counts."""
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                text = file.read()
        except OSError:
            return resident(pid)[1]  # it hides, so all that it has counts
        unknown = False
        for start, end, offset, *memory, device, number in self.mapping.findall(text):
            in_memory = bool(memory[0])
            device, number = memory if in_memory else (device, number)
            key = os.makedev(*(int(part, 16) for part in device.split(b":"))), int(number)
            if key in sizes or key[0] in counted:
                continue
            try:
                self._add(sizes, os.stat(b"/proc/%d/map_files/%s-%s" % (pid, start.lstrip(b"0"), end.lstrip(b"0"))))
            except OSError:
                unknown |= in_memory
                if not in_memory:
                    sizes[key] = int(offset, 16) + int(end, 16) - int(start, 16)
        return shared_pages(pid) if unknown else 0


def shared_pages(pid: int) -> int:
    """Bytes of files in memory that this process maps, its share of them."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith(b"Pss_Shmem:"))
    return 0


def opened(pid: int) -> Iterator[os.stat_result]:
    """The files that this process has open."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.stat(f"/proc/{pid}/fd/{name}")


class Unreadable(Exception):
    """A folder whose owner has taken the right to read it away, so that nobody can count what is in it."""


def folder_size(folders: Iterable[str], most: int) -> tuple[int, int, int]:
    """(bytes on disk, entries, depth) below the folders; the count stops soon after `most` entries, or DEEPEST. Raises
    Unreadable."""
    size, count, deepest = 0, 0, 0
    for folder in folders:
        for depth, found in below(folder):
            size, count, deepest = size + found.st_blocks * 512, count + 1, max(deepest, depth)
            if count > most or deepest > DEEPEST:
                return size, count, deepest
    return size, count, deepest


def below(folder: str, skips: bool = False) -> Iterator[tuple[int, os.stat_result]]:
    """(depth, what it is) of all that lies in a folder, down to DEEPEST; no path is too long, since each folder is
    opened from the one above. What can't be read is left out where it `skips`. Raises Unreadable."""
    waiting: list[tuple[int, list[str]]] = []  # folders that are open, and names in them that are still to be entered
    try:
        name, parent = folder, None
        while True:
            try:
                here = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            except OSError as error:
                if isinstance(error, PermissionError) and not skips:
                    raise Unreadable from None
                here = None  # it has gone meanwhile
            if here is not None:
                waiting.append((here, []))
                with os.scandir(here) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            yield len(waiting), entry.stat(follow_symlinks=False)
                            if entry.is_dir(follow_symlinks=False) and len(waiting) <= DEEPEST:
                                waiting[-1][1].append(entry.name)
            while waiting and not waiting[-1][1]:
                os.close(waiting.pop()[0])
            if not waiting:
                return
            name, parent = waiting[-1][1].pop(), waiting[-1][0]
    finally:
        for opened_folder, _ in waiting:
            os.close(opened_folder)
