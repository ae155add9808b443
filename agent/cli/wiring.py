"""Puts a night together from flags, program.md and what the repository and the machine hold.

The tables here are all that knows of every executor and observer; agent/propose/choose.py is that of the proposers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from agent import events as ev
from agent import limits, version
from agent.actions import Actions
from agent.backup import bring_back, copy_path, open_ledger, tags_with_refs
from agent.caller import ThreadCaller
from agent.cli.beforehand import (
    check_proposers,
    check_remote,
    commits,
    make_sure,
    prepared,
    same_hardware,
    same_inputs,
    same_night,
    so_far,
)
from agent.cli.flags import Flags
from agent.cli.nights import check_quiet, choose_tag
from agent.cli.show import find_night
from agent.commands import is_translated
from agent.errors import Failure, ProgramError
from agent.forms import defaults
from agent.history import History
from agent.inbox import RealClock, SpoolInbox
from agent.ledger import Ledger, digest
from agent.limits import GO_ON
from agent.loop import Loop
from agent.night import Night
from agent.observers.backup import Backup
from agent.observers.follow import Follower, Observer, say_goodbye
from agent.observers.notify import Notify, notifier
from agent.observers.push import Push, end_all
from agent.observers.served import Served
from agent.observers.summary import OPEN_DOOR
from agent.observers.terminal import terminal
from agent.observers.track import Track
from agent.observers.track import parse as parse_tracker
from agent.observers.tsv import Results, cell
from agent.places import place
from agent.policy import Capacity
from agent.program import Device, Program, load_program
from agent.propose import context
from agent.propose.choose import banner, choose_fallback, choose_proposer
from agent.propose.command import CommandProposer
from agent.propose.templates import Templates
from agent.protocols import Executor, Proposer, Request
from agent.records import Experiment, Surroundings
from agent.run.environment import find_environment, said
from agent.run.gpu import device_name, find_device, visible_gpus
from agent.run.inputs import listing
from agent.run.local import LocalExecutor
from agent.run.proposer_room import OUT, ProposerRoom
from agent.run.sandbox import Sandbox, choose_sandbox
from agent.typed import typed
from agent.workspace import Workspace, open_repository, project_folder


def local(workspace: Workspace, room: Sandbox, program: Program, slots: int) -> Executor:
    """Trials on this machine. Raises Failure where every trial would fail."""
    device = find_device(program.device)
    executor = LocalExecutor(
        workspace.home,
        workspace.export,
        room,
        device,
        slots,
        root=workspace.top,
        project=workspace.prefix.rstrip("/"),
        interpreter=find_environment(workspace.root, workspace.top, program.python),
    )
    executor.check(program)
    return executor


EXECUTORS: dict[str, Callable[[Workspace, Sandbox, Program, int], Executor]] = {"local": local}


OBSERVERS: dict[str, Callable[[Path, Console, Flags], Observer]] = {
    "terminal": lambda home, console, flags: terminal(home, console, flags.plain),
    "results": lambda home, console, flags: Results(home),
}
"""Those of every night."""


@dataclass
class Parts:
    """A night, ready to run."""

    home: Path
    loop: Loop
    inbox: SpoolInbox
    executor: Executor
    console: Console
    ledger: Ledger
    backup: Path
    """Of the ledger, in .git."""
    observers: Sequence[Observer] = ()

    def rescue(self) -> str:
        """Where the night's folder was deleted while this process held the journal open: saves it, and says so."""
        if self.ledger.path.exists():
            return ""
        self.ledger.save(self.backup)
        return f"{self.home} was deleted while the night ran: its journal is saved, and {GO_ON}"

    def close(self) -> None:
        """Leave no worker behind, and one whole file: the journal's last pages are written into it."""
        self.executor.close()
        self.ledger.close()

    def end_at_once(self) -> None:
        """Leave no process behind, whatever becomes of its work."""
        self.executor.close(now=True)
        self.loop.actions.caller.close()
        end_all()

    def run(self) -> ev.Ended:
        """The loop, with its observers beside it."""
        followers = [Follower(self.home, observer) for observer in self.observers]
        for follower in followers:
            follower.start()
        self.loop.notify = lambda: [follower.news.set() for follower in followers]  # type: ignore[assignment]
        try:
            return self.loop.run()
        finally:
            self.loop.actions.caller.close()
            say_goodbye(followers, self.loop.night.stopping)


def assemble(flags: Flags, today: str) -> Parts:
    """Everything a night needs, checked before anything is run. Raises Failure, one line."""
    service, trackers = notifier(flags.notify), [parse_tracker(text) for text in flags.track or ()]
    workspace, brought = open_workspace(flags, today)
    console = Console(highlight=False, soft_wrap=True)
    say, reread = teller(console), ProgramFile(workspace.root, flags.contract)
    program, before = reread.load(), so_far(workspace.home)
    device = check_device(program, workspace)
    proposer, fallback = check_who_proposes(flags, workspace, program, device, before, say)
    workspace.prepare_home()
    wanted = "none" if flags.unsafe_no_sandbox else flags.sandbox
    room = choose_sandbox(wanted, private=(workspace.top,), where=workspace.home)
    ledger, told = open_ledger(workspace.repo, workspace.home)
    clock = RealClock()
    inbox, night = SpoolInbox(workspace.home, clock), ledger.night()
    workspace.claim(commits(night), restored=bool(brought or told))
    same_night(night, ledger, program)
    same_hardware(night, device)
    for text in (*brought, *told):
        say(text)
    introduce(workspace, program, device, night, proposer, say)
    if night.sandbox and night.sandbox != room.name:
        changed = f"the sandbox changed from {night.sandbox} to {room.name}"
        ledger.append(ev.Noted(at=clock.now(), text=changed))
    data = prepared(program, workspace, night.data, room)
    make_sure(room, workspace, program, say)
    if isinstance(proposer, CommandProposer):
        shut_in(proposer, None if flags.command_unsandboxed else room, workspace, program, before, say)
    inputs = partial(listing, workspace.root, (*program.data, *program.holdout))
    same_inputs(night, ledger, data, now := inputs())
    executor = EXECUTORS["local"](workspace, room, program, flags.slots)
    actions = Actions(
        reread=reread,
        journal=ledger,
        repository=workspace,
        executor=executor,
        proposer=proposer,
        caller=ThreadCaller(proposer, fallback),
        prompts=Prompts(Templates(workspace.root / "prompts", lambda text: inbox.put(ev.Noted(text=text)))),
        device=device,
        emit=inbox.put,
        fallback=fallback,
        inputs=inputs,
        updated=version.changed,
    )
    ahead = 0 if flags.no_lookahead else 1
    capacity = Capacity(executor.slots, calls=executor.slots + ahead, evaluations=1, lookahead=ahead)
    around = surroundings(room, data, ledger.put(json.dumps(now)), device, fallback)
    loop = Loop(ledger, actions, inbox, clock, capacity, flags.stoppers, around)
    backup = copy_path(workspace.repo, workspace.home)
    observers = [make(workspace.home, console, flags) for make in OBSERVERS.values()]
    observers += [Backup(workspace.home, backup), *asked_for(flags, workspace, service, trackers, say)]
    return Parts(workspace.home, loop, inbox, executor, console, ledger, backup, observers)


def open_workspace(flags: Flags, today: str) -> tuple[Workspace, Sequence[str]]:
    """That of the night that is meant, and what there is to say of nights that were brought back from git."""
    root, opened = project_folder(flags.repo), open_repository(flags.repo)
    brought = bring_back(opened, root / ".research")
    workspace = Workspace(root, choose_tag(root, flags.tag, today, flags.new, tags_with_refs(opened)))
    if not (workspace.home / "ledger.db").exists():
        workspace.claim(())
    return workspace, brought


def check_device(program: Program, workspace: Workspace) -> Device:
    """What trials run on. Raises Failure where the commit can't be run there."""
    device = find_device(program.device)
    program.budget_on(device)  # raises where it has none for this device
    workspace.check(workspace.head, [*program.edit, *program.protect])
    workspace.check_submodules()
    return device


def check_who_proposes(
    flags: Flags, workspace: Workspace, program: Program, device: Device, before: Night, say: Callable[[str], None]
) -> tuple[Proposer, Proposer | None]:
    """The proposer, and its fallback. Raises Failure where one is not there, or the remote of --push is not."""
    proposer = choose_proposer(
        flags.proposer,
        model=flags.model,
        base_url=flags.base_url,
        command=flags.command,
        replay=flags.replay,
        device=device,
    )
    fallback = choose_fallback(flags.fallback, proposer, device)
    templates = Templates(workspace.root / "prompts", lambda text: None)
    first = context.first_request(1, program, workspace.read(workspace.head, program.edit), (), {}, templates)
    if flags.push:
        check_remote(workspace.root, flags.push, before, say)
    usd = before.limits_with(flags.stoppers).usd
    check_proposers(usd, not flags.no_check, before, proposer, fallback, first, say)
    return proposer, fallback


def surroundings(room: Sandbox, data: str, inputs: str, device: Device, fallback: Proposer | None) -> Surroundings:
    """Where this start of the night runs; `inputs`: the hash under which the journal has them."""
    return Surroundings(
        sandbox=room.name,
        weaker="; ".join(room.weaker),
        data=data,
        inputs=inputs,
        hardware=device_name(device),
        cards=",".join(gpu.uuid for gpu in visible_gpus()) if device == "cuda" else "",
        fallback=fallback.name if fallback else "",
    )


def asked_for(
    flags: Flags, workspace: Workspace, service: Any, trackers: Sequence[tuple[str, str]], say: Callable[[str], None]
) -> Iterator[Observer]:
    """The observers that flags ask for."""
    home, root = workspace.home, workspace.root
    if flags.watch:
        yield Served(home, root, flags.port, say)
    if flags.push:
        yield Push(home, root, flags.push, say)
    if service:
        yield Notify(home, service)
    for name, where in trackers:
        yield Track(home, root, name, where, say)


def shut_in(
    proposer: CommandProposer,
    room: Sandbox | None,
    workspace: Workspace,
    program: Program,
    before: Night,
    say: Callable[[str], None],
) -> None:
    """Give the program that proposes a room of its own. Raises Failure where it does not start there."""
    if room is None or room.name == "none":
        say(f"{proposer.model} proposes with all your rights, and is fed what untrusted programs print")
        return
    try:
        wall = room if room.guarded else choose_sandbox("auto", private=(workspace.top,), where=workspace.home)
    except Failure as failure:
        raise Failure(f"{failure}; --command needs one of them too: {OUT}") from None
    own = ProposerRoom(
        wall,
        workspace.home / "proposer",
        lambda folder: workspace.export(workspace.head, folder),
        workspace.prefix.rstrip("/"),
        [p.relative_to(workspace.top) for name in program.holdout
         if (p := place(workspace.root, name)).is_relative_to(workspace.top)],
    )  # fmt: skip
    try:
        own.check(proposer.argv)
    except Failure as failure:
        if not before.measured:
            raise
        say(f"{failure}; going on, and trying again")
    proposer.enclosure = own
    say(f"{proposer.model} proposes from a room of its own: the network, its settings, the committed files")


def introduce(
    workspace: Workspace, program: Program, device: Device, night: Night, proposer: Proposer, say: Callable[[str], None]
) -> None:
    """What the person is told first: which night this is, what it works on, and with what."""
    if night.starts:
        done = max(0, len(night.order) - 1)
        say(f"going on with night {workspace.tag}: {done} experiments are done; --new begins another one")
        same = not night.baseline_failed and night.contract == digest(program.model_dump_json())
        begun = night.experiments[0].parent if night.experiments and (night.measured or same) else workspace.head
        if begun != workspace.head:
            say(f"it works on commit {begun[:12]}, which it began with, and not on HEAD: --new begins one on that")
        if holds := limits.told(night):
            say(f"limits so far: {', '.join(holds)}; flags go over them, `{typed('limits')}` changes them")
    goal, budget = f"{program.metric.direction} {program.metric.name}", program.budget_on(device)
    say(f"night {workspace.tag}: {goal}, {budget} per trial on {device}")
    say(banner(proposer))
    python = said(find_environment(workspace.root, workspace.top, program.python), workspace.root)
    translated = f"; `{program.run}` is run by it, without its manager" if is_translated(program.run) else ""
    say(f"trials use {python}{translated}")
    if workspace.uses_lfs:
        say("files in Git LFS are only pointers in a trial: list those that training reads under data:")
    if program.evaluate is None:
        say(OPEN_DOOR)
    for path in workspace.uncommitted([*program.edit, *program.protect]):
        say(f"{path} has uncommitted changes: the night works on the committed version")


@dataclass
class Prompts:
    """agent/propose/context.py with the person's own templates, where there are any. See protocols.Prompter."""

    templates: Templates

    def first_request(self, number, program, files, history, facts, suggestion="") -> Request:
        return context.first_request(number, program, files, history, facts, self.templates, suggestion=suggestion)

    def repair(self, request: Request, reply_text: str, error: str, attempt: int) -> Request:
        return context.repair(request, reply_text, error, attempt, self.templates)

    def slip(self, request: Request, reply_text: str, traceback: str) -> Request:
        return context.slip(request, reply_text, traceback, self.templates)

    def shorter(self, request: Request, facts: Mapping[str, object]) -> Request | None:
        return context.shorter(request, facts, self.templates)


class ProgramFile:
    """program.md, parsed again only when its bytes have changed."""

    def __init__(self, root: Path, contract: Mapping[str, Any]):
        self.path, self.contract = root / "program.md", contract
        self.root, self.seen, self.last = root, b"", None

    def load(self) -> Program:
        """Raises ProgramError."""
        form = defaults(self.root)
        if "metric.name" in self.contract:
            form.pop("metric", None)  # another number, of which nothing is known
        return load_program(self.path, form | dict(self.contract))

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
    root, home = project_folder(repo), find_night(repo, tag)
    check_quiet(root)
    workspace, say = Workspace(root, home.name), teller(Console(highlight=False, soft_wrap=True))
    ledger, told = open_ledger(workspace.repo, home)
    for text in told:
        say(text)
    night, history = ledger.night(), History(ledger.text)
    if not night.contract:
        raise Failure(f"{home.name} has not begun: there is nothing to measure again")
    program = history.program(night.contract)
    room = choose_sandbox(sandbox, private=(workspace.top,), where=home)
    prepared(program, workspace, night.data, room)
    make_sure(room, workspace, program, say)
    return history.finished(night), workspace, EXECUTORS["local"](workspace, room, program, 1), program, say


def teller(console: Console) -> Callable[[str], None]:
    def say(text: str) -> None:
        console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(cell(text))}")

    return say
