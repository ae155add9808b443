"""Shared ground: a small real repository to run nights in."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers of the suite would spin for the same cores

ROOT = Path(__file__).parents[1]

# Where the tests run in the background of a script, Ctrl-C is ignored in them, and so it would be in every loop that
# they start: what was ignored stays so.
for stopping, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(stopping) is signal.SIG_IGN:
        signal.signal(stopping, usual)


LONGEST = ("test_own_program.py", "test_evaluation.py", "test_loop.py", "test_targets.py", "test_keeping.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def git(folder: Path, *arguments: str) -> str:
    """git as a person would call it, with an identity and without the machine's own configuration."""
    ran = subprocess.run(
        ["git", "-c", "user.name=A Person", "-c", "user.email=person@example.com", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


def make_repository(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Start")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit with train.py (prints its metric) and prepare.py."""
    files = {"train.py": "RATE = 0.5\nprint('loss:', RATE)\n", "prepare.py": "# protected\n"}
    return make_repository(tmp_path / "repository", files)
