"""Each example runs as it lies in examples/: one change, judged and kept."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, git
from test_loop import block, kinds, night, results, write_replies

EXAMPLES = ROOT / "examples"
CHANGES = {
    "digits": ("train.py", "HIDDEN = 16", "HIDDEN = 96"),
    "speed": ("close_pairs.py", "CELLS = 4", "CELLS = 20"),
    "config": ("config.yaml", "scale: 2.0", "scale: 8.0"),
    "autoresearch": ("train.py", "DISCOUNT = 2.0", "DISCOUNT = 8.0"),
}


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy, committed, as the folders of one repository."""
    copied = Path(shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns(".research", "__*")))
    git(copied, "init", "--quiet", "--initial-branch=main")
    git(copied, "add", "--all")
    git(copied, "commit", "--quiet", "--message", "Examples")
    return copied


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_an_example_runs_and_keeps_what_is_better(examples: Path, tmp_path: Path, name: str):
    if name == "digits":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")
    path, search, replace = CHANGES[name]
    line = next(line for line in (examples / name / path).read_text().splitlines() if search in line)
    replies = write_replies(tmp_path / "replies", block(line, line.replace(search, replace), path=path))
    night(examples / name, "--replay", str(replies), "--experiments", "1", "--budget", "4s")
    assert kinds(examples / name) == ["baseline", "keep"], results(examples / name)
    assert replace in git(examples, "show", f"research/night:{name}/{path}")
    assert git(examples, "status", "--porcelain") == ""


def test_a_wrong_answer_has_no_time(examples: Path):
    program = examples / "speed" / "close_pairs.py"
    program.write_text(program.read_text().replace("// 2", "// 2 + 1"))
    ran = subprocess.run(["python3", "check.py"], cwd=program.parent, capture_output=True, text=True)
    assert ran.returncode != 0 and "which is wrong" in ran.stderr and "milliseconds" not in ran.stdout


def test_every_example_is_listed_and_run_by_a_test():
    folders = {path.parent.name for path in EXAMPLES.glob("*/program.md")}
    listed = set(re.findall(r"\| \[(\w+)\]", (EXAMPLES / "README.md").read_text()))
    assert folders == listed == set(CHANGES)
