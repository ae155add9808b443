"""What is looked at before a night begins, or goes on: each costs seconds here, and a night where it is found later."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.commands import arguments
from agent.errors import Failure
from agent.history import History
from agent.ledger import Ledger
from agent.night import Night
from agent.observers.push import Push, Refused
from agent.places import DATA, place
from agent.program import Device, Program
from agent.protocols import Proposer, Request
from agent.run.environment import find_environment
from agent.run.gpu import device_name, find_device, visible_gpus
from agent.run.inputs import difference
from agent.run.probe import probe, rooms_fault
from agent.run.process import START
from agent.run.sandbox import Sandbox
from agent.typed import typed
from agent.workspace import Workspace


def check_proposers(
    usd: float | None,
    ask: bool,
    before: Night,
    proposer: Proposer,
    fallback: Proposer | None,
    first: Request,
    say: Callable[[str], None],
) -> None:
    """What would keep a night from ever getting a proposal, before anything is trained. Raises Failure. A night that
    goes on is not refused for it: what is missing may be back soon. `ask`: the model's server too."""
    most = proposer.most_usd(first)
    if usd is not None and most is None:
        raise Failure(f"what {proposer.model or proposer.name} costs is not known: leave --usd out")
    if usd is not None and most is not None and most > usd:
        raise Failure(f"--usd {usd:g} is less than one call may cost (${most:.2f}): allow more, or leave it out")
    if not ask:
        return
    try:
        proposer.check(first)
        if fallback:
            fallback.check(first)
    except (Failure, OSError) as failure:
        if not before.measured:
            raise
        say(f"{failure}; going on, and trying again")


def check_remote(root: Path, remote: str, before: Night, say: Callable[[str], None]) -> None:
    """That `--push` has somewhere to push to. Raises Failure; a night that goes on only says it."""
    try:
        Push(root, root, remote, say).git("ls-remote", remote, "HEAD")
    except (Refused, subprocess.TimeoutExpired) as error:
        failure = Failure(f"--push {remote}: {error}: name a remote of this repository (`git remote -v`), or its URL")
        if not before.measured:
            raise failure from None
        say(f"{failure}; going on, and trying again")


def make_sure(room: Sandbox, workspace: Workspace, program: Program, say: Callable[[str], None]) -> None:
    """A sandbox that holds. Raises Failure."""
    if room.name == "none":
        say("NO SANDBOX: code that nobody has read runs with all your rights")
    else:
        say(f"trials run in {room.name}; trying to break out of it first")
        for weakness in room.weaker:
            say(f"  weaker than bubblewrap: a trial can {weakness}")
        must_hold(room, workspace, program)


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
        raise Failure(f"{fault}; `{typed('doctor')}` looks at each part")


def prepared(program: Program, workspace: Workspace, before: str, sandbox: Sandbox) -> str:
    """Run the `prepare` command: the hash of the data as it says it (`data_hash: ...`), which from here on is
    RESEARCH_DATA in the environment; `before` is what the night began with, and must be the same. The folders that it
    names (`hide: ...`) are shown by no room of the sandbox. Raises Failure."""
    if not program.prepare:
        return ""
    own = find_environment(workspace.root, workspace.top, program.python)
    python = own.python if own else sys.executable
    path = os.pathsep.join([os.path.dirname(python), os.environ.get("PATH", os.defpath)])
    first, *rest = arguments(program.prepare)
    command = python if own and first in ("python", "python3") else first
    try:
        ran = subprocess.run(
            [sys.executable, "-ISc", START, str(os.getpid()), command, *rest],  # it ends with this one
            cwd=workspace.root,
            env={**os.environ, "PATH": path} | ({own.kind: own.prefix} if own else {}),
            stdout=subprocess.PIPE,
            text=True,
            timeout=program.timeouts.prepare,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(f"`{program.prepare}` failed: {error}") from None
    if ran.returncode:
        raise Failure(f"`{program.prepare}` failed with exit code {ran.returncode}: it says why above")
    sandbox.hidden = tuple(Path(path).resolve() for path in re.findall(r"(?m)^hide:[ \t]*(/.+?)[ \t]*$", ran.stdout))
    told = dict(re.findall(r"(?m)^(\w+):[ \t]*(.+?)[ \t]*$", ran.stdout)).get("data_hash", "")
    if before and before != told:
        raise Failure("the prepared data changed since this night began: choose a new --tag")
    if told:
        os.environ[DATA] = told
    return told


def same_night(night: Night, ledger: Ledger, program: Program) -> None:
    """A night has one contract: trials under another can't be compared. Raises Failure."""
    if night.measured and (changed := program.incomparable(History(ledger.text).program(night.contract))):
        raise Failure(f"this night was begun with another {changed}: choose a new --tag, or change it back")


def same_hardware(night: Night, device: Device) -> None:
    """A night stays on one kind of device: times and losses of another can't be compared. Raises Failure."""
    if night.hardware and night.hardware != (now := device_name(device)):
        raise Failure(f"this night was begun on {night.hardware}, but this is {now}: choose a new --tag")


def same_inputs(night: Night, ledger: Ledger, data: str, now: Mapping[str, str]) -> None:
    """The data must be what the trials so far were measured on; where `prepare` says by its hash that it is, that
    counts. Raises Failure."""
    if not night.measured or not night.inputs or (data and data == night.data):
        return
    if changed := difference(json.loads(ledger.text(night.inputs)), now):
        raise Failure(changed)


def so_far(home: Path) -> Night:
    """The night before this process takes it up; an empty one where there is none that can be read."""
    try:
        return Ledger(home, readonly=True).night()
    except (Failure, sqlite3.DatabaseError):  # to open it for writing puts it right, or says what to do
        return Night()


def commits(night: Night) -> set[str]:
    """All that this night has made, or stands on."""
    found = {c for e in night.experiments.values() for c in (e.parent, e.commit, e.published)}
    found |= {t.commit for e in night.experiments.values() for t in e.trials}
    return found - {""}
