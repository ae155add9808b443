"""Puts a night together from flags, program.md and what the repository and the machine hold."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from agent.errors import Failure
from agent.judge.stoppers import Limits
from agent.ledger import Ledger
from agent.loop import Loop
from agent.program import Device, Program, load_program
from agent.propose.choose import banner, choose_proposer
from agent.protocols import Executor, Request
from agent.records import Turn
from agent.report.terminal import Terminal
from agent.run.gpu import device_name, find_device, visible_gpus
from agent.run.local import LocalExecutor
from agent.run.probe import probe, rooms_fault
from agent.run.process import reap
from agent.run.sandbox import Sandbox, choose_sandbox
from agent.workspace import Workspace, open_repository


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
    limits: Limits
    contract: Mapping[str, Any] = field(default_factory=dict)


def assemble(repo: Path, flags: Flags, today: str) -> Loop:
    """Everything a night needs, checked before anything is run. Raises Failure, one line."""
    root = Path(str(open_repository(repo).working_dir))
    tag = flags.tag or default_tag(root, today)
    workspace = Workspace(root, tag)
    reread = partial(load_program, root / "program.md", defaults(root) | dict(flags.contract))
    program = reread()
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
    if flags.limits.usd is not None and proposer.most_usd(empty) is None:
        raise Failure(f"what {proposer.model or proposer.name} costs is not known: leave --usd out")
    room = choose_sandbox(flags.sandbox, private=(workspace.root,))
    workspace.prepare_home()
    ledger = Ledger(workspace.home)
    terminal = Terminal(workspace.home)
    same_night(ledger, program)
    other_card = same_device(ledger, device)
    terminal.say(f"night {tag}: {program.metric.direction} {program.metric.name}, {budget} per trial on {device}")
    terminal.say(banner(proposer))
    for path in workspace.uncommitted([*program.edit, *program.protect]):
        terminal.say(f"{path} has uncommitted changes: the night works on the committed version")
    executor = equip(workspace, ledger, program, device, room, terminal)
    return Loop(reread, workspace, ledger, executor, proposer, flags.limits, device, terminal, other_card)


def reopen(repo: Path, tag: str | None, sandbox: str) -> tuple[Ledger, Workspace, Executor, Program]:
    """The parts of a night that has been, to run further trials of its commits. Raises Failure."""
    root = Path(str(open_repository(repo).working_dir))
    home = root / ".research" / tag if tag else newest(root)
    if home is None or not (home / "ledger.db").exists():
        raise Failure("there is no such night here: `python -m agent status` shows the newest")
    workspace, ledger = Workspace(root, home.name), Ledger(home)
    program = contract(ledger)
    device = find_device(program.device)
    same_device(ledger, device)
    room = choose_sandbox(sandbox, private=(root,))
    return ledger, workspace, equip(workspace, ledger, program, device, room, Terminal(home)), program


def equip(
    workspace: Workspace, ledger: Ledger, program: Program, device: Device, room: Sandbox, terminal: Terminal
) -> Executor:
    """A sandbox that holds, the data, and an executor on them. Raises Failure where one of these is missing."""
    if ledger.get("sandbox", room.name) != room.name:
        ledger.note(f"the sandbox changed from {ledger.get('sandbox')} to {room.name}")
    ledger.set("sandbox", room.name)
    ledger.set("sandbox_weaker", json.dumps(room.weaker))
    if room.name == "none":
        terminal.say("NO SANDBOX: code that nobody has read runs with all your rights")
    else:
        terminal.say(f"trials run in {room.name}; trying to break out of it first")
        for weakness in room.weaker:
            terminal.say(f"  weaker than bubblewrap: a trial can {weakness}")
        must_hold(room, workspace, program, device)
    if ended := reap(workspace.home):
        terminal.say(f"ended {ended} processes that a killed loop had left")
    prepare_data(program, workspace.root, ledger)
    executor = LocalExecutor(workspace.home, workspace.export, room, device, root=workspace.root)
    executor.check(program)
    return executor


def must_hold(sandbox: Sandbox, workspace: Workspace, program: Program, device: Device) -> None:
    """Try to break out of the sandbox, and run a kernel on the device in each kind of room. Raises Failure where the
    first succeeds or the second does not."""
    data, holdout = ([workspace.root / Path(name).expanduser() for name in names]
                     for names in (program.data, program.holdout))  # fmt: skip
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


def same_device(ledger: Ledger, device: Device) -> bool:
    """Hold the night to one kind of device. Whether it is another card of the same name than before: then what was
    measured must be measured again. Raises Failure for another device."""
    name, cards = device_name(device), ",".join(gpu.uuid for gpu in visible_gpus()) if device == "cuda" else ""
    if (before := ledger.get("device", name)) != name:
        raise Failure(f"this night was begun on {before}, but this is {name}: choose a new --tag to begin another")
    other = ledger.get("cards", cards) != cards
    ledger.set("device", name)
    ledger.set("cards", cards)
    return other


def default_tag(root: Path, today: str) -> str:
    """The newest night that has not ended, or today's date, counted up where there is one already."""
    home = newest(root)
    if home is not None and Ledger(home, readonly=True).get("ended") != "yes":
        return home.name
    taken = {path.name for path in nights(root)}
    names = [today, *(f"{today}-{n}" for n in range(2, 1000))]
    return next(name for name in names if name not in taken)


def nights(root: Path) -> list[Path]:
    """Folders of all nights, oldest first."""
    ledgers = sorted((root / ".research").glob("*/ledger.db"), key=lambda path: path.stat().st_mtime)
    return [path.parent for path in ledgers]


def newest(root: Path) -> Path | None:
    return nights(root)[-1] if nights(root) else None


def contract(ledger: Ledger) -> Program:
    """The program that a night was begun with."""
    return Program.model_validate_json(ledger.get("program"))


def same_night(ledger: Ledger, program: Program) -> None:
    """A night has one contract: trials under another can't be compared. Raises Failure."""
    if not ledger.get("program"):
        ledger.set("program", program.model_dump_json())
    elif changed := program.other_race(contract(ledger)):
        raise Failure(f"this night was begun with another {changed}: choose a new --tag, or change it back")
    ledger.set("ended", "")


def defaults(root: Path) -> dict[str, Any]:
    """For a program.md without front matter (the original autoresearch form): the evaluator is protected."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (root / "program.md").read_text(encoding="utf-8")
        if not text.startswith("---") and (root / "prepare.py").is_file():
            return {"protect": ["prepare.py"]}
    return {}


def prepare_data(program: Program, root: Path, ledger: Ledger) -> None:
    """Run the `prepare` command, and hold the night to what it reports (the data's hash). Raises Failure."""
    if not program.prepare:
        return
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
    told = dict(re.findall(r"(?m)^(\w+):[ \t]*(.+?)[ \t]*$", ran.stdout))
    before = json.loads(ledger.get("prepared", "{}"))
    if before and before.get("data_hash") != told.get("data_hash"):
        raise Failure("the prepared data changed since this night began: choose a new --tag")
    ledger.set("prepared", json.dumps(told))
