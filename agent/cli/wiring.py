"""Puts a night together from flags, program.md and what the repository and the machine hold.

The tables here are all that knows of every executor and observer; agent/propose/choose.py is that of the proposers.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from agent import events as ev
from agent.actions import Actions
from agent.caller import ThreadCaller
from agent.errors import Failure, ProgramError
from agent.history import History
from agent.inbox import RealClock, SpoolInbox
from agent.ledger import Ledger, is_old
from agent.loop import Loop
from agent.night import Night
from agent.observers.follow import Follower, Observer
from agent.observers.terminal import Terminal
from agent.observers.tsv import Results, cell
from agent.places import DATA, place
from agent.policy import Capacity
from agent.program import Device, Program, load_program
from agent.propose import context
from agent.propose.choose import banner, choose_proposer
from agent.propose.templates import Templates
from agent.protocols import Executor, Request
from agent.records import Experiment, Stoppers, Surroundings, Turn
from agent.run.gpu import device_name, find_device, visible_gpus
from agent.run.local import LocalExecutor
from agent.run.probe import probe, rooms_fault
from agent.run.process import reap
from agent.run.sandbox import Sandbox, choose_sandbox
from agent.workspace import Workspace, open_repository


def local(workspace: Workspace, room: Sandbox, program: Program, slots: int) -> Executor:
    """Trials on this machine. Raises Failure where every trial would fail."""
    device = find_device(program.device)
    executor = LocalExecutor(workspace.home, workspace.export, room, device, slots, root=workspace.root)
    executor.check(program)
    return executor


EXECUTORS: dict[str, Callable[[Workspace, Sandbox, Program, int], Executor]] = {"local": local}
OBSERVERS: dict[str, Callable[[Path, Console], Observer]] = {
    "terminal": Terminal,
    "results": lambda home, console: Results(home),
}


@dataclass(frozen=True)
class Flags:
    """What the command line says; `contract` lies over program.md's front matter."""

    tag: str | None
    proposer: str
    model: str | None
    base_url: str | None
    command: str | None
    replay: Path | None
    sandbox: str
    stoppers: Stoppers
    slots: int = 1
    contract: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Parts:
    """A night, ready to run."""

    home: Path
    loop: Loop
    inbox: SpoolInbox
    executor: Executor
    console: Console
    ledger: Ledger

    def close(self) -> None:
        """Leave one whole file behind: the journal's last pages are written into it."""
        self.ledger.close()

    def run(self) -> ev.Ended:
        """The loop, with its observers beside it."""
        followers = [Follower(self.home, make(self.home, self.console)) for make in OBSERVERS.values()]
        for follower in followers:
            follower.start()
        self.loop.notify = lambda: [follower.news.set() for follower in followers]  # type: ignore[assignment]
        try:
            return self.loop.run()
        finally:
            for follower in followers:
                follower.end()


def assemble(repo: Path, flags: Flags, today: str) -> Parts:
    """Everything a night needs, checked before anything is run. Raises Failure, one line."""
    root = Path(str(open_repository(repo).working_dir))
    tag = flags.tag or default_tag(root, today)
    workspace, console = Workspace(root, tag), Console(highlight=False, soft_wrap=True)
    reread = ProgramFile(root, flags.contract)
    program = reread.load()
    device = find_device(program.device)
    budget = program.budget_on(device)
    workspace.check(workspace.head, [*program.edit, *program.protect])
    proposer = choose_proposer(
        flags.proposer,
        model=flags.model,
        base_url=flags.base_url,
        command=flags.command,
        replay=flags.replay,
        device=device,
    )
    empty = Request(number=1, system="", turns=(Turn(role="user", text=""),), program=program, files={}, history=())
    if flags.stoppers.usd is not None and proposer.most_usd(empty) is None:
        raise Failure(f"what {proposer.model or proposer.name} costs is not known: leave --usd out")
    room = choose_sandbox(flags.sandbox, private=(workspace.root,))
    workspace.prepare_home()
    ledger, clock = Ledger(workspace.home), RealClock()
    inbox, night = SpoolInbox(workspace.home, clock), ledger.night()
    same_night(night, ledger, program)
    same_hardware(night, device)
    say = teller(console)
    say(f"night {tag}: {program.metric.direction} {program.metric.name}, {budget} per trial on {device}")
    say(banner(proposer))
    for path in workspace.uncommitted([*program.edit, *program.protect]):
        say(f"{path} has uncommitted changes: the night works on the committed version")
    if night.sandbox and night.sandbox != room.name:
        changed = f"the sandbox changed from {night.sandbox} to {room.name}"
        ledger.append(ev.Noted(at=clock.now(), text=changed))
    data = prepared(program, root, night.data)
    make_sure(room, workspace, program, say)
    executor = EXECUTORS["local"](workspace, room, program, flags.slots)
    actions = Actions(
        reread=reread,
        journal=ledger,
        repository=workspace,
        executor=executor,
        proposer=proposer,
        caller=ThreadCaller(proposer),
        prompts=Prompts(Templates(root / "prompts", lambda text: inbox.put(ev.Noted(text=text)))),
        device=device,
        emit=inbox.put,
    )
    capacity = Capacity(slots=executor.slots, calls=executor.slots, evaluations=1)
    surroundings = Surroundings(
        sandbox=room.name,
        weaker="; ".join(room.weaker),
        data=data,
        hardware=device_name(device),
        cards=",".join(gpu.uuid for gpu in visible_gpus()) if device == "cuda" else "",
    )
    loop = Loop(ledger, actions, inbox, clock, capacity, flags.stoppers, surroundings)
    return Parts(workspace.home, loop, inbox, executor, console, ledger)


@dataclass
class Prompts:
    """agent/propose/context.py with the person's own templates, where there are any. See protocols.Prompter."""

    templates: Templates

    def first_request(self, number, program, files, history, facts) -> Request:
        return context.first_request(number, program, files, history, facts, self.templates)

    def repair(self, request: Request, reply_text: str, error: str, attempt: int) -> Request:
        return context.repair(request, reply_text, error, attempt, self.templates)

    def slip(self, request: Request, reply_text: str, traceback: str) -> Request:
        return context.slip(request, reply_text, traceback, self.templates)


class ProgramFile:
    """program.md, parsed again only when its bytes have changed."""

    def __init__(self, root: Path, contract: Mapping[str, Any]):
        self.path, self.contract = root / "program.md", contract
        self.root, self.seen, self.last = root, b"", None

    def load(self) -> Program:
        """Raises ProgramError."""
        return load_program(self.path, defaults(self.root) | dict(self.contract))

    def __call__(self) -> str | Program:
        try:
            now = self.path.read_bytes()
        except OSError as error:
            now = str(error).encode()
        if self.last is None or now != self.seen:
            self.seen = now
            try:
                self.last = self.load()
            except ProgramError as error:
                self.last = str(error)
        return self.last


def reopen(
    repo: Path, tag: str | None, sandbox: str
) -> tuple[tuple[Experiment, ...], Workspace, Executor, Program, Callable[[str], None]]:
    """The parts of a night that has been, to run further trials of its commits. Raises Failure."""
    root = Path(str(open_repository(repo).working_dir))
    home = root / ".research" / tag if tag else newest(root)
    if home is None or not (home / "ledger.db").exists():
        raise Failure("there is no such night here: `python -m agent status` shows the newest")
    workspace, ledger, say = Workspace(root, home.name), Ledger(home), teller(Console(highlight=False, soft_wrap=True))
    night, history = ledger.night(), History(ledger.text)
    if not night.contract:
        raise Failure(f"{home.name} has not begun: there is nothing to measure again")
    program, room = history.program(night.contract), choose_sandbox(sandbox, private=(root,))
    prepared(program, root, night.data)
    make_sure(room, workspace, program, say)
    return history.finished(night), workspace, EXECUTORS["local"](workspace, room, program, 1), program, say


def teller(console: Console) -> Callable[[str], None]:
    def say(text: str) -> None:
        console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(cell(text))}")

    return say


def make_sure(room: Sandbox, workspace: Workspace, program: Program, say: Callable[[str], None]) -> None:
    """A sandbox that holds, and nothing left over from a loop that was killed. Raises Failure."""
    if room.name == "none":
        say("NO SANDBOX: code that nobody has read runs with all your rights")
    else:
        say(f"trials run in {room.name}; trying to break out of it first")
        for weakness in room.weaker:
            say(f"  weaker than bubblewrap: a trial can {weakness}")
        must_hold(room, workspace, program)
    if ended := reap(workspace.home):
        say(f"ended {ended} processes that a killed loop had left")


def must_hold(sandbox: Sandbox, workspace: Workspace, program: Program) -> None:
    """Try to break out of the sandbox, and run a kernel on the device in each kind of room. Raises Failure where the
    first succeeds or the second does not."""
    device = find_device(program.device)
    data, holdout = ([place(workspace.root, name) for name in names] for names in (program.data, program.holdout))
    gpu = visible_gpus()[0] if device == "cuda" else None
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
    env["CUDA_VISIBLE_DEVICES"] = gpu.uuid if gpu else ""
    slot = gpu.index if gpu else None
    escapes = probe(
        sandbox,
        workspace.home,
        workspace.root,
        data=data,
        holdout=holdout,
        slot=slot,
        env=env,
        protected=program.protect,
    )
    if escapes:
        raise Failure(f"the sandbox does not hold, a trial could: {'; '.join(escapes)}; see docs/SECURITY.md")
    if fault := rooms_fault(sandbox, workspace.home, device, slot, env):
        raise Failure(f"{fault}; `python -m agent doctor` looks at each part")


def same_hardware(night: Night, device: Device) -> None:
    """A night stays on one kind of device: times and losses of another can't be compared. Raises Failure."""
    if night.hardware and night.hardware != (now := device_name(device)):
        raise Failure(f"this night was begun on {night.hardware}, but this is {now}: choose a new --tag")


def default_tag(root: Path, today: str) -> str:
    """The newest night that is not finished, or today's date, counted up where there is one already."""
    home = newest(root)
    if home is not None and not is_finished(home):
        return home.name
    taken = {path.name for path in nights(root)}
    names = [today, *(f"{today}-{n}" for n in range(2, 1000))]
    return next(name for name in names if name not in taken)


def is_finished(home: Path) -> bool:
    """By its own experiments, target or plateau; a night of an older version is not gone on with."""
    if is_old(home / "ledger.db"):
        return True
    ended = Ledger(home, readonly=True).night().ended
    return ended is not None and ended.code == 0


def nights(root: Path) -> list[Path]:
    """Folders of all nights, oldest first."""
    ledgers = sorted((root / ".research").glob("*/ledger.db"), key=lambda path: path.stat().st_mtime)
    return [path.parent for path in ledgers]


def newest(root: Path) -> Path | None:
    return nights(root)[-1] if nights(root) else None


def same_night(night: Night, ledger: Ledger, program: Program) -> None:
    """A night has one contract: trials under another can't be compared. Raises Failure."""
    if night.measured and (changed := program.incomparable(History(ledger.text).program(night.contract))):
        raise Failure(f"this night was begun with another {changed}: choose a new --tag, or change it back")


def defaults(root: Path) -> dict[str, Any]:
    """For a program.md without front matter (the original autoresearch form): the evaluator is protected."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (root / "program.md").read_text(encoding="utf-8")
        if not text.startswith("---") and (root / "prepare.py").is_file():
            return {"protect": ["prepare.py"]}
    return {}


def prepared(program: Program, root: Path, before: str) -> str:
    """Run the `prepare` command: the hash of the data as it says it, which from here on is RESEARCH_DATA in the
    environment; `before` is what the night began with, and must be the same. Raises Failure."""
    if not program.prepare:
        return ""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    try:
        ran = subprocess.run(
            shlex.split(program.prepare),
            cwd=root,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            text=True,
            timeout=program.timeouts.prepare,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f"`{program.prepare}` failed: {error}") from None
    if ran.returncode:
        raise Failure(f"`{program.prepare}` failed with exit code {ran.returncode}: it says why above")
    told = dict(re.findall(r"(?m)^(\w+):[ \t]*(.+?)[ \t]*$", ran.stdout)).get("data_hash", "")
    if before and before != told:
        raise Failure("the prepared data changed since this night began: choose a new --tag")
    if told:
        os.environ[DATA] = told
    return told
