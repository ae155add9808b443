"""The commands beside the loop: each says what is so, and a mistake is one line."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, git, make_repository
from long_night import long_night
from test_loop import PROGRAM, STORY, TRAIN, block, environment, night, write_replies

from agent.cli.nights import is_worked_on
from agent.ledger import Ledger, lock
from agent.program import PLACEHOLDER, load_program


def agent(*arguments: str, expect: int = 0) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        cwd=ROOT,
        env=environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == expect, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "project", {"train.py": TRAIN, "prepare.py": "", "program.md": PROGRAM})


def test_help_lists_the_commands_and_every_flag_has_a_line():
    said = agent("--help")
    for name in ("run", "stop", "status", "report", "audit", "doctor", "init"):
        assert name in said
    flags = "tag experiments hours usd proposer model base-url budget repo metric direction target pattern run evaluate"
    said = agent("run", "--help")
    for flag in [*flags.split(), "edit", "protect"]:
        line = next(line for line in said.splitlines() if f"--{flag} " in line)
        assert len(line.split(f"--{flag} ")[1].strip(" │").split()) > 2, line


def test_the_loop_is_loaded_once_when_it_is_run_as_a_module():
    command = [sys.executable, "-X", "importtime", "-m", "agent.loop", "--help"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "agent.policy" in imported and "agent.loop" not in imported


def test_status_and_report_read_a_night_and_show_what_models_wrote_as_text(project: Path, tmp_path: Path):
    hostile = block("RATE = 0.5", "RATE = 0.3", "[bold red]Look[/] \x1b[2J \x1b]0;title\x07 here.")
    night(project, "--replay", str(write_replies(tmp_path / "replies", hostile)), "--experiments", "1")
    for command in ("status", "report"):
        said = agent(command, "--repo", str(project))
        assert "[bold red]Look[/]" in said and "\x1b" not in said and "\x07" not in said
        assert "keep" in said and "0.165" in said and "git merge" in said


def test_a_night_of_version_0_1_is_reported_and_not_continued(project: Path):
    home = project / ".research" / "night"
    home.mkdir(parents=True)
    db = sqlite3.connect(home / "ledger.db")
    db.executescript((ROOT / "tests" / "journals" / "0.1.sql").read_text())
    db.close()
    said = agent("report", "--repo", str(project))
    for part in ("baseline", "discard", "timeout", "2 of 6", "0.1025", "git merge"):
        assert part in said, said
    refused = "error: night was made by version 0.1: `report` shows it, a new --tag goes on"
    assert night(project, expect=2).strip().splitlines()[-1] == refused
    assert agent("status", "--repo", str(project), expect=2).startswith(refused)


def test_without_a_night_they_say_how_to_start_one(project: Path):
    for command in ("status", "report", "audit"):
        assert agent(command, "--repo", str(project), expect=2).startswith("error: there is no night here yet")


def test_init_writes_a_program_that_the_loop_reads(tmp_path: Path):
    project = make_repository(
        tmp_path / "plain", {"train.py": "loss = 1\nprint(f'train_loss: {loss}')\nprint(f'val_loss: {loss:.3f}')\n"}
    )
    assert "python -m agent.loop" in agent("init", "--repo", str(project))
    assert "program.md still says what `init` wrote: replace its last paragraph" in night(project, expect=2)
    written = (project / "program.md").read_text()
    assert PLACEHOLDER in written
    (project / "program.md").write_text(written.replace(PLACEHOLDER, "Try a smaller rate first."))
    program = load_program(project / "program.md")
    assert (program.metric.name, program.metric.direction) == ("val_loss", "minimize")
    assert "is there already" in agent("init", "--repo", str(project), expect=2)


def test_doctor_finds_this_machine_fit_and_names_what_is_not(project: Path):
    said = agent("doctor", "--repo", str(project))
    assert "FAIL" not in said and "bubblewrap" in said and "minimize loss" in said
    (project / "program.md").write_text("nothing\n")
    assert "names no metric" in agent("doctor", "--repo", str(project), expect=2)
    assert git(project, "status", "--porcelain") == "M program.md"


def test_audit_measures_a_night_again(project: Path, tmp_path: Path):
    replies = write_replies(tmp_path / "replies", STORY[0], block("WIDTH = 8", "WIDTH = 16"))
    night(project, "--replay", str(replies), "--experiments", "2")
    said = agent("audit", "--repo", str(project), "--pairs", "2", "--ablate")
    assert "the final commit is better than the baseline" in said
    assert git(project, "status", "--porcelain") == ""


def test_a_wrong_first_command_does_not_spoil_the_night(project: Path, tmp_path: Path):
    replies = write_replies(tmp_path / "replies", STORY[0])
    said = night(project, "--replay", str(replies), "--run", "python nothing.py", expect=2)
    assert said.count("the unchanged program does not run") == 1
    night(project, "--replay", str(replies), "--experiments", "1")
    (tmp_path / "copy").mkdir()
    shutil.copy(project / ".research" / "night" / "ledger.db", tmp_path / "copy")
    ended = Ledger(tmp_path / "copy", readonly=True).night().ended
    assert ended and ended.code == 0, "the journal is one whole file"
    said = night(project, "--replay", str(replies), "--run", "python train.py  --x", expect=2)
    assert "begun with another run" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--metric", ""), "metric.name"),
        (("--run", ""), "is no command line (is empty"),
        (("--run", 'python "x'), "is no command line (No closing quotation)"),
        (("--hours", "0"), "--hours 0 leaves no time"),
        (("--hours", "inf"), "less than or equal to 100000"),
    ],
)
def test_empty_and_broken_values_are_refused_before_anything_starts(project: Path, flags: tuple[str, ...], says: str):
    said = night(project, *flags, expect=2)
    assert says in said and said.count("\n") == 1
    assert not (project / ".research").exists()


def test_an_unknown_night_is_answered_with_the_known_ones(project: Path, tmp_path: Path):
    replies = write_replies(tmp_path / "replies", STORY[0])
    night(project, "--replay", str(replies), "--experiments", "1")
    assert "there is no night called other here; there are: night" in agent(
        "report", "--repo", str(project), "--tag", "other", expect=2
    )


def test_only_a_loop_is_taken_for_one_and_not_somebody_else_who_looks(tmp_path: Path):
    assert not is_worked_on(tmp_path)
    held = lock(tmp_path)
    assert is_worked_on(tmp_path)
    held.release()
    with (tmp_path / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as one who looks at the same moment
        assert not is_worked_on(tmp_path)


def test_texts_name_commands_as_they_were_typed(project: Path, tmp_path: Path):
    script = tmp_path / "bin" / "overnight"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom agent.cli import main\nmain()\n")
    script.chmod(0o755)
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"

    def says(*words: str, **extra: str) -> str:
        ran = subprocess.run(words, cwd=project, env=environment(PYTHONPATH=str(ROOT), COLUMNS="200", **extra),
                             capture_output=True, text=True)  # fmt: skip
        return ran.stdout + ran.stderr

    assert "start one with `overnight run`\n" in says("overnight", "status", PATH=path)
    assert f"start one with `{script} run`\n" in says(str(script), "status")  # which is on no path
    assert "start one with `python -m agent.loop`\n" in says(sys.executable, "-m", "agent", "status")
    long_night(project / ".research" / "monday", 3)
    assert "from its next start on (overnight run --tag monday)" in says("overnight", "suggest", "wider", PATH=path)
    assert "(`overnight --help` lists what there is)" in says("overnight", "suggests", PATH=path)
