"""`python -m agent doctor`: what could keep a night from beginning, or end it before its time, and how to mend that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import git
import psutil
from rich.console import Console
from rich.markup import escape

from agent.cli.beforehand import must_hold, so_far
from agent.cli.nights import is_worked_on, nights
from agent.cli.wiring import ProgramFile
from agent.errors import Failure, MachineFault, ProposerError
from agent.forms import is_original
from agent.lab_note import dollars, duration
from agent.observers.report.times import Times
from agent.places import place
from agent.program import Program
from agent.propose.choose import PROPOSERS, banner, choose_proposer, keys_that_are_set, priced
from agent.protocols import Proposer, Request
from agent.records import Turn
from agent.run.environment import find_environment, said
from agent.run.gpu import find_device, visible_gpus
from agent.run.sandbox import choose_sandbox
from agent.storage import journal_mode
from agent.typed import typed
from agent.workspace import Workspace

TORCH = "import torch; print(torch.__version__, torch.cuda.is_available())"
FREE_GB = 5.0  # of disk, for commits, logs and checkpoints of a night
MORE = 1.5  # times what an earlier night took in an hour, for the planned one
LITTLE_GB = 1.0  # of memory, on a machine without a GPU
HELD = 0.1  # of a GPU's memory: more than this in the hands of others is worth a word
UNDER_WAY = {"MERGE_HEAD": "a merge", "rebase-merge": "a rebase", "rebase-apply": "a rebase or `git am`",
             "CHERRY_PICK_HEAD": "a cherry-pick", "REVERT_HEAD": "a revert", "BISECT_LOG": "a bisect"}  # fmt: skip
FEW = 16  # tokens that a model is asked for; some servers refuse to give fewer


class Doubt(Exception):
    """It need not end a night, but a person should know."""


@dataclass
class Checkup:
    """One look at a repository, for a night of `hours` with this proposer."""

    repo: Path
    hours: float = 8.0
    ask_model: bool = False
    """A call that costs something is agreed to."""
    proposer: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    """model, base_url, command."""
    own: str = ""
    """The night that this process itself works on."""
    contract: Mapping[str, Any] = field(default_factory=dict)
    """What flags put over program.md."""

    @cached_property
    def workspace(self) -> Workspace:
        return Workspace(self.repo, "doctor")

    @cached_property
    def program(self) -> Program:
        return ProgramFile(self.workspace.root, self.contract).load()

    @cached_property
    def model(self) -> Proposer:
        return choose_proposer(self.proposer, **self.settings, device=find_device(self.program.device))

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "python", lambda: f"{sys.version.split()[0]} at {sys.executable}"
        yield "git", git_version
        yield "repository", self.repository
        yield "program.md", self.stated
        yield "data", self.data
        yield "interpreter", self.interpreter
        yield "device", self.device
        yield "memory", self.memory
        yield "disk", self.disk
        yield "journal", self.journal
        yield "sandbox", self.sandbox
        yield "keys", keys
        yield "proposer", self.server
        yield "price", self.price
        yield "clock", self.clock
        yield "other loops", self.other_loops

    def repository(self) -> str:
        """Its state, as far as a night stands on it; the working tree itself is never touched."""
        workspace = self.workspace
        folder = Path(str(workspace.repo.git_dir))
        if (what := next((name for path, name in UNDER_WAY.items() if (folder / path).exists()), None)) is not None:
            raise Doubt(f"{what} is under way: a night works on HEAD as it is; finish that first (git status)")
        if (folder / "index.lock").exists():
            raise Doubt(f"{folder / 'index.lock'} is there: if no git runs, delete it")
        return str(workspace.root)

    def stated(self) -> str:
        workspace, program = self.workspace, self.program
        workspace.check(workspace.head, [*program.edit, *program.protect])
        workspace.check_submodules()
        budget = program.budget_on(find_device(program.device))
        if changed := workspace.uncommitted([*program.edit, *program.protect]):
            raise Doubt(f"{', '.join(changed)}: uncommitted changes, which a night does not see (git commit)")
        form = "in the form of the original autoresearch: " if is_original(workspace.root) else ""
        goal = f"{program.metric.direction} {program.metric.name}"
        return f"{form}{goal}, edit {', '.join(program.edit)}, {budget} per trial"

    def data(self) -> str:
        program, root = self.program, self.workspace.root
        places = {name: place(root, name) for name in (*program.data, *program.holdout)}
        missing = [name for name, path in places.items() if not path.exists()]
        if missing and program.prepare:
            raise Doubt(f"{', '.join(missing)} is not here yet: `{program.prepare}` has to make it at the start")
        if missing:
            raise Failure(f"{', '.join(missing)} does not exist: make it, or mend data in program.md")
        prepared = f"`{program.prepare}` runs at every start" if program.prepare else ""
        there = f"{', '.join(places)}: there" if places else ""
        return "; ".join(filter(None, [there, prepared])) or "none is named"

    def interpreter(self) -> str:
        workspace = self.workspace
        return said(find_environment(workspace.root, workspace.top, self.program.python), workspace.root)

    def device(self) -> str:
        """The device that trials will use; what torch sees is looked at in another process, since it may be large."""
        device = find_device(self.program.device)
        own = find_environment(self.workspace.root, self.workspace.top, self.program.python)
        gpus = visible_gpus() if device == "cuda" else []
        name = f"{len(gpus)} x {gpus[0].name}, {driver()}" if gpus else f"cpu, {os.cpu_count()} cores"
        if device == "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES") == "" and os.path.exists("/dev/nvidiactl"):
            name += " (CUDA_VISIBLE_DEVICES is empty, so no GPU is used)"
        ran = subprocess.run([own.python if own else sys.executable, "-c", TORCH], capture_output=True, text=True)
        version, _, sees = ran.stdout.strip().partition(" ")
        if ran.returncode:
            return f"{name}; torch is not installed"
        if device == "cuda" and sees != "True":
            raise Failure(f"the driver sees a GPU but torch {version} does not: install a CUDA build of torch")
        return f"{name}, torch {version}"

    def memory(self) -> str:
        """Who else holds memory of the GPU, or of a machine without one."""
        if find_device(self.program.device) == "cpu":
            free = psutil.virtual_memory().available / 1e9
            if free < LITTLE_GB:
                raise Doubt(f"only {free:.1f} GB are free: end what you don't need")
            return f"{free:.0f} GB free of {psutil.virtual_memory().total / 1e9:.0f} GB"
        told = []
        for gpu in visible_gpus():
            used, total = gpu.used_bytes(), gpu.total_bytes()
            if used > HELD * total:
                held = f"{used / 1e9:.1f} of {total / 1e9:.0f} GB of GPU {gpu.index} are in use"
                raise Doubt(f"{held}, by {len(gpu.processes())} processes: nvidia-smi shows whose; end what may end")
            told.append(f"GPU {gpu.index}: {used / 1e9:.1f} of {total / 1e9:.0f} GB in use")
        return "; ".join(told)

    def disk(self) -> str:
        """What the newest night here took in an hour says what the next one needs."""
        free, need, why = shutil.disk_usage(self.repo).free / 1e9, FREE_GB, "commits, logs and checkpoints"
        if (rate := gb_an_hour(self.workspace.root)) is not None:
            need, why = max(need, MORE * rate * self.hours), f"{self.hours:g} hours like the newest night here"
        if free < need:
            raise Failure(f"only {free:.1f} GB free, and {need:.0f} GB are wanted for {why}: make room")
        return f"{free:.0f} GB free; {need:.0f} GB are wanted for {why}"

    def journal(self) -> str:
        self.workspace.home.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            return f"can be kept here ({journal_mode(self.workspace.home.parent)})"
        finally:
            if not any(self.workspace.home.parent.iterdir()):
                self.workspace.home.parent.rmdir()

    def sandbox(self) -> str:
        """Break-out attempts and a kernel on the device, in every kind of room."""
        workspace = self.workspace
        sandbox = choose_sandbox("auto", private=(workspace.top,))
        workspace.prepare_home()
        try:
            must_hold(sandbox, workspace, self.program)
        finally:
            shutil.rmtree(workspace.home, ignore_errors=True)
        weaker = f", weaker than bubblewrap: a trial can {'; '.join(sandbox.weaker)}" if sandbox.weaker else ""
        return f"{sandbox.name} holds, and the device works in it{weaker}"

    def server(self) -> str:
        """Whether what proposes is there; by a call where that is agreed to."""
        model, files = self.model, self.workspace.read(self.workspace.head, self.program.edit)
        turn = Turn(role="user", text="Say OK.")
        request = Request(number=1, system="", turns=(turn,), program=self.program, files=files, history=())
        model.check(request)
        if not self.ask_model or model.name in ("search", "replay"):
            asked = "; --ask-model makes a small call of it" if model.name not in ("search", "replay") else ""
            return banner(model) + asked
        from agent.propose.llm import ApiProposer  # its SDKs take seconds to load, and few need it

        if isinstance(model, ApiProposer):
            model.policy = replace(model.policy, max_output=FEW, paid_calls=1, deadline=90.0)
        began = time.monotonic()
        try:
            reply = model.propose(request)
        except ProposerError as error:
            if error.reply is None:
                raise Failure(f"{error}: check the key, the credit and --model") from None
            reply = error.reply  # cut off after so few tokens, as was meant
        paid = f"for {dollars(reply.usd)}" if reply.usd is not None else "at a cost that is not known"
        return f"{model.name} {model.model} answered in {duration(time.monotonic() - began)} {paid}"

    def price(self) -> str:
        if self.model.name in ("search", "replay"):
            return "nothing is called, so nothing is paid"
        if "not known" in (text := priced(self.model)):
            raise Doubt(f"{text}; a night can be bounded by --hours, --experiments or --tokens")
        return text

    def clock(self) -> str:
        """Against the newest commit, which can't be of the future; and whether somebody sets it."""
        now, zone = time.time(), time.strftime("%Z")
        newest = self.workspace.repo.head.commit.committed_date
        if now < newest - 86_400:
            raise Failure(f"it says {time.ctime(now)}, but HEAD is of {time.ctime(newest)}: set the clock (NTP)")
        if synchronized() is False:
            raise Doubt(f"{time.ctime(now)} {zone}, and nothing keeps it right: `timedatectl set-ntp true`")
        return f"{time.ctime(now)} {zone}"

    def other_loops(self) -> str:
        others = (home for home in nights(self.workspace.root) if home.name != self.own)
        if at_work := [home.name for home in others if is_worked_on(home)]:
            raise Doubt(f"one works on {', '.join(at_work)}: two slow each other (`{typed('stop')}` ends it)")
        return "none works in this repository"


def examine(checkup: Checkup, console: Console) -> bool:
    """Print a line for every check; True when nothing stands in the way of a night."""
    told: set[str] = set()
    for name, check in checkup.checks():
        try:
            word, text = "[green]ok[/green]  ", check()
        except Doubt as doubt:
            word, text = "[yellow]look[/yellow]", str(doubt)
        except (Failure, MachineFault, OSError) as failure:
            word, text = "[red]FAIL[/red]", str(failure)
            if text in told:  # one cause for all that stands on it
                word, text = "[dim]-[/dim]   ", "can't be looked at before that is mended"
            told.add(str(failure))
        console.print(f"{word} {name}: {escape(text)}")
    return not told


def warn(checkup: Checkup, say: Callable[[str], None]) -> None:
    """Before a night begins: what is looked at in a moment, where it is not as it should be."""
    for check in (checkup.repository, checkup.memory, checkup.disk, checkup.clock, checkup.other_loops):
        try:
            check()
        except (Doubt, Failure, MachineFault) as reason:
            say(f"look: {reason}")


def git_version() -> str:
    try:
        return ".".join(map(str, git.Git().version_info))
    except git.GitCommandNotFound:
        raise Failure("git is not installed: install it with your package manager") from None


def keys() -> str:
    found, known = keys_that_are_set(), [kind.key for kind in PROPOSERS.values() if kind.key]
    return ", ".join(found) if found else f"none set ({', '.join(known)}): search tunes constants without a model"


def driver() -> str:
    import pynvml

    version = pynvml.nvmlSystemGetDriverVersion()
    return f"driver {version.decode() if isinstance(version, bytes) else version}"


def gb_an_hour(root: Path) -> float | None:
    """Of disk, by the newest night that was at work for a while; None: there is none."""
    from agent.ledger import Ledger

    for home in reversed(nights(root)):
        if not so_far(home).starts:
            continue
        hours = Times.of(event for _, event in Ledger(home, readonly=True).events()).alive / 3600
        if hours > 0.25:
            files = (path for path in home.rglob("*") if path.is_file() and not path.is_symlink())
            return sum(path.stat().st_blocks * 512 for path in files) / 1e9 / hours
    return None


def synchronized() -> bool | None:
    """Whether the clock is kept right, as systemd knows; None: it can't be told, as in a container."""
    try:
        command = ["timedatectl", "show", "-p", "NTPSynchronized", "--value"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(ran.stdout.strip())
