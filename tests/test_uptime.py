"""Limits of time: what hangs is ended soon, and time in which this program was stopped counts for nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_ledger import asked, begun
from test_local import Lab, contract
from test_policy import measured, proposed, train
from test_process import wait_for

from agent import events as ev
from agent.actions import slowest_start
from agent.policy import Capacity, GiveUp, deadline, next_action
from agent.records import Measurement
from agent.run.trial import bounded, first_limit
from agent.uptime import LATE, TICK, Uptime


@given(st.lists(st.tuples(st.sampled_from([0.01, TICK, LATE]), st.sampled_from([0.0, 30.0, 1e5])), max_size=30))
def test_stops_are_left_out_and_everything_else_counts(steps: list[tuple[float, float]]):
    clock = [100.0]
    uptime = Uptime(lambda: clock[0])
    began, ran = uptime.now(), 0.0
    for seconds, stopped in steps:
        clock[0] += seconds + stopped
        ran += TICK if stopped else seconds
        assert uptime.now() - began == pytest.approx(ran, abs=1e-6)


HARNESS = """
import os, sys; from pathlib import Path
from agent.run.process import *
command = "import time, pathlib\\nprint('begun', flush=True)\\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
limit = Limit(60, "too slow to start")
begun = lambda line: (limit.within(3, "too slow"), Path("begun").touch())
print(run_process([sys.executable, "-c", command], cwd=Path("."), env=os.environ, log=Log(Path("log")),
                  limit=limit, cancel=Cancel(), on_line=begun))
"""


def test_a_program_that_was_stopped_ends_no_command_at_its_limit(tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", HARNESS]
    harness = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    wait_for((tmp_path / "begun").exists)
    os.kill(harness.pid, signal.SIGSTOP)
    threading.Event().wait(4.0)  # the stop itself: longer than the limit of 3 s
    os.kill(harness.pid, signal.SIGCONT)
    (tmp_path / "go").touch()
    said, _ = harness.communicate(timeout=60)
    assert "Ended(code=0, stopped=''" in said


ASKING = """
from agent.propose.command import CommandProposer
from agent.uptime import Alarm
rung = []
Alarm(3.0, lambda: rung.append("rung"))
asked = "sh -c 'touch begun; while [ ! -e go ]; do sleep 0.01; done; echo a reply'"
print(CommandProposer(asked, deadline=3.0).run(b""), rung)
"""


def test_a_program_that_was_stopped_gives_up_no_reply(tmp_path: Path):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    harness = subprocess.Popen([sys.executable, "-c", ASKING], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    wait_for((tmp_path / "begun").exists)
    os.kill(harness.pid, signal.SIGSTOP)
    threading.Event().wait(4.0)  # the stop itself: longer than the deadline of 3 s
    os.kill(harness.pid, signal.SIGCONT)
    (tmp_path / "go").touch()
    assert harness.communicate(timeout=60)[0] == "a reply\n []\n"


def test_a_night_that_was_stopped_gives_up_nothing_for_it():
    one = Capacity()
    night = begun(*proposed(1, 0), train(1).model_copy(update={"at": 10.0}))
    until = deadline(night)
    assert until is not None and until == 10.0 + 100.0
    late = night.after(ev.Waited(at=until + 5000.0))
    assert next_action(late, one) == GiveUp("trial", 1, 0)
    woken = night.after(ev.Waited(at=until + 5000.0, stopped=5050.0))
    assert next_action(woken, one) is None and deadline(woken) == until + 5050.0
    call = begun(asked(0).model_copy(update={"at": 10.0})).after(ev.Waited(at=9000.0, stopped=8000.0))
    assert next_action(call, one) is None


def test_a_hang_in_startup_is_ended_by_what_starts_have_taken_and_the_reason_says_so(tmp_path: Path):
    night = begun()
    assert slowest_start(night) == 0.0
    slow = Measurement(outcome="ok", metric=1.0, startup_seconds=40.0)
    again = ev.Measured(experiment=0, number=1, attempt=1, measurement=slow)
    night = night.after(train(0, 1)).after(again)
    assert slowest_start(night) == 40.0
    lab = Lab(tmp_path)

    def first(start: float | None, speaks: bool) -> str:
        job = lab.job("", contract(budget="15s")).model_copy(update={"slowest_start": start, "speaks": speaks})
        return first_limit(lab.executor._task(job), 31.5).why

    assert first(None, True) == "killed at 300 s without a progress line"
    assert first(40.0, True) == "killed at 90 s without a progress line; the slowest start so far took 40.0 s"
    assert first(1.5, False).startswith("killed at 62 s without a progress line and without an end; the slowest start")
    assert first(290.0, True) == "killed at 300 s without a progress line", "never more than the contract says"


def test_a_hang_after_the_last_progress_line_is_ended_by_what_was_seen_too(tmp_path: Path):
    """Without an `evaluate` command; by what the contract alone says it would have five minutes to measure itself."""
    lab = Lab(tmp_path, slack=1.0)
    program = contract(evaluate=None, test=None, budget="1s")
    job = lab.job("", program).model_copy(update={"slowest_end": 0.1})
    task = lab.executor._task(job)
    assert bounded(task.evaluation, task.slowest_end, task.slack) == 30.0
    assert bounded(task.evaluation, None, task.slack) == 300.0
    trains_on = "import time\nfor n in range(10**9):\n    print(f'step {n} loss 1', flush=True)\n    time.sleep(0.01)\n"
    found = lab.run(trains_on, program)
    assert (found.outcome, found.reason) == ("timeout", "training with a budget of 1s did not end within 3 s")


def test_a_script_without_progress_has_what_others_took_beyond_their_budget():
    silent = Measurement(outcome="ok", metric=1.0, training_seconds=25.0)
    night = begun().after(train(0, 1)).after(measured(0, 1).model_copy(update={"measurement": silent}))
    assert night.rules is not None
    rules = night.rules.model_copy(update={"budget_seconds": 15.0})
    night = night.after(ev.Steered(text="t", program="p", rules=rules))
    assert slowest_start(night) == 10.0


