"""The self-probe: before the first trial, try to break out of the very rooms that trials will run in, and run a kernel
on the device in them.

Everything it tries to reach is real (the person's home, what lies beside the repository), or planted by the probe
itself (a file with a secret, a process, a listener, a home in which secrets lie beside a Python, by which the probe is
run), so that a sandbox which does nothing fails every check; tests/test_probe.py shows that. It writes in the night's
folder and in one for temporary files, and leaves nothing anywhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from agent.run.installed import program_files
from agent.run.leftovers import temporary
from agent.run.sandbox import SYSTEM, Room, Sandbox, is_below

KERNEL = Path(__file__).with_name("kernel_probe.py")
TIMEOUT_SECONDS = 60.0
PRIVATE = (".config", ".ssh", ".cache", ".aws", ".gnupg", ".docker", ".kube", ".netrc", ".git-credentials", ".npmrc")
PRIVATE += (".bash_history", ".local", ".local/share", ".local/state", ".huggingface", ".cache/huggingface/token")
SECRETS = (".local/share/keyrings/login.keyring", ".local/bin/token", ".local/lib/token", ".config/gh/hosts.yml")
SECRETS += (".ssh/id_ed25519", ".cache/token", ".aws/credentials", ".netrc")
MOST_BESIDE = 100  # of what lies beside the repository
DAEMON_SECONDS = 5.0  # how long the probe's stray process lives where nothing ends it

# Runs in the room. Prints a JSON list of what it managed to do.
SCRIPT = r"""
import errno, fcntl, glob, json, os, socket, sys, time
plan = json.loads(sys.argv[1]); done = []
def attempt(what):
    def run(function):
        try:
            if function(): done.append(what)
        except OSError: pass
    return run
def connects(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(2); s.connect(address); s.sendall(b"probe")
        return kind == socket.SOCK_STREAM or s.recv(9) == b"heard"
def readable(path, secret=plan["secret"]):
    try: return secret.encode() in open(path, "rb").read()
    except OSError: return False
def told(path):
    return readable(path, plan["shadow"][::-1])  # reversed, as the plan is in this command line
for path in plan["read"]:
    attempt("read " + path)(lambda: readable(path))
for path in plan["write"]:
    attempt("write " + path)(lambda: os.close(os.open(path, os.O_WRONLY)) is None)
def makes_a_file(path, device, inode):
    # in the host's own folder, not in an empty one of that name; a file without a name, or one that goes at once
    found = os.stat(path)
    if (found.st_dev, found.st_ino) != (device, inode): return False
    try: os.close(os.open(path, os.O_TMPFILE | os.O_WRONLY))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR): raise
        os.close(os.open(path + "/" + plan["mark"], os.O_WRONLY | os.O_CREAT)); os.unlink(path + "/" + plan["mark"])
    return True
for path, device, inode in plan["create"]:
    attempt("create files in " + path)(lambda: makes_a_file(path, device, inode))
for path, device, inode in plan["folders"]:
    attempt("list " + path)(lambda: (os.stat(path).st_dev, os.stat(path).st_ino) == (device, inode)
                                    and os.listdir(path) is not None)
for path, device, inode in plan["files"]:
    attempt("read " + path)(lambda: (os.stat(path).st_dev, os.stat(path).st_ino) == (device, inode)
                                    and os.close(os.open(path, os.O_RDONLY)) is None)
for path in plan["list"]:
    attempt("list " + path)(lambda: bool(os.listdir(path)))
attempt("read a key in the environment")(lambda: plan["secret"] in os.environ.values())
attempt("connect to TCP on the host's loopback")(lambda: connects(2, 1, ("127.0.0.1", plan["tcp"])))
attempt("reach UDP on the host's loopback")(lambda: connects(2, 2, ("127.0.0.1", plan["udp"])))
attempt("connect to an abstract unix socket of the host")(lambda: connects(1, 1, "\0" + plan["mark"]))
attempt("connect to a unix socket file of the host")(lambda: connects(1, 1, plan["unix"]))
attempt("see a process of the host")(lambda: any(map(told, glob.glob("/proc/[0-9]*/cmdline"))))
attempt("read a host process")(lambda: any(map(told, glob.glob("/proc/[0-9]*/environ"))))
attempt("signal a process of the host")(lambda: os.kill(plan["pid"], 0) is None
                                        and told("/proc/%d/cmdline" % plan["pid"]))
def opens(path):
    try: return os.close(os.open(path, os.O_RDWR)) is None
    except OSError: return False
attempt("use more than one GPU")(lambda: sum(opens(f"/dev/nvidia{n}") for n in range(64)) > plan["gpus"])
if plan["outlive"]:
    ready, tell = os.pipe()
    if not os.fork():
        os.setsid()
        if os.fork(): os._exit(0)
        os.close(0); os.close(1); os.close(2)
        lock = os.open(plan["outlive"], os.O_RDWR | os.O_CREAT); fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(tell, b"x"); time.sleep(plan["seconds"]); os._exit(0)
    os.read(ready, 1)
print(json.dumps(done), flush=True)
"""


def probe(
    sandbox: Sandbox,
    home: Path,
    repository: Path,
    *,
    data: Sequence[Path] = (),
    holdout: Sequence[Path] = (),
    slot: int | None = None,
    env: Mapping[str, str] | None = None,
    protected: Sequence[str] = (),
) -> list[str]:
    """Try to break out of rooms as the executor makes them; what succeeded, empty when the sandbox holds.

    `home` is the night's folder (ledger, slots), `protected` names files of `repository`. About 0.5 s. What the sandbox
    says of itself that it does not hold (Sandbox.weaker) is not counted.
    """
    environment = dict(env or {"PATH": os.environ.get("PATH", os.defpath)})
    home.mkdir(parents=True, exist_ok=True)
    with _planted(home, repository) as (folder, plan):
        for name in protected:
            if (repository / name).is_file():
                shutil.copy(repository / name, folder / "work")
                plan["write"] += [str(repository / name), str(folder / "work" / Path(name).name)]
        shown = [*data, *program_files(plan["python"], environment)]
        known = [path for path in of_the_person(repository) if not is_below(path, (*SYSTEM, *shown))]
        plan["folders"] += [identity(path) for path in known if path.is_dir()]
        plan["files"] = [identity(path) for path in known if path.is_file()]
        plan["list"] += [str(path) for path in holdout]
        plan["gpus"] = 0 if slot is None else 1
        training = Room(
            "training",
            folder / "work",
            folder / "output",
            folder / "scratch",
            data=(*(path for path in data if path.exists()), folder / "data"),
            hidden=(*holdout, folder / "data" / "heldout"),
            slot=slot,
            env=environment,
        )
        done = _attempt(sandbox, training, plan)
        if _outlived(folder / "output" / "alive"):
            done.append("leave a process behind that outlives the trial")
        plan |= {"outlive": "", "create": [*plan["create"], identity(training.output)]}
        model = dataclasses.replace(training, kind="model", data=())
        done += [f"as the model in an evaluation: {what}" for what in _attempt(sandbox, model, plan)]
    return done


def device_fault(sandbox: Sandbox, room: Room, device: str) -> str | None:
    """Run a small kernel on the device in this room; why that does not work, in one line, or None."""
    return _kernel_results([_kernel(sandbox, room, device)], device)


def rooms_fault(sandbox: Sandbox, home: Path, device: str, slot: int | None, env: Mapping[str, str]) -> str | None:
    """The same in every kind of room at once, as training, an evaluation and its models may run side by side."""
    with temporary(home) as folder:
        for part in ("work", "output", "training", "evaluation", "model"):
            (folder / part).mkdir()
        kinds: tuple[Literal["training", "evaluation", "model"], ...] = ("training", "evaluation", "model")
        rooms = [
            Room(kind, folder / "work", folder / "output", folder / kind, slot=slot, env=env) for kind in kinds
        ]
        return _kernel_results([_kernel(sandbox, room, device) for room in rooms], device)


def _kernel(sandbox: Sandbox, room: Room, device: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", "-c", KERNEL.read_text(), device]
    return subprocess.Popen(
        sandbox.wrap(command, room),
        env=dict(room.env),
        cwd=room.workdir,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _kernel_results(running: Sequence[subprocess.Popen[str]], device: str) -> str | None:
    faults = []
    for process in running:
        try:
            said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            said = f"no answer within {TIMEOUT_SECONDS:g} s"
        if process.returncode or "ok" not in said.split():
            faults.append((said.strip().splitlines() or ["nothing was said"])[-1])
    what = "a kernel on the GPU" if device == "cuda" else "a program"
    return f"{what} does not run in the sandbox: {faults[0]}" if faults else None


def _attempt(sandbox: Sandbox, room: Room, plan: Mapping) -> list[str]:
    ran = subprocess.run(
        sandbox.wrap([plan["python"], "-I", "-c", SCRIPT, json.dumps(plan)], room),
        env={**room.env, "RESEARCH_PROBE_KEY": plan["secret"]},
        cwd=room.workdir,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    try:
        done = json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        said = (ran.stderr.strip().splitlines() or ["nothing"])[-1]
        return [f"keep the probe from running (exit code {ran.returncode}: {said})"]
    return [what for what in done if not any(what == known for known in sandbox.known)]


def of_the_person(repository: Path) -> list[Path]:
    """What is there of the places where keys lie, and of what lies beside the repository. It is only looked at."""
    found = [Path.home() / name for name in PRIVATE]
    for folder in (repository.parent, Path("/workspace"), Path("/home")):
        with contextlib.suppress(OSError):
            found += [folder, *sorted(folder.iterdir())[:MOST_BESIDE]]
    own = repository.resolve()
    return [path for path in dict.fromkeys(found) if os.access(path, os.R_OK) and path.resolve() != own]


def identity(path: Path) -> tuple[str, int, int]:
    """By which a folder or file is told from another one of the same name."""
    found = path.stat()
    return str(path), found.st_dev, found.st_ino


def _outlived(lock: Path) -> bool:
    """Whether the probe's stray process still holds its lock two seconds after the trial."""
    with open(lock, "a") as file:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
            time.sleep(0.01)
    return True


@contextlib.contextmanager
def _planted(home: Path, repository: Path) -> Iterator[tuple[Path, dict]]:
    """Everything that a room must keep out of reach, alive for as long as the probe runs."""
    mark, secret, shadow = f"probe-{secrets.token_hex(6)}", secrets.token_hex(16), secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        folder, elsewhere = stack.enter_context(temporary(home)), stack.enter_context(temporary())
        for name in ("work", "output", "scratch", "data/heldout"):
            (folder / name).mkdir(parents=True)
        places = [
            folder / "ledger",
            folder / "data/heldout/val",
            elsewhere / "secret",
        ]
        person, python = elsewhere / "person", elsewhere / "person" / ".local" / "bin" / "python"
        places += [person / name for name in SECRETS]
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(secret)
        python.symlink_to(sys.executable)
        elsewhere.chmod(0o755)  # so that only the sandbox keeps it from being read
        tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        unix, abstract = (socket.socket(socket.AF_UNIX) for _ in range(2))
        for listener, address in ((unix, str(elsewhere / "socket")), (abstract, "\0" + mark)):
            listener.bind(address)
            listener.listen()
        for opened in (tcp, udp, unix, abstract):
            stack.enter_context(opened)
        answer = [sys.executable, "-I", "-c", ANSWER, shadow]
        host = subprocess.Popen(answer, env={"KEY": shadow, "PARENT": str(os.getpid())}, stdin=udp.fileno())
        stack.callback(host.wait)
        stack.callback(host.kill)
        git = repository / ".git"
        home_of = [identity(path) for path in [Path.home()] if path.is_dir()]
        create = [identity(path) for path in (git if git.is_dir() else home, home, folder / "work")]
        yield (
            folder,
            {
                "secret": secret,
                "mark": mark,
                "shadow": shadow[::-1],
                "read": [str(place) for place in places],
                "write": [*map(str, places), "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"],
                "create": [*create, *home_of],
                "folders": home_of,
                "python": str(python),
                "list": [],
                "pid": host.pid,
                "tcp": tcp.getsockname()[1],
                "udp": udp.getsockname()[1],
                "unix": str(elsewhere / "socket"),
                "outlive": str(folder / "output" / "alive"),
                "seconds": DAEMON_SECONDS,
            },
        )


# The host process that the room must not see, signal or read; it also answers the UDP socket, its stdin.
ANSWER = """
import ctypes, os, socket
ctypes.CDLL(None).prctl(1, 9)  # the kernel ends it with the loop
if os.getppid() != int(os.environ["PARENT"]):
    raise SystemExit
udp = socket.socket(fileno=0)
while True:
    udp.sendto(b"heard", udp.recvfrom(9)[1])
"""
