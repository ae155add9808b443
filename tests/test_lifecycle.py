"""When a night ends, waits or goes on: real loops, signals, commands and HTTP."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, git, make_repository
from server import ModelServer, Step
from test_cli import agent
from test_loop import (
    PROGRAM,
    STORY,
    TRAIN,
    block,
    command,
    environment,
    kinds,
    night,
    results,
    strays,
    wait_for,
    write_replies,
)

from agent import events as ev
from agent.cli.nights import choose_tag
from agent.errors import Failure
from agent.ledger import Ledger
from agent.policy import Capacity
from agent.program import Program
from agent.records import Stoppers
from bench.simulate import PROGRAM as SIMULATED
from bench.simulate import Watch, one_process
from bench.stop import journal
from bench.world import Faults, World


@pytest.fixture
def project(tmp_path: Path) -> Path:
    slow = TRAIN.replace("PAUSE = 0.0", "PAUSE = float(os.environ.get('SLOW', '0'))")
    program = PROGRAM.replace("budget: 20s", "budget: 20s\nenvironment: [SLOW]")
    files = {"train.py": slow, "prepare.py": "# protected\n", "program.md": program}
    return make_repository(tmp_path / "project", files)


def began(project: Path, kind: type[ev.Event]) -> bool:
    return any(isinstance(event, kind) for event in journal(project / ".research" / "night"))


# A model that can't be had.


@pytest.mark.parametrize("falls_back", [False, True])
def test_a_night_whose_model_is_away_for_an_hour_waits_for_it_or_searches_and_comes_to_its_end(falls_back: bool):
    world = World(random.Random(1), Faults(), Program.model_validate(SIMULATED))
    world.inspector = watch = Watch(world)
    world.away = "final: HTTP 402: the account has no credit"
    world.at(3600, lambda: setattr(world, "away", ""))
    assert one_process(world, watch, Capacity(), Stoppers(experiments=20), falls_back) == 0
    names = [type(event).__name__ for event in world.journal]
    assert names.count("Paused") == names.count("Resumed") == 1
    pause = next(event for event in world.journal if isinstance(event, ev.Paused))
    assert "no credit" in pause.reason and pause.until > pause.at
    meanwhile = [event for event in world.journal if isinstance(event, ev.Asked) and event.fallback]
    assert bool(meanwhile) == falls_back
    assert len(watch.night.order) == 21 and names.count("CallFailed") < 15


def test_a_refused_key_pauses_the_night_a_signal_ends_the_pause_and_the_same_command_goes_on(project: Path):
    refused = Step(status=401, kind="authentication_error")
    with ModelServer([STORY[0], refused, block("WIDTH = 8", "WIDTH = 16")]) as server:
        flags = ("--proposer", "openai", "--base-url", server.url + "/v1", "--experiments", "2")
        process = subprocess.Popen(
            command(project, *flags), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
        )
        wait_for(lambda: began(project, ev.Paused), process, "pause")
        assert "paused: openai gpt-6.1-sol: the key was refused" in agent("status", "--repo", str(project))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 3, said
        for part in ("paused: ", "tried again by itself", "stopping", "goes on from here", "git merge"):
            assert part in said
        again = [part for part in command(project, *flags) if part not in ("--tag", "night")]
        ran = subprocess.run(again, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100)
        assert ran.returncode == 0 and "going on with night night: 1 experiments" in ran.stdout, ran.stdout + ran.stderr
    assert kinds(project) == ["baseline", "keep", "keep"]


def test_a_talk_that_does_not_fit_the_model_is_shortened_then_dropped_and_the_night_goes_on(project: Path):
    """And what a person writes in prompts/repair.j2 is used, though slip.j2 beside it is broken."""
    (project / "prompts").mkdir()
    (project / "prompts" / "repair.j2").write_text("MY OWN REPAIR: {{ error }}")
    (project / "prompts" / "slip.j2").write_text("{{ no end")
    too_long = Step(status=400, message="the request exceeds the available context size (8192 tokens)")
    replies = [STORY[0], block("not there", "x"), too_long, too_long, block("WIDTH = 8", "WIDTH = [][0]")]
    with ModelServer([*replies, block("WIDTH = 8", "WIDTH = 16")]) as server:
        said = night(project, "--proposer", "openai", "--base-url", server.url + "/v1", "--experiments", "3")
        assert kinds(project) == ["baseline", "keep", "skipped", "keep"], said
        assert "MY OWN REPAIR" in server.prompts[2] and "MY OWN REPAIR" in server.prompts[3]
        sizes = [len(str(request["body"]["messages"])) for request in server.requests]
        assert sizes[3] < sizes[2], "asked again with less to read"
        assert "IndexError" in server.prompts[5] and "prompts/slip.j2" in said
    assert "does not fit the model" in results(project)[2]["reason"]


def test_when_there_is_nothing_more_to_propose_search_goes_on_where_it_was_chosen(project: Path, tmp_path: Path):
    """The last reply is a slip, which is sent back: nobody mends it, so it is judged as the crash that it is."""
    replies = write_replies(tmp_path / "replies", STORY[0], STORY[3])
    said = night(project, "--replay", str(replies), expect=3)
    assert "replay is exhausted" in said and "with another --proposer" in said
    assert kinds(project) == ["baseline", "keep", "crash"] and "IndexError" in results(project)[2]["reason"]
    night(project, "--replay", str(replies), "--fallback", "search", "--experiments", "3")
    assert len(kinds(project)) == 4


# What is checked before anything is trained.


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--proposer", "openai", "--base-url", "http://127.0.0.1:9/v1"), "can't be reached"),
        (("--command", "/no/such/program --print"), "there is no such program"),
        (("--fallback", "magic", "--command", "cat"), "--fallback magic is not known"),
        (("--budgett", "5m"), "No such option: --budgett"),
        (("--experiments", "many"), "Invalid value for '--experiments'"),
    ],
)
def test_what_can_be_told_beforehand_is_one_line_and_no_trial(project: Path, flags: tuple[str, ...], says: str):
    said = night(project, *flags, expect=2)
    assert says in said and len(said.strip().splitlines()) == 1
    assert not (project / ".research" / "night" / "logs").exists()


def test_a_model_that_the_server_does_not_have_is_refused_and_the_only_one_is_taken(project: Path):
    flags = ("--proposer", "openai", "--experiments", "1", "--base-url")
    with ModelServer([STORY[0]], models=("qwen3-coder:latest",)) as server:
        said = night(project, *flags, server.url + "/v1", "--model", "gpt-4", expect=2)
        assert "there is no model gpt-4" in said and "qwen3-coder:latest" in said and server.requests == []
        night(project, *flags, server.url + "/v1")
        assert [request["body"]["model"] for request in server.requests] == ["qwen3-coder:latest"]


def test_search_without_constants_is_told_before_a_trial(project: Path):
    (project / "train.py").write_text("print('loss:', 1)\n")
    git(project, "commit", "--quiet", "--all", "--message", "no constants")
    assert "search finds no constant in train.py" in night(project, expect=2)


# Signals, and what reads the output.


def test_a_closed_terminal_and_a_reader_that_has_gone_do_not_end_a_night(project: Path, tmp_path: Path):
    flags = ("--replay", str(write_replies(tmp_path / "replies", STORY[0])), "--experiments", "1")
    process = subprocess.Popen(
        command(project, *flags), cwd=ROOT, env=environment(SLOW="0.1"), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    wait_for(lambda: began(project, ev.TrialBegun), process, "trial")
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=100) == 0
    assert kinds(project) == ["baseline", "keep"]


def test_ctrl_c_while_a_command_proposes_says_so_and_leaves_no_process(project: Path, tmp_path: Path):
    proposer, pid = tmp_path / "propose.py", tmp_path / "pid"
    proposer.write_text(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    process = subprocess.Popen(
        command(project, "--command-unsandboxed", "--command", f"{sys.executable} {proposer}"),
        cwd=ROOT, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: pid.exists() and pid.read_text(), process, "the command")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "stopping" in said and "goes on from here" in said and "baseline" in said
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid.read_text())).wait(timeout=10)  # it was killed; init takes a moment to see to it
    assert strays(project) == []


def test_status_tells_what_a_dead_loop_was_doing_and_how_to_go_on(project: Path):
    process = subprocess.Popen(command(project), cwd=ROOT, env=environment(SLOW="30"), stdout=subprocess.DEVNULL)
    log = project / ".research" / "night" / "logs" / "0-0.log"
    wait_for(lambda: log.exists() and b"step 0" in log.read_bytes(), process, "baseline")
    assert "#0 trains (trial 1)" in agent("status", "--repo", str(project))
    process.kill()
    process.wait()
    said = agent("status", "--repo", str(project))
    assert "#0 was cut off in trial 1" in said and "no loop works on it" in said and "goes on from here" in said
    assert "trains" not in said


# Which night a command means.


@pytest.mark.parametrize(("code", "next_one"), [(3, "first"), (2, "first"), (None, "first"), (0, "today")])
def test_a_night_that_is_not_finished_goes_on_and_a_finished_one_does_not(
    tmp_path: Path, code: int | None, next_one: str
):
    ledger = Ledger(tmp_path / ".research" / "first")
    ledger.append(ev.Noted(text="begun"))
    if code is not None:
        ledger.append(ev.Ended(reason="r", code=code))
    ledger.close()
    assert choose_tag(tmp_path, None, "today", new=False) == next_one
    assert choose_tag(tmp_path, None, "today", new=True) == "today"
    assert choose_tag(tmp_path, "first", "today", new=False) == "first"
    with pytest.raises(Failure, match="leave --new out"):
        choose_tag(tmp_path, "first", "today", new=True)
