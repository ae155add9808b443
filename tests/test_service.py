"""`service`: a unit that systemd reads, for the command line given; and what to do where there is no systemd."""

from __future__ import annotations

import configparser
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import agent, project  # noqa: F401
from test_loop import STORY, command, kinds, wait_for, write_replies

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


def test_what_the_unit_runs_goes_on_after_a_kill_and_is_begun_again_after_no_other_end(project: Path, tmp_path: Path):  # noqa: F811
    """The unit is read as systemd reads it, and its command run twice: killed with its first trial, then to its end."""
    replies = write_replies(tmp_path / "replies", STORY[0])
    flags = command(project, "--replay", str(replies), "--experiments", "1", "--unsafe-no-sandbox")
    reader = configparser.RawConfigParser(strict=False)
    reader.optionxform = str  # type: ignore[assignment]
    reader.read_string(unit("night", tmp_path, flags, tmp_path / "environment"))
    runs = shlex.split(reader["Service"]["ExecStart"].replace("$$", "$").replace("%%", "%"))
    settings = dict(word.split("=", 1) for word in shlex.split(reader["Service"]["Environment"].replace("%%", "%")))
    where = {"cwd": reader["Service"]["WorkingDirectory"], "env": {"HOME": str(tmp_path)} | settings}
    with subprocess.Popen(runs, **where, stdout=subprocess.PIPE) as process:
        began = project / ".research" / "night" / "logs" / "0-0.log"
        wait_for(began.exists, process, "first trial")
        process.kill()
    assert process.returncode == -signal.SIGKILL and reader["Service"]["Restart"] == "on-abnormal"
    ran = subprocess.run(runs, **where, capture_output=True, text=True)
    assert ran.returncode == 0 and kinds(project) == ["baseline", "keep"], ran.stdout + ran.stderr
    assert "going on" in ran.stdout or "goes on" in ran.stdout, ran.stdout
    stopped = shlex.split(reader["Service"]["ExecStopPost"].replace("$$", "$").replace("%%", "%"))
    for status, disabled in (("0", True), ("3", False), ("2", False), ("KILL", False)):
        asked = tmp_path / status
        (tmp_path / "systemctl").write_text(f"#!/bin/sh\necho $* > {asked}\n")
        (tmp_path / "systemctl").chmod(0o755)
        subprocess.run(stopped, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "EXIT_STATUS": status}, check=True)
        assert asked.exists() == disabled
    assert (tmp_path / "0").read_text() == "--user disable overnight-night.service\n"


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
