"""`python -m agent doctor`: is everything here that a night needs, and what to do about what is not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import git
from rich.console import Console
from rich.markup import escape

from agent.cli.wiring import must_hold
from agent.errors import Failure
from agent.program import load_program
from agent.run.gpu import find_device
from agent.run.sandbox import Bubblewrap
from agent.workspace import Workspace, open_repository

FREE_GB = 5.0  # of disk, for commits, logs and checkpoints of a night
KEYS = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY")


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
    yield "repository", lambda: str(open_repository(repo).working_dir)
    yield "program.md", lambda: describe_program(repo)
    yield "device", describe_device
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
    program = load_program(workspace.root / "program.md")
    workspace.check(workspace.head, [*program.edit, *program.protect])
    budget = program.budget_on(find_device())
    return f"{program.metric.direction} {program.metric.name}, edit {', '.join(program.edit)}, {budget} per trial"


def describe_device() -> str:
    try:
        import torch
    except ImportError:
        return f"{find_device()} (torch is not installed)"
    driver = find_device()
    if driver == "cuda" and not torch.cuda.is_available():
        raise Failure(f"the driver sees a GPU but torch {torch.__version__} does not: install a CUDA build of torch")
    name = torch.cuda.get_device_name(0) if driver == "cuda" else f"{os.cpu_count()} cores"
    return f"{driver}, {name}, torch {torch.__version__}{slow_import(Path(torch.__file__).parent)}"


def slow_import(package: Path) -> str:
    """What to do where Python compiles the package anew in each trial, because nothing compiled was installed with
    it, as by uv, and a trial can't write there. On torch that costs some 10 s a trial (docs/PERFORMANCE.md)."""
    if (package / "__pycache__").is_dir():
        return ""
    return f"; it has no compiled modules: for a quicker start run python -m compileall -q {package.parent}"


def describe_disk(repo: Path) -> str:
    free = shutil.disk_usage(repo).free / 1e9
    if free < FREE_GB:
        raise Failure(f"only {free:.1f} GB free: a night wants {FREE_GB:g} GB for commits, logs and checkpoints")
    return f"{free:.0f} GB free"


def describe_sandbox(repo: Path) -> str:
    workspace = Workspace(repo, "doctor")
    sandbox = Bubblewrap(private=(workspace.root,))
    workspace.prepare_home()
    try:
        must_hold(sandbox, workspace, load_program(workspace.root / "program.md"))
    finally:
        shutil.rmtree(workspace.home, ignore_errors=True)
    return f"bubblewrap at {sandbox.bwrap} holds"


def describe_keys() -> str:
    found = [name for name in KEYS if os.environ.get(name)]
    return ", ".join(found) if found else "none set: the search proposer tunes constants without a model"
