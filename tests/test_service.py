"""`service`: a unit that systemd reads, for the command line given; and what to do where there is no systemd."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import agent, project  # noqa: F401

from agent.cli.service import unit, write_unit
from agent.errors import Failure

FLAGS = ["--hours", "10", "--command", "claude -p '100%' $HOME \"x\\y\""]


def test_the_unit_runs_the_command_line_as_it_was_given(tmp_path: Path):
    command = [sys.executable, "-m", "agent.loop", *FLAGS]
    text = unit("night", tmp_path, command, tmp_path / "environment")
    line = next(line for line in text.split("\n") if line.startswith("ExecStart="))
    told = shlex.split(line.removeprefix("ExecStart=").replace("$$", "$").replace("%%", "%"))
    assert told == command
    assert "WantedBy=default.target" in text and f"EnvironmentFile=-{tmp_path}/environment" in text


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here")
    path = tmp_path / "overnight-night.service"
    write_unit(path, unit("night", tmp_path, [sys.executable, "-m", "agent.loop", *FLAGS], tmp_path / "environment"))
    ran = subprocess.run(["systemd-analyze", "verify", "--user", "--man=no", path], capture_output=True, text=True)
    assert not [line for line in ran.stderr.split("\n") if path.name in line], ran.stderr


def test_a_unit_of_somebody_else_is_never_overwritten(tmp_path: Path):
    path = tmp_path / "user" / "overnight-night.service"
    write_unit(path, unit("night", tmp_path, ["a"], tmp_path / "environment"))
    write_unit(path, unit("night", tmp_path, ["b"], tmp_path / "environment"))
    assert 'ExecStart="b"' in path.read_text()
    path.write_text("[Unit]\nDescription=mine\n")
    with pytest.raises(Failure, match="was not written by this command"):
        write_unit(path, "x")
    assert "mine" in path.read_text()


def test_the_command_says_how_to_go_on_and_refuses_flags_that_run_would_refuse(project: Path):  # noqa: F811
    said = agent("service", "--repo", str(project), "--", "--hours", "10")
    assert "systemctl --user" in said or "nohup" in said and "tmux new-session" in said
    assert f"--hours 10 --repo {project} --tag" in said.replace("\n", " ") or "wrote" in said
    agent("service", "--repo", str(project), "--", "--hours", "ten", expect=2)
    said = agent("service", "--repo", str(project), "--", "--tag", "a/b", expect=2)
    assert said == "error: 'a/b' can't name a branch: use letters, digits, dots and dashes in --tag\n"
    said = agent("service", "--repo", str(project), "--", "--notify", "ntfy://token", expect=2)
    assert "set OVERNIGHT_NOTIFY" in said
