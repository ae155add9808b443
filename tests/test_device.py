"""Where trials run: the device of a night, what changes it, and what a machine that refuses namespaces gets."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, git, make_repository
from test_loop import PROGRAM, TRAIN, block, command, environment, kinds, night, write_replies

from agent import events as ev
from agent.errors import Failure
from agent.ledger import Ledger
from agent.night import Night
from agent.policy import Ask, Capacity, Train, next_action
from agent.records import Stoppers, Surroundings
from agent.run.gpu import device_name, find_device, visible_gpus

NO_GPU = pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "project", {"train.py": TRAIN, "prepare.py": "", "program.md": PROGRAM})


@NO_GPU
def test_a_gpu_that_is_wanted_and_not_there_is_refused_in_one_line(project: Path):
    said = night(project, "--device", "cuda", expect=2)
    assert said == "error: no GPU can be seen: look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu\n"


@pytest.mark.parametrize("value", ["", "  ", ","])
def test_an_empty_list_of_devices_means_no_gpu(monkeypatch, value: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == []
    assert find_device() == "cpu"
    assert device_name("cpu") == "cpu"
    with pytest.raises(Failure, match="no GPU can be seen"):
        find_device("cuda")


def test_a_night_goes_on_on_the_kind_of_device_it_was_begun_on(project: Path, tmp_path: Path):
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
    night(project, "--replay", str(replies), "--experiments", "1")
    home = project / ".research" / "night"
    before = Ledger(home, readonly=True).night()
    assert before.hardware == device_name(find_device())
    # the same journal, as another machine would have begun it
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", project, other], check=True)
    change_hardware(other / ".research" / "night", "cuda NVIDIA H100 80GB HBM3")
    said = night(other, "--replay", str(replies), "--experiments", "2", expect=2)
    assert said == (
        f"error: this night was begun on cuda NVIDIA H100 80GB HBM3, but this is {before.hardware}: "
        "choose a new --tag\n"
    )


def change_hardware(home: Path, name: str) -> None:
    """Write the first event of a journal anew, as it were on other hardware."""
    with sqlite3.connect(home / "ledger.db") as db:
        (text,) = db.execute("SELECT event FROM journal WHERE number = 1").fetchone()
        changed = {**json.loads(text), "hardware": name}
        db.execute("UPDATE journal SET event = ? WHERE number = 1", (json.dumps(changed),))
    db.close()


def test_another_card_of_the_same_name_measures_the_incumbent_again(project: Path, tmp_path: Path):
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
    night(project, "--replay", str(replies), "--experiments", "1")
    before = Ledger(project / ".research" / "night", readonly=True).night()
    assert next_action(before.after(started(before, "")), Capacity()) == Ask(2, "first")
    action = next_action(before.after(started(before, "GPU-2")), Capacity())
    assert isinstance(action, Train) and action.experiment == 1


def started(night: Night, cards: str) -> ev.Started:
    """The next process, with these GPUs."""
    assert night.rules
    return ev.Started(
        program=night.program, rules=night.rules, stoppers=Stoppers(experiments=9), device=night.device,
        proposer="replay", **Surroundings(sandbox=night.sandbox, hardware=night.hardware, cards=cards).model_dump(),
    )  # fmt: skip


def test_where_namespaces_are_refused_the_second_wall_stands_and_says_in_what_it_is_weaker(
    project: Path, tmp_path: Path
):
    changes = block("RATE = 0.5", "RATE = 0.3"), block("WIDTH = 8", "WIDTH = [][0]")
    replies = write_replies(tmp_path / "replies", *changes)
    flags = ("--replay", str(replies), "--experiments", "2")
    ran = subprocess.run(
        [sys.executable, "-m", "bench.no_namespaces", *command(project, *flags)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert "trials run in landlock" in ran.stdout, ran.stdout + ran.stderr
    assert "weaker than bubblewrap: a trial can see the names and command lines of other processes" in ran.stdout
    assert kinds(project)[:2] == ["baseline", "keep"]
    report = subprocess.run(
        [sys.executable, "-m", "agent", "report", "--repo", str(project)], cwd=ROOT, capture_output=True, text=True
    )
    assert "the sandbox was landlock" in report.stdout
    assert git(project, "status", "--porcelain") == ""


def test_the_strict_sandbox_is_refused_where_it_can_not_run(project: Path, tmp_path: Path):
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
    ran = subprocess.run(
        [sys.executable, "-m", "bench.no_namespaces",
         *command(project, "--replay", str(replies), "--sandbox", "bubblewrap")],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 2 and ran.stderr.startswith("error: bubblewrap can't run on this machine: ")
    assert ran.stderr.count("\n") == 1


HIDES = """\
import sysconfig
print("hide:", sysconfig.get_path("stdlib") + "/idlelib")
"""
READS = """\
import pathlib, sysconfig
try:
    pathlib.Path(sysconfig.get_path("stdlib"), "idlelib", "run.py").read_text()
    raise SystemExit("it can be read")
except OSError:
    pass
"""


def test_what_the_prepare_command_says_to_hide_no_trial_can_read(tmp_path: Path):
    contract = PROGRAM.replace("budget:", "prepare: python prepare.py\nbudget:")
    files = {"train.py": READS + TRAIN, "prepare.py": HIDES, "program.md": contract}
    project = make_repository(tmp_path / "project", files)
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
    night(project, "--replay", str(replies), "--experiments", "1")
    assert kinds(project) == ["baseline", "keep"]
