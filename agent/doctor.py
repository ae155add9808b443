"""`python -m agent doctor`: is everything here that a night needs, and what to do about what is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import git
from rich.console import Console
from rich.markup import escape

from agent.cli.beforehand import must_hold
from agent.cli.wiring import ProgramFile
from agent.errors import Failure
from agent.forms import is_original
from agent.program import Program
from agent.propose.choose import keys_that_are_set
from agent.run.environment import find_environment, said
from agent.run.gpu import find_device, visible_gpus
from agent.run.sandbox import choose_sandbox
from agent.workspace import Workspace

TORCH = "import torch; print(torch.__version__, torch.cuda.is_available())"
FREE_GB = 5.0  # of disk, for commits, logs and checkpoints of a night


def examine(repo: Path, console: Console) -> bool:
    """Print a line for every check; True when nothing stands in the way of a night."""
    healthy = True
    for name, check in checks(repo):
        try:
            console.print(f"[green]ok[/green]   {name}: {escape(check())}")
        except Failure as failure:
            healthy = False
            console.print(f"[red]FAIL[/red] {name}: {escape(str(failure))}")
    return healthy


def checks(repo: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "python", lambda: f"{sys.version.split()[0]} at {sys.executable}"
    yield "git", git_version
    yield "repository", lambda: str(Workspace(repo, "doctor").root)
    yield "program.md", lambda: describe_program(repo)
    yield "interpreter", lambda: describe_interpreter(repo)
    yield "device", lambda: describe_device(repo)
    yield "disk", lambda: describe_disk(repo)
    yield "sandbox", lambda: describe_sandbox(repo)
    yield "keys", describe_keys


def git_version() -> str:
    try:
        return ".".join(map(str, git.Git().version_info))
    except git.GitCommandNotFound:
        raise Failure("git is not installed: install it with your package manager") from None


def describe_program(repo: Path) -> str:
    workspace = Workspace(repo, "doctor")
    program = read_program(workspace)
    workspace.check(workspace.head, [*program.edit, *program.protect])
    workspace.check_submodules()
    budget = program.budget_on(find_device(program.device))
    form = "in the form of the original autoresearch: " if is_original(workspace.root) else ""
    return f"{form}{program.metric.direction} {program.metric.name}, edit {', '.join(program.edit)}, {budget} per trial"


def read_program(workspace: Workspace) -> Program:
    return ProgramFile(workspace.root, {}).load()


def describe_interpreter(repo: Path) -> str:
    workspace = Workspace(repo, "doctor")
    return said(find_environment(workspace.root, workspace.top, read_program(workspace).python), workspace.root)


def describe_device(repo: Path) -> str:
    """The device that trials will use; what torch sees is looked at in another process, since it may be large."""
    workspace = Workspace(repo, "doctor")
    program = read_program(workspace)
    device = find_device(program.device)
    own = find_environment(workspace.root, workspace.top, program.python)
    name = f"{len(visible_gpus())} x {visible_gpus()[0].name}" if device == "cuda" else f"cpu, {os.cpu_count()} cores"
    if device == "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES") == "" and os.path.exists("/dev/nvidiactl"):
        name += " (CUDA_VISIBLE_DEVICES is empty, so no GPU is used)"
    ran = subprocess.run([own.python if own else sys.executable, "-c", TORCH], capture_output=True, text=True)
    version, _, sees = ran.stdout.strip().partition(" ")
    if ran.returncode:
        return f"{name}; torch is not installed"
    if device == "cuda" and sees != "True":
        raise Failure(f"the driver sees a GPU but torch {version} does not: install a CUDA build of torch")
    return f"{name}, torch {version}"


def describe_disk(repo: Path) -> str:
    free = shutil.disk_usage(repo).free / 1e9
    if free < FREE_GB:
        raise Failure(f"only {free:.1f} GB free: a night wants {FREE_GB:g} GB for commits, logs and checkpoints")
    return f"{free:.0f} GB free"


def describe_sandbox(repo: Path) -> str:
    """Break-out attempts and a kernel on the device, in every kind of room."""
    workspace = Workspace(repo, "doctor")
    program = read_program(workspace)
    sandbox = choose_sandbox("auto", private=(workspace.top,))
    workspace.prepare_home()
    try:
        must_hold(sandbox, workspace, program)
    finally:
        shutil.rmtree(workspace.home, ignore_errors=True)
    weaker = f", weaker than bubblewrap: a trial can {'; '.join(sandbox.weaker)}" if sandbox.weaker else ""
    return f"{sandbox.name} holds, and the device works in it{weaker}"


def describe_keys() -> str:
    found = keys_that_are_set()
    return ", ".join(found) if found else "none set: the search proposer tunes constants without a model"
