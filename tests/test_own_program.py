"""A night on this repository's own program.md, train.py and prepare.py, as a clone of it would run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, git
from test_loop import block, night, results, write_replies

BUDGET = "16k tokens within 15m"  # a long cap, so that the baseline takes the fewest seeds


def clone(folder: Path) -> Path:
    """The tracked files as they are now, committed: what a clone of the next commit holds."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Start")
    return folder


@pytest.mark.slow
def test_a_night_on_this_repository_itself(tmp_path: Path):
    project = clone(tmp_path / "clone")
    lines = (project / "train.py").read_text().splitlines()
    rate = [line for line in lines if line.startswith("    MATRIX_LR = ")][-1]  # the one for a CPU
    useless = re.sub(r"= [0-9.e-]+", "= 1e-9", rate)
    crashes = [re.sub(r"= [0-9.e-]+", f"= [][{n}]", rate) for n in range(3)]  # at once: nothing is compiled before
    replies = write_replies(
        tmp_path / "replies",
        block(rate, useless, "Without learning the blocks' matrices nothing should be learned as well."),
        *(block(rate, crash) for crash in crashes),
    )
    said = night(project, "--replay", str(replies), "--experiments", "2", "--budget", BUDGET)
    rows = results(project)
    assert [row["status"] for row in rows] == ["baseline", "discard", "crash"], said
    assert float(rows[1]["val_bpb"]) > float(rows[0]["val_bpb"]) > 0
    assert "IndexError" in rows[2]["reason"]
    assert git(project, "status", "--porcelain") == ""
    assert git(project, "rev-parse", "research/night") == git(project, "rev-parse", "main")
    assert len(git(project, "for-each-ref", "refs/experiments/night").splitlines()) == 3
