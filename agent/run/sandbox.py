"""Where code that nobody has read yet runs: rooms with one writable folder and no way out.

What is not named is not there: the system's libraries, the interpreter, the commit, its data and one output folder are
put into a room, and nothing else. There are five kinds, side by side and none inside another: for training, for what
feeds it with data, for the evaluation, for the model while it is evaluated, and for a program that proposes. Bubblewrap
makes them from namespaces; where those can't be had, Landlock is the second, weaker wall. How the parts fit together:
docs/SECURITY.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from agent.errors import Failure

GUARD = Path(__file__).with_name("guard.py")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix", "/gnu", "/sys")
ETC = ("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf")
ETC += ("OpenCL", "os-release", "passwd", "timezone", "vulkan")
ETC_OF_NETWORK = ("resolv.conf", "hosts", "host.conf", "gai.conf", "ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf")
ETC_OF_NETWORK += ("pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/ca-trust", "ca-certificates")
GPU_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
USER = {"USER": "research", "LOGNAME": "research"}
SANDBOXES = ("auto", "bubblewrap", "landlock", "docker", "podman", "none")


@dataclass(frozen=True)
class Room:
    """What one command may see and write. All paths are absolute."""

    kind: Literal["training", "feed", "evaluation", "model", "proposer"]
    workdir: Path
    """A copy of the commit, read-only; the current directory of the command."""
    output: Path
    """What the trial saves; exists before the start. Read-only for the model while it is evaluated."""
    scratch: Path
    """An empty folder of this room alone, for temporary files where the sandbox brings no /tmp of its own."""
    data: tuple[Path, ...] = ()
    """Read-only folders and files that must be visible."""
    hidden: tuple[Path, ...] = ()
    """Folders that must not be visible, even below `data`: the held-out data, but for the evaluation."""
    compiled: Path | None = None
    """The trial's own copy of the compile cache, writable. None: an empty one, which ends with the room."""
    slot: int | None = None
    """Index of the only GPU that it may see; None: no GPU."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The complete environment: an allow-list built by the executor. A proposer's holds keys, so it is never put on a
    command line: its guard is started with it."""
    program: str = ""
    """The program that must be there, if that is not the command itself."""
    settings: tuple[Path, ...] = ()
    """Of a proposer: files and folders of the person's that belong to it, writable."""
    rooms: Path | None = None
    """For the evaluation: the folder with the socket by which it asks for rooms for the model (model_rooms.py)."""

    @property
    def online(self) -> bool:
        """Whether it has the machine's network."""
        return self.kind == "proposer"


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
    def of_machine(cls, slots: int = 1, where: Path = Path(".")) -> Limits:
        """A fair share of this machine: 85% of its memory between the slots, half of what the disk of `where`, the
        folder in which trials write, has left."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 85 // (100 * slots)
        disk = shutil.disk_usage(where).free // (2 * slots)
        threads = max(4096, 128 * (os.cpu_count() or 1))  # torch.compile: 32 workers of a pool's size each
        return cls(memory, threads, min(disk, 100 << 30), scratch_bytes=memory // 4)


class Sandbox(Protocol):
    """Makes a room around a command. The caller starts it with env=room.env and cwd=room.workdir, and keeps the
    thread that started it alive until it ends: the room closes with that thread."""

    name: str
    weaker: tuple[str, ...]
    """What it does not hold, though bubblewrap does: said at the start and in the report."""
    known: frozenset[str]
    """What the self-probe may find because of that, in its words."""
    guarded: bool
    """Whether the command is a guard.py, which ends everything in the room on SIGHUP."""
    hidden: tuple[Path, ...]
    """Folders that no room shows, wherever they lie: known once the data is prepared."""

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        """The command that runs `argv` in the room."""
        ...

    def compiled(self, room: Room) -> Path:
        """Where in the room the compile cache is. Its entries hold absolute paths: they serve only where it is the
        same for the trial that made them and the trial that reads them."""
        ...


class Wall:
    """What both walls begin with. `private`: folders to keep out of every room wherever they lie, beside home and the
    current one."""

    guarded = True

    def __init__(self, limits: Limits | None, private: Iterable[Path]):
        self.limits = limits or Limits.of_machine()
        self.private = tuple(path.resolve() for path in (Path.home(), Path.cwd(), *private))
        self.hidden: tuple[Path, ...] = ()


class Unsandboxed:
    """--unsafe-no-sandbox: the command runs as the person who started the loop, and may do what they may."""

    name = "none"
    weaker: tuple[str, ...] = ("do whatever you may do",)
    known: frozenset[str] = frozenset()
    guarded = False
    hidden: tuple[Path, ...] = ()

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        return list(argv)

    def compiled(self, room: Room) -> Path:
        return room.compiled or room.scratch / "compiled"


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
        self.weaker: tuple[str, ...] = ("read the held-out data as the model in an evaluation",)
        self.known: frozenset[str] = frozenset()
        self.guarded = False
        self.hidden: tuple[Path, ...] = ()

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
        options += [f"--tmpfs={path}:ro" for path in room.hidden if is_below(path, room.data)]
        for path in filter(None, (room.output, room.compiled)):
            options.append(f"--volume={path}:{path}:rw")
        options.append(f"--workdir={room.workdir}")
        if room.slot is not None:
            options.append(
                f"--gpus=device={room.slot}" if self.name == "docker" else f"--device=nvidia.com/gpu={room.slot}"
            )
        environment = {**USER, "HOME": "/tmp", "TMPDIR": "/tmp", **room.env}
        options += [f"--env={name}={value}" for name, value in environment.items()]
        # SIGKILL of the client leaves its container running: one of the same slot goes before the next starts
        script = f'{self.name} rm --force {name} >/dev/null 2>&1; exec "$@"'
        return ["/bin/sh", "-c", script, "sh", self.name, "run", *options, self.image, *argv]

    def compiled(self, room: Room) -> Path:
        return room.compiled or Path("/tmp/compiled")


def choose_sandbox(name: str, slots: int = 1, private: Iterable[Path] = (), where: Path = Path(".")) -> Sandbox:
    """`auto`: bubblewrap where it can run, else the second wall; there is no quiet way to run without one.
    `private`: folders to keep out of every room wherever they lie; `where`: on whose disk trials write. Raises Failure,
    one line."""
    from agent.run.bubblewrap import Bubblewrap
    from agent.run.landlock import Landlock

    limits = Limits.of_machine(slots, where)
    if name == "auto":
        try:
            return Bubblewrap(limits, private)
        except Failure as no_namespaces:
            try:
                return Landlock(limits, private)
            except Failure as no_landlock:
                raise Failure(f"{no_namespaces}; and no second wall: {no_landlock}") from None
    if name == "bubblewrap":
        return Bubblewrap(limits, private)
    if name == "landlock":
        return Landlock(limits, private)
    if name in ("docker", "podman"):
        return Container(name, os.environ.get("RESEARCH_IMAGE", ""), limits)
    if name == "none":
        return Unsandboxed()
    raise Failure(f"--sandbox {name} is not known: use one of {', '.join(SANDBOXES)}")


def describe(sandbox: Sandbox) -> dict[str, Any]:
    """The sandbox as plain data, for a worker process."""
    values = {key: getattr(sandbox, key, None) for key in ("limits", "private", "bwrap", "image")}
    return {
        "name": sandbox.name,
        "limits": dataclasses.asdict(values["limits"]) if values["limits"] else None,
        "private": [str(path) for path in values["private"] or ()],
        "hidden": [str(path) for path in sandbox.hidden],
        "bwrap": str(values["bwrap"]) if values["bwrap"] else None,
        "image": values["image"],
    }


def described(told: Mapping[str, Any]) -> Sandbox:
    """The sandbox that `describe` told of. Raises Failure where it can't be had any more."""
    sandbox = _described(told)
    sandbox.hidden = tuple(map(Path, told["hidden"]))
    return sandbox


def _described(told: Mapping[str, Any]) -> Sandbox:
    limits = Limits(**told["limits"]) if told["limits"] else None
    private = [Path(path) for path in told["private"]]
    match told["name"]:
        case "bubblewrap":
            from agent.run.bubblewrap import Bubblewrap

            return Bubblewrap(limits, private, Path(told["bwrap"]))
        case "landlock":
            from agent.run.landlock import Landlock

            return Landlock(limits, private)
        case "docker" | "podman":
            return Container(told["name"], told["image"], limits)
    return Unsandboxed()


def guarded(
    limits: Limits,
    room: Room,
    command: Sequence[str],
    *,
    counted: Sequence[Path],
    filter: bytes = b"",
    layers: int = 0,
    own: Sequence[Path] | None = None,
    mounts: Sequence[str] = (),
    common: Sequence[str] = (),
) -> list[str]:
    """`command` under guard.py. `counted`: folders whose size is held to the limits; `filter`: of system calls, for
    bwrap; `layers`: of processes that only make the room; `own`: folders that become another user's, if any; `mounts`:
    what of the room lives in memory; `common`: folders there that it has in common with the machine."""
    told = {
        "memory": limits.memory_bytes,
        # a GPU's driver, and JavaScript, reserve far more than they use, so there only the guard counts
        "segment": limits.memory_bytes if room.slot is None and not room.online else -1,
        "processes": limits.processes,
        "disk": limits.disk_bytes,
        "files": limits.files,
        "folders": list(map(str, counted)),
        "mounts": list(mounts),
        "common": list(common),
        "filter": filter.hex(),
        "layers": layers,
        "own": None if own is None else list(map(str, own)),
        "inherits": room.online,
    }
    return [sys.executable, "-I", "-S", str(GUARD), json.dumps(told), *command]


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


def is_below(path: Path, roots: Iterable[str | Path]) -> bool:
    """Whether `path` is one of the roots, or in one of them."""
    return any(path.is_relative_to(root) for root in roots)


def is_root() -> bool:
    return os.geteuid() == 0
