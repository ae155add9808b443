"""Whole nights, end to end: real git, real processes in the real sandbox, real SDKs over real HTTP."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, git, make_repository
from server import ModelServer, Step

TRAIN = """\
import os, time
RATE = 0.5
WIDTH = 8
PAUSE = 0.0
for step in range(3):
    print(f"step {step} loss {RATE / (step + 1):.4f} {step * 33}%", flush=True)
    time.sleep(PAUSE)
print("loss:", (RATE - 0.1) ** 2 + 1 / WIDTH)
"""
PROGRAM = """\
---
metric: {name: loss, direction: minimize}
edit: [train.py]
protect: [prepare.py]
budget: 20s
timeouts: {startup: 20s, evaluation: 1s}
---
# Direction
Lower the loss by changing the constants; leave the printing of progress alone.
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {"train.py": TRAIN, "prepare.py": "# protected\n", "program.md": PROGRAM}
    return make_repository(tmp_path / "project", files)


def command(project: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "agent.loop", "--repo", str(project), "--tag", "night", *flags]


def environment(**extra: str) -> dict[str, str]:
    keys = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY")
    return {name: value for name, value in os.environ.items() if name not in keys} | extra


def night(project: Path, *flags: str, expect: int = 0, **extra: str) -> str:
    ran = subprocess.run(
        command(project, *flags), cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=500
    )
    assert ran.returncode == expect, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout + ran.stderr


def results(project: Path, tag: str = "night") -> list[dict[str, str]]:
    with (project / ".research" / tag / "results.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def kinds(project: Path) -> list[str]:
    return [row["status"] for row in results(project)]


def block(search: str, replace: str, hypothesis: str = "It should help.", path: str = "train.py") -> str:
    return (
        f"Hypothesis: {hypothesis}\nCategory: hyperparameter\n\n{path}\n"
        f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n"
    )


def write_replies(folder: Path, *replies: str) -> Path:
    folder.mkdir()
    for index, reply in enumerate(replies):
        (folder / f"{index:03}.txt").write_text(reply)
    return folder


STORY = [
    block("RATE = 0.5", "RATE = 0.3", "A lower rate lands nearer."),  # keep
    block("RATE = 0.4999", "RATE = 0.2"),  # matches nothing: repaired by the next
    block("RATE = 0.3", "RATE = 0.9", "A higher rate travels further."),  # discard
    block("WIDTH = 8", "WIDTH = [][0]"),  # a slip: the traceback goes back
    block("WIDTH = 8", "WIDTH = [][1]"),  # again
    block("WIDTH = 8", "WIDTH = [][2]", "Lists are wide."),  # crash
    block("RATE = 0.3", 'RATE = float("nan")', "No number is small."),  # NaN
    block("PAUSE = 0.0", "PAUSE = 1000.0", "Patience pays."),  # hang
    block("WIDTH = 8", "WIDTH = 16", "Wider is better."),  # keep
]
VERDICTS = ["baseline", "keep", "discard", "crash", "crash", "timeout", "keep"]


def test_a_night_with_a_model_gives_each_reply_its_own_verdict(project: Path):
    before = git(project, "status", "--porcelain", "--branch")
    with ModelServer(STORY) as server:
        flags = ("--proposer", "anthropic", "--base-url", server.url, "--experiments", "6", "--budget", "1s")
        flags += ("--no-lookahead",)  # the replies are in order
        said = night(project, *flags, ANTHROPIC_API_KEY="sk-planted-key")
    assert kinds(project) == VERDICTS
    prompts = [json.dumps(request) for request in server.requests]
    assert len(prompts) == len(STORY)
    assert "A lower rate lands nearer." in prompts[1] and "KEEP" in prompts[1]
    assert "RATE = 0.4999" in prompts[2]  # the repair: what did not match, and the nearest lines
    assert "A higher rate travels further." in prompts[3] and "DISCARD" in prompts[3]
    assert "IndexError" in prompts[4] and "IndexError" in prompts[5]
    assert "CRASH" in prompts[6]
    assert "nan" in prompts[7]
    assert "TIMEOUT" in prompts[8]
    rows = results(project)
    assert "IndexError" in rows[3]["reason"]
    assert "nan" in rows[4]["reason"].lower() and rows[4]["loss"] == ""
    assert int(rows[1]["tokens"]) == 1200
    log = git(project, "log", "--format=%B", "main..research/night")
    for trailer in (
        "Metric-Before: loss 0.285",
        "Metric-After: loss 0.165",
        "Experiment: 1",
        "Cost: ",
        "Proposer: anthropic",
    ):
        assert trailer in log
    assert git(project, "rev-list", "--count", "main..research/night") == "2"
    assert len(git(project, "for-each-ref", "refs/experiments/night").splitlines()) == 7
    assert git(project, "status", "--porcelain", "--branch") == before
    assert "git log" in said and "git diff" in said and "git merge" in said
    for path in (project / ".research").rglob("*"):
        assert not path.is_file() or b"sk-planted-key" not in path.read_bytes()


def test_a_night_with_a_model_of_the_other_api_repairs_and_judges_as_well(project: Path):
    with ModelServer(STORY[:3]) as server:
        flags = ("--experiments", "2", "--no-lookahead")  # the replies are in order
        night(project, "--proposer", "openai", "--base-url", server.url + "/v1", *flags)
        prompts = [json.dumps(request) for request in server.requests]
    assert kinds(project) == VERDICTS[:3]
    assert len(prompts) == 3
    assert "A lower rate lands nearer." in prompts[1] and "KEEP" in prompts[1]
    assert "RATE = 0.4999" in prompts[2]
    assert "Proposer: openai" in git(project, "log", "--format=%B", "main..research/night")


def test_a_reply_that_was_cut_off_is_never_applied(project: Path):
    with ModelServer([Step(STORY[0], cut=True), block("RATE = 0.5", "RATE = 0.4")]) as server:
        night(project, "--proposer", "openai", "--base-url", server.url + "/v1", "--experiments", "1")
    assert results(project)[1]["status"] == "keep"
    assert "RATE = 0.4" in git(project, "show", "research/night:train.py")
    assert int(results(project)[1]["tokens"]) == 2400  # both were paid for


def test_a_reply_that_can_not_be_repaired_is_invalid_and_the_night_goes_on(project: Path, tmp_path: Path):
    bad = block("not there", "x")
    replies = write_replies(tmp_path / "replies", bad, bad, bad, bad, STORY[0])
    said = night(project, "--replay", str(replies), "--experiments", "1")
    assert "the night ends: 1 experiments are done, as asked; none of their changes could be trained" in said
    night(project, "--replay", str(replies), "--experiments", "2")
    assert kinds(project) == ["baseline", "invalid", "keep"]


def test_what_was_tried_or_may_not_be_edited_costs_no_trial(project: Path, tmp_path: Path):
    protected = block("# protected", "# mine", path="prepare.py")
    replies = write_replies(
        tmp_path / "replies",
        block("RATE = 0.5", "RATE = 0.9"),
        block("RATE = 0.5", "RATE = 0.9  # again"),
        *[protected] * 4,
    )
    night(project, "--replay", str(replies), "--experiments", "3")
    rows = results(project)
    assert [row["status"] for row in rows] == ["baseline", "discard", "duplicate", "invalid"]
    assert [row["trials"] for row in rows[2:]] == ["0", "0"]


def wait_for(condition, process: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, f"the loop ended before {what}"
        assert time.monotonic() < deadline, f"no {what} in 90 s"
        time.sleep(0.02)


def strays(project: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        text = " ".join(process.info["cmdline"] or [])
        if str(project) in text or (process.info["cwd"] or "").startswith(str(project)):
            found.append(process)
    return found


@pytest.mark.parametrize("sandbox", [(), ("--unsafe-no-sandbox",)])
def test_after_kill_9_in_a_trial_the_night_goes_on_and_nothing_is_lost_or_doubled(
    project: Path, tmp_path: Path, sandbox: tuple[str, ...]
):
    """The first slow trial is killed with the loop; started again, it is measured once, and no process is left."""
    slow = TRAIN.replace("PAUSE = 0.0", "PAUSE = float(os.environ.get('SLOW', '0'))")
    (project / "train.py").write_text(slow)
    (project / "program.md").write_text(PROGRAM.replace("budget: 20s", "budget: 20s\nenvironment: [SLOW]"))
    git(project, "commit", "--quiet", "--all", "--message", "slow")
    replies = write_replies(tmp_path / "replies", STORY[0], block("WIDTH = 8", "WIDTH = 16"))
    flags = ("--replay", str(replies), "--experiments", "2", *sandbox)
    night(project, "--replay", str(replies), "--experiments", "1", *sandbox)
    process = subprocess.Popen(
        command(project, *flags), cwd=ROOT, env=environment(SLOW="30"), stdout=subprocess.PIPE, text=True
    )
    log = project / ".research" / "night" / "logs" / "2-0.log"
    wait_for(lambda: log.exists() and b"step 0" in log.read_bytes(), process, "trial of experiment 2")
    process.kill()
    process.wait()
    said = night(project, *flags, SLOW="0")
    assert kinds(project) == ["baseline", "keep", "keep"], said
    assert ("WITHOUT A SANDBOX" in said) == bool(sandbox)
    assert [row["trials"] for row in results(project)][1:] == ["1", "1"]
    assert git(project, "rev-list", "--count", "main..research/night") == "2"
    assert strays(project) == []


def test_ctrl_c_ends_the_trial_cleanly_and_the_night_goes_on(project: Path, tmp_path: Path):
    (project / "train.py").write_text(TRAIN.replace("PAUSE = 0.0", "PAUSE = float(os.environ.get('SLOW', '0'))"))
    (project / "program.md").write_text(PROGRAM.replace("budget: 20s", "budget: 20s\nenvironment: [SLOW]"))
    git(project, "commit", "--quiet", "--all", "--message", "slow")
    replies = write_replies(tmp_path / "replies", STORY[0])
    flags = ("--replay", str(replies), "--experiments", "1")
    process = subprocess.Popen(
        command(project, *flags), cwd=ROOT, env=environment(SLOW="30"), stdout=subprocess.PIPE, text=True
    )
    log = project / ".research" / "night" / "logs" / "0-0.log"
    wait_for(lambda: log.exists() and b"step 0" in log.read_bytes(), process, "baseline")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3 and "the night ends: stopped" in said and "goes on from here" in said
    assert strays(project) == []
    night(project, *flags)
    assert kinds(project) == ["baseline", "keep"]


def test_a_second_loop_on_the_same_tag_is_refused(project: Path, tmp_path: Path):
    (project / "train.py").write_text(TRAIN.replace("PAUSE = 0.0", "PAUSE = 30.0"))
    git(project, "commit", "--quiet", "--all", "--message", "slow")
    process = subprocess.Popen(command(project), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    log = project / ".research" / "night" / "logs" / "0-0.log"
    wait_for(lambda: log.exists() and b"step 0" in log.read_bytes(), process, "baseline")
    said = night(project, expect=2)
    assert said.strip() == "error: night is already being worked on by another loop: choose another --tag"
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)


def test_a_broken_program_in_the_night_keeps_the_last_good_version(project: Path, tmp_path: Path):
    """The reply's command breaks program.md while it is asked, as a person would at 2 a.m.; the next one changes it, so
    that its own proposal is asked for again."""
    broken = PROGRAM.replace("metric:", "metrik:").replace("'", "")
    wider = block("WIDTH = 8", "WIDTH = 16")
    proposer = tmp_path / "propose.py"
    proposer.write_text(
        "import pathlib, sys\n"
        f"path = pathlib.Path({str(project / 'program.md')!r})\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "n = int(count.read_text()) if count.exists() else 0\n"
        "count.write_text(str(n + 1))\n"
        f"path.write_text([{broken!r}, {PROGRAM + 'NEW DIRECTION: go wide.'!r}, '', ''][n] or path.read_text())\n"
        "pathlib.Path(count.parent / f'prompt{n}').write_text(sys.stdin.read())\n"
        f"print([{STORY[0]!r}, 'too late', {wider!r}, {block('RATE = 0.3', 'RATE = 0.2')!r}][n])\n"
    )
    said = night(project, "--command-unsandboxed", "--command", f"{sys.executable} {proposer}", "--experiments", "3")
    assert "#2 is asked for again: its proposal (unknown" in said and "is older than the edit of program.md" in said
    assert kinds(project) == ["baseline", "keep", "keep", "keep"]
    assert "unknown key 'metrik'" in said and "last good version" in said
    assert "NEW DIRECTION" not in (tmp_path / "prompt1").read_text()
    assert "NEW DIRECTION" in (tmp_path / "prompt2").read_text()


def test_a_stop_file_and_a_target_end_the_night(project: Path, tmp_path: Path):
    replies = write_replies(tmp_path / "replies", STORY[0], block("WIDTH = 8", "WIDTH = 16"))
    assert "the target is reached" in night(project, "--replay", str(replies), "--target", "0.2")
    (project / ".research" / "night" / "STOP").touch()
    said = night(project, "--replay", str(replies), expect=3)
    assert "STOP is there" in said and "delete the file STOP, and the same command goes on" in said
    assert len(results(project)) == 2


def test_the_dollar_cap_is_never_passed_and_an_unknown_price_is_refused(project: Path):
    with ModelServer([STORY[0], block("WIDTH = 8", "WIDTH = 16")]) as server:
        flags = ("--proposer", "anthropic", "--base-url", server.url, "--usd")
        said = night(project, *flags, "0.0001", expect=2, ANTHROPIC_API_KEY="k")
        assert "--usd 0.0001 is less than one call may cost" in said and server.requests == []
        assert not (project / ".research" / "night" / "logs").exists(), "told before anything is trained"
        said = night(project, *flags, "5", "--model", "nobody-knows-me", expect=2, ANTHROPIC_API_KEY="k")
        assert "what nobody-knows-me costs is not known: leave --usd out" in said and server.requests == []


def test_an_original_autoresearch_repository_runs_with_flags_alone(tmp_path: Path):
    """train.py prints `val_bpb:` in its summary, program.md has no front matter, prepare.py holds the budget."""
    files = {
        "train.py": "from prepare import TIME_BUDGET\nDEPTH = 8\nprint('---')\n"
        "print(f'val_bpb:          {8 / DEPTH:.6f}')\nprint('peak_vram_mb:     45060.2')\n",
        "prepare.py": "TIME_BUDGET = 300\n",
        "program.md": "# autoresearch\nAn experiment to have the LLM do its own research on the training script.\n",
    }
    project = make_repository(tmp_path / "original", files)
    replies = write_replies(tmp_path / "replies", block("DEPTH = 8", "DEPTH = 10"))
    night(project, "--metric", "val_bpb", "--budget", "5m", "--replay", str(replies), "--experiments", "1")
    rows = results(project)
    assert [(row["status"], row["val_bpb"]) for row in rows] == [("baseline", "1"), ("keep", "0.8")]
    assert float(rows[0]["memory_gb"]) == pytest.approx(45060.2 / 1024, rel=1e-3)


def test_an_accuracy_of_a_scikit_learn_script_is_maximized(tmp_path: Path):
    files = {
        "fit.py": "from sklearn.datasets import load_digits\nfrom sklearn.tree import DecisionTreeClassifier\n"
        "DEPTH = 2\nx, y = load_digits(return_X_y=True)\n"
        "model = DecisionTreeClassifier(max_depth=DEPTH, random_state=0).fit(x[:1200], y[:1200])\n"
        "print(f'held-out accuracy = {model.score(x[1200:], y[1200:]):.4f} of 1')\n",
        "program.md": "Find a better classifier of the digits by changing the model and its depth.\n",
    }
    project = make_repository(tmp_path / "digits", files)
    replies = write_replies(
        tmp_path / "replies",
        block("DEPTH = 2", "DEPTH = 10", path="fit.py"),
        block("DEPTH = 10", "DEPTH = 1", path="fit.py"),
    )
    flags = ("--metric", "accuracy", "--direction", "maximize", "--pattern", r"accuracy = ([0-9.]+)")
    night(project, *flags, "--run", "python fit.py", "--edit", "fit.py", "--replay", str(replies), "--experiments", "2")
    assert kinds(project) == ["baseline", "keep", "discard"]
    assert float(results(project)[1]["accuracy"]) > float(results(project)[0]["accuracy"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--metric", "loss", "--edit", "nowhere.py"), "nowhere.py is not a committed file"),
        (("--proposer", "command"), "needs --command"),
        (("--proposer", "openai"), "OPENAI_API_KEY"),
        (("--budget", "soon"), "write 20s, 5m"),
        (("--sandbox", "cage"), "--sandbox cage is not known"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(project: Path, flags: tuple[str, ...], says: str):
    said = night(project, *flags, expect=2)
    assert says in said and len(said.strip().splitlines()) == 1


def test_a_baseline_that_does_not_run_says_why_and_can_be_corrected(project: Path, tmp_path: Path):
    (project / "train.py").write_text("import nothing_of_that_name\n")
    git(project, "commit", "--quiet", "--all", "--message", "broken")
    replies = write_replies(tmp_path / "replies", STORY[0])
    said = night(project, "--replay", str(replies), expect=2)
    assert "the unchanged program does not run" in said and "nothing_of_that_name" in said
    (project / "train.py").write_text(TRAIN)
    git(project, "commit", "--quiet", "--all", "--message", "corrected")
    night(project, "--replay", str(replies), "--experiments", "1")
    assert kinds(project) == ["baseline", "keep"]
