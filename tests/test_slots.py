"""Several trials at once in one night: wins found beside each other become one verified stack, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, git, make_repository
from test_loop import block, command, environment, kinds, night, results, strays, wait_for, write_replies

from agent import events as ev
from agent.ledger import Ledger

TRAIN = """\
import os, time
from pathlib import Path
RATE = 0.5

WIDTH = 8

for step in range(3):
    print(f"step {step} loss 1.0 {step * 33}%", flush=True)
    gate = Path(os.environ["GATE"])
    while (RATE, WIDTH) != (0.5, 8) and not gate.exists():
        time.sleep(0.01)
print("loss:", (RATE - 0.1) ** 2 + 1 / WIDTH)
"""
PROGRAM = """\
---
metric: {name: loss, direction: minimize}
edit: [train.py]
budget: 60s
environment: [GATE]
timeouts: {startup: 60s}
---
# Direction
Lower the loss by changing the constants; leave the printing of progress alone.
"""
WINS = (block("RATE = 0.5", "RATE = 0.3", "A lower rate."), block("WIDTH = 8", "WIDTH = 16", "A wider layer."))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "project", {"train.py": TRAIN, "program.md": PROGRAM})


def flags(tmp_path: Path, *replies: str) -> tuple[str, ...]:
    folder = write_replies(tmp_path / "replies", *replies)
    return "--replay", str(folder), "--experiments", "2", "--slots", "2", "--unsafe-no-sandbox"


def events(project: Path) -> list[ev.Event]:
    return [event for _, event in Ledger(project / ".research" / "night", readonly=True).events()]


def both_train(project: Path) -> bool:
    """Both candidates have printed their first step."""
    logs = [project / ".research" / "night" / "logs" / name for name in ("1-0.log", "2-0.log")]
    return all(log.exists() and b"step 0" in log.read_bytes() for log in logs)


def test_two_wins_on_one_incumbent_survive_a_kill_and_become_one_stack(project: Path, tmp_path: Path):
    """Both train at the same time when the loop is killed. Started again, each is measured once; the surer win is
    kept, and the other is put onto it and measured there before it is kept as well."""
    options, gate = flags(tmp_path, *WINS), tmp_path / "gate"
    loop = subprocess.Popen(
        command(project, *options), cwd=ROOT, env=environment(GATE=str(gate)), stdout=subprocess.DEVNULL
    )
    wait_for(lambda: both_train(project), loop, "both trials")
    os.kill(loop.pid, signal.SIGKILL)
    loop.wait()
    gate.touch()
    said = night(project, *options, GATE=str(gate))
    assert kinds(project) == ["baseline", "keep", "keep"], said
    text = git(project, "show", "research/night:train.py")
    assert "RATE = 0.3" in text and "WIDTH = 16" in text
    happened = events(project)
    begun = [e for e in happened if isinstance(e, ev.TrialBegun)]
    assert {e.slot for e in begun} == {0, 1}
    assert len({(e.experiment, e.number) for e in begun}) == len({e.seed for e in begun})
    measured = [(e.experiment, e.number) for e in happened if isinstance(e, ev.Measured)]
    assert len(measured) == len(set(measured)), "nothing is measured twice"
    assert len([e for e in happened if isinstance(e, ev.Replied)]) == 2, "nothing is asked for twice"
    (rebased,) = [e for e in happened if isinstance(e, ev.Rebased)]
    kept = [e.commit for e in happened if isinstance(e, ev.Published)]
    assert rebased.parent in kept and git(project, "rev-parse", "research/night^") == rebased.parent
    confirmed = [e for e in begun if e.experiment == rebased.experiment and e.commit == rebased.commit]
    assert confirmed, "the second win is confirmed on the first"
    assert git(project, "rev-list", "--count", "main..research/night") == "2"
    assert strays(project) == []


def test_wins_that_change_the_same_line_are_not_stacked(project: Path, tmp_path: Path):
    options = flags(tmp_path, block("RATE = 0.5", "RATE = 0.3"), block("RATE = 0.5", "RATE = 0.4"))
    gate = tmp_path / "gate"
    gate.touch()
    night(project, *options, GATE=str(gate))
    rows = {row["status"]: row for row in results(project)[1:]}
    assert set(rows) == {"keep", "discard"} and "can't be put onto experiment" in rows["discard"]["reason"]


def test_stop_from_another_terminal_ends_both_trials_and_the_night_goes_on(project: Path, tmp_path: Path):
    options, gate = flags(tmp_path, *WINS), tmp_path / "gate"
    loop = subprocess.Popen(
        command(project, *options), cwd=ROOT, env=environment(GATE=str(gate)), stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: both_train(project), loop, "both trials")
    stop = [*command(project)[:2], "agent", "stop", "--repo", str(project)]
    said = subprocess.run(stop, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert said.returncode == 0 and "asked the loop of night to stop now" in said.stdout
    out, _ = loop.communicate(timeout=120)
    assert loop.returncode == 3 and "the night ends: stopped" in out
    assert [e.what for e in events(project) if isinstance(e, ev.Requested)] == ["stop"]
    assert not list((project / ".research" / "night" / "requests").iterdir())
    assert strays(project) == []
    again = subprocess.run(stop, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.strip() == "error: no loop works on night: there is nothing to stop"
    gate.touch()
    night(project, *options, GATE=str(gate))
    assert kinds(project) == ["baseline", "keep", "keep"]
