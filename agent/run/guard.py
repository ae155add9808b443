"""Stands outside the room for as long as a trial lives: limits what it takes, and ends it with its parent.

Run as a script by its path, isolated from the commit under test, so it imports the standard library only:
`python -I -S guard.py LIMITS_JSON BWRAP OPTIONS... COMMAND...`. It exits with the command's own status.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import time

PAGE = resource.getpagesize()
POLL_SECONDS = 0.05
OVER_LIMIT = 77  # exit status of a trial that was ended here; the reason is its last line on stderr
PR_SET_PDEATHSIG = 1

# System calls with no use in training that namespaces don't contain: kernel keyrings, bpf, perf, io_uring,
# userfaultfd, and sockets beyond the network namespace (vsock reaches a virtual machine's host).
ARCHES = {
    "x86_64": (0xC000003E, 41, (250, 248, 249, 321, 298, 425, 426, 427, 323, 246, 320, 175, 313, 176)),
    "aarch64": (0xC00000B7, 198, (219, 217, 218, 280, 241, 425, 426, 427, 282, 104, 294, 105, 273, 106)),
}
SOCKETS = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK


def seccomp() -> bytes:
    """A classic BPF program (see seccomp(2)): EPERM for ARCHES' calls and for sockets not in SOCKETS."""
    arch, socket, denied = ARCHES[platform.machine()]

    def step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, k)

    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    code = [step(load, 4), step(equal, arch, 1, 0), step(give, kill), step(load, 0)]
    code += [step(at_least, 0x40000000, 0, 1), step(give, refuse)]  # the x32 numbers of x86_64
    for call in denied:
        code += [step(equal, call, 0, 1), step(give, refuse)]
    code += [step(equal, socket, 1, 0), step(give, allow), step(load, 16)]
    for family in SOCKETS:
        code += [step(equal, family, 0, 1), step(give, allow)]
    return b"".join([*code, step(give, refuse)])


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


def private_bytes(pid: int) -> int:
    """Resident memory that it shares with no file and no tmpfs; 0 for a process that has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            resident, shared = file.read().split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * PAGE


def folder_size(folder: str, files: int) -> tuple[int, int]:
    """(bytes on disk, entries) below `folder`; the count stops soon after `files`."""
    size, count, waiting = 0, 0, [folder]
    while waiting and count <= files:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            count += 1
            try:
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
            except OSError:
                continue
    return size, count


def excess(root: int, limits: dict, look_at_disk: bool) -> str | None:
    """What is over its limit, in words; None when all is well."""
    running = tree(root)
    if (threads := sum(running.values())) > limits["processes"]:
        return f"{threads} processes and threads, over the limit of {limits['processes']}"
    if (memory := sum(map(private_bytes, running))) > limits["memory"]:
        return f"{memory / 1e9:.1f} GB of memory, over the limit of {limits['memory'] / 1e9:.1f} GB"
    if look_at_disk:
        size, count = folder_size(limits["output"], limits["files"])
        if size > limits["disk"]:
            return f"{size / 1e9:.1f} GB written, over the limit of {limits['disk'] / 1e9:.1f} GB"
        if count > limits["files"]:
            return f"more than {limits['files']} files written"
    return None


def start(argv: list[str], limits: dict) -> int:
    """Start bwrap in a session of its own, with its limits; returns its pid."""
    rules = os.memfd_create("seccomp", 0) if platform.machine() in ARCHES else None
    if rules is not None:
        os.write(rules, seccomp())
        os.lseek(rules, 0, os.SEEK_SET)
        argv = [argv[0], "--seccomp", str(rules), *argv[1:]]
    guard, pid = os.getpid(), os.fork()
    if pid:
        if rules is not None:
            os.close(rules)
        return pid
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        os.setsid()
        die_with_parent(guard)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["disk"], limits["disk"]))
        resource.setrlimit(resource.RLIMIT_DATA, (limits["segment"], limits["segment"]))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out all the same, this is what the kernel ends first
        os.execve(argv[0], argv, {})  # bwrap's own environment can be read in the room as /proc/1/environ
    except OSError as error:
        print(f"sandbox: {argv[0]} does not start: {error}", file=sys.stderr, flush=True)
    os._exit(127)


def die_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it was gone before we asked


def main() -> int:
    limits, argv = json.loads(sys.argv[1]), sys.argv[2:]
    die_with_parent(os.getppid())
    child = 0

    def ask_to_end(*_: object) -> None:
        """SIGTERM to the command and what it started; bwrap's own two processes would end at once of it."""
        everything = processes()
        for pid in tree(child):
            if pid in everything and everything[pid][0] != child:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)

    child = start(argv, limits)
    with contextlib.suppress(OSError):  # for root, whose processes the kernel doesn't count, this must come first
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    signal.signal(signal.SIGTERM, ask_to_end)
    pause, disk_at = POLL_SECONDS, 0.0
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        began, worked = time.monotonic(), time.thread_time()
        if reason := excess(child, limits, look_at_disk=began >= disk_at):
            print(f"\nsandbox: {reason}; the trial was ended", file=sys.stderr, flush=True)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return OVER_LIMIT
        cost = time.thread_time() - worked
        pause = max(POLL_SECONDS, 50 * cost)  # watching takes at most 2% of a core
        disk_at = disk_at if began < disk_at else began + max(0.5, 20 * cost)
        wait_for_child(pause)


def wait_for_child(seconds: float) -> None:
    """Sleep, but wake at once when a child ends."""
    signal.sigtimedwait([signal.SIGCHLD], seconds)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    sys.exit(main())
