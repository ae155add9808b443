"""Stands between this program and a room for as long as it lives: limits what the room takes, and ends it for sure.

Run as a script by its path, isolated from the commit under test: `python -I -S guard.py LIMITS_JSON COMMAND...`, where
the command makes the room (bwrap, or wall.py) and exits with the status of what runs in it, and so does this.
SIGTERM asks what runs in the room to end; SIGHUP, also sent by the kernel when the loop dies, ends everything at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from agent.run import syscalls  # noqa: E402
from agent.run.usage import DEEPEST, Held, Unreadable, alone, folder_size, processes, tree  # noqa: E402

POLL_SECONDS, LONGEST_PAUSE = 0.05, 1.0
# Of these the kernel counts what a user has, and a room may be root's: signals and timers that wait, bytes of queues.
KERNEL = {resource.RLIMIT_SIGPENDING: 4096, resource.RLIMIT_MSGQUEUE: 0}
OVER_LIMIT = 77  # exit status of a trial that was ended here; the reason is its last line on stderr


class Watch:
    """What is over a limit, in words. What costs more to read is read less often, and counts as it was meanwhile."""

    def __init__(self, limits: dict, user: int | None):
        self.limits, self.held, self.at = limits, Held(limits["mounts"], limits["folders"], limits["common"], user), 0.0
        self.in_memory = 0

    def excess(self) -> str | None:
        """None: nothing."""
        limits, running = self.limits, tree(os.getpid())
        if (threads := sum(running.values())) > limits["processes"]:
            return f"{threads} processes and threads, over the limit of {limits['processes']}"
        memory = sum(alone(pid) for pid in running)
        if memory <= limits["memory"] and time.monotonic() >= self.at:
            worked = time.thread_time()
            found = self._written(running)
            self.at = time.monotonic() + max(0.1, 20 * (time.thread_time() - worked))
            if found:
                return found
        if memory + self.in_memory > limits["memory"]:
            return (
                f"{(memory + self.in_memory) / 1e9:.1f} GB of memory, over the limit of {limits['memory'] / 1e9:.1f} GB"
            )
        return None

    def _written(self, running: Iterable[int]) -> str | None:
        limits = self.limits
        self.in_memory, nameless = self.held.look(running)
        try:
            size, files, depth = folder_size(limits["folders"], limits["files"])
        except Unreadable:
            return "a folder was made that can't be read, so what is in it can't be counted"
        if size + nameless > limits["disk"]:
            return f"{(size + nameless) / 1e9:.1f} GB written, over the limit of {limits['disk'] / 1e9:.1f} GB"
        if files > limits["files"]:
            return f"more than {limits['files']} files written"
        return f"folders nested more than {DEEPEST} deep" if depth > DEEPEST else None


def own_user(limits: dict) -> tuple[int, socket.socket] | None:
    """A user id that no other room has, and what holds it as long as this process lives; None: not needed.

    The folders in limits["own"] become that user's. Only root can do so. Raises OSError.
    """
    if limits["own"] is None:
        return None
    user, held = free_user()
    kill_all_of(user)  # of a room whose guard was killed
    clear_shared_memory(user)
    for folder in limits["own"]:
        for path, _, names in os.walk(folder):
            for name in ["", *names]:
                os.lchown(os.path.join(path, name), user, user)
    return user, held


def free_user() -> tuple[int, socket.socket]:
    """The first of these that has no account and no room; a name in the kernel, gone with this process, says so."""
    for user in syscalls.USERS:
        try:
            pwd.getpwuid(user)
        except KeyError:
            held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(OSError):
                held.bind(f"\0overnight-user-{user}")
                return user, held
            held.close()
    raise OSError(f"all user ids from {syscalls.USERS.start} to {syscalls.USERS.stop} are taken")


def ask_to_end(child: int, layers: int) -> None:
    """SIGTERM to what runs in the room, not to the `layers` of processes that make it: bwrap would end at once."""
    everything = processes()
    spared, generation = set(), {child}
    for _ in range(layers):
        spared |= generation
        generation = {pid for pid, (parent, _) in everything.items() if parent in generation}
    for pid in tree(os.getpid()):
        if pid not in spared:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)


def start(argv: list[str], limits: dict, user: int | None) -> int:
    """Start what makes the room in a session of its own, with its limits; returns its pid."""
    filter_end = None
    if limits["filter"]:  # for bwrap, which wants it as an open file
        filter_end = os.memfd_create("seccomp", 0)
        os.write(filter_end, bytes.fromhex(limits["filter"]))
        os.lseek(filter_end, 0, os.SEEK_SET)
        argv = [argv[0], "--seccomp", str(filter_end), *argv[1:]]
    guard, pid = os.getpid(), os.fork()
    if pid:
        if filter_end is not None:
            os.close(filter_end)
        return pid
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        os.setsid()
        syscalls.die_with_parent(guard, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["disk"], limits["disk"]))
        resource.setrlimit(resource.RLIMIT_DATA, (limits["segment"], limits["segment"]))
        for kind, most in KERNEL.items():
            before = resource.getrlimit(kind)[1]
            most = most if before == resource.RLIM_INFINITY else min(most, before)
            resource.setrlimit(kind, (most, most))
        if user is not None:  # the kernel counts the processes of a user; of root it counts none
            resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out all the same, this is what the kernel ends first
        # else an empty environment: bwrap's own can be read in the room as /proc/1/environ
        given = dict(os.environ) if limits["inherits"] else {}
        os.execve(argv[0], argv, given if user is None else {**given, syscalls.USER: str(user)})
    except OSError as error:
        print(f"sandbox: {argv[0]} does not start: {error}", file=sys.stderr, flush=True)
    os._exit(127)


def end_everything(user: int | None) -> None:
    """SIGKILL to all that was started here, again until nothing is left. Orphans are children of this process, and
    where the room has a user of its own, all that this user runs or left in shared memory is the room's."""
    until = time.monotonic() + 10
    while (left := tree(os.getpid())) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if user is not None:
            kill_all_of(user)
        ended_children(0)
        wait_for_child(0.01)
    if user is not None:
        clear_shared_memory(user)


def kill_all_of(user: int) -> None:
    """SIGKILL to every process of this user, by a process that becomes it."""
    if not (killer := os.fork()):
        os.setresuid(user, user, user)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        os._exit(0)
    os.waitpid(killer, 0)


def clear_shared_memory(user: int) -> None:
    """Delete what this user has in /dev/shm, which without namespaces is the machine's."""
    for entry in os.scandir("/dev/shm"):
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid == user:
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def ended_children(child: int) -> int | None:
    """Let the kernel forget children that have ended; the status of `child` once it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = ended[1] if ended[0] == child else status
    return status


def wait_for_child(seconds: float) -> None:
    """Sleep, but wake at once when a child ends."""
    signal.sigtimedwait([signal.SIGCHLD], seconds)


def renumber_files() -> None:
    """Give the files that were handed over the numbers under which the command expects them."""
    for pair in os.environ.pop(syscalls.FILES, "").split():
        file, number = map(int, pair.split(":"))
        os.dup2(file, number, inheritable=True)
        os.close(file)


def main() -> int:
    renumber_files()
    limits, argv = json.loads(sys.argv[1]), sys.argv[2:]
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    syscalls.die_with_parent(int(os.environ.pop(syscalls.PARENT, os.getppid())), signal.SIGHUP)
    syscalls.adopt_orphans()
    try:
        mine = own_user(limits)
        user = mine[0] if mine else None
        child = start(argv, limits, user)
    except OSError as error:
        print(f"sandbox: the room can't be made: {error}", file=sys.stderr, flush=True)
        return 127
    with contextlib.suppress(OSError):  # for root, whose processes the kernel doesn't count, this must come first
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    pause, watch = POLL_SECONDS, Watch(limits, user)
    while True:
        if signal.SIGHUP in asked:
            end_everything(user)
            return 128 + signal.SIGKILL
        if signal.SIGTERM in asked:
            asked.clear()
            ask_to_end(child, limits["layers"])
        if (status := ended_children(child)) is not None:
            end_everything(user)
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        worked = time.thread_time()
        if reason := watch.excess():
            print(f"\nsandbox: {reason}; the trial was ended", file=sys.stderr, flush=True)
            end_everything(user)
            return OVER_LIMIT
        pause = max(POLL_SECONDS, 50 * (time.thread_time() - worked))  # watching takes at most 2% of a core
        wait_for_child(min(pause, LONGEST_PAUSE))


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    sys.exit(main())
