"""Training data that comes by a pipe: it lies nowhere in the room, and none comes before the budget starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_evaluation import write_corpus
from test_local import EVALUATE, Lab, contract
from test_prepare import build, run, values

from agent import events as ev
from agent.run.sandbox import choose_sandbox

FEED = """
import sys, time
from pathlib import Path
print("the header", flush=True)
sys.stdin.readline()
print("go", flush=True)
print(Path("DATA").read_text(), flush=True)
"""
# What it saves is its metric: the sum of what it was fed, or what it could read by itself.
TRAIN = """
import os, select, sys
from pathlib import Path
print("header:", sys.stdin.readline().strip())
early = select.select([sys.stdin], [], [], 0.2)[0]
print("ready", flush=True)
assert sys.stdin.readline() == "go\\n"
print("step 1 | loss 1.0 | 50%", flush=True)
total = sum(map(int, sys.stdin.read().split()))
try:
    total = open("DATA") and 0
except OSError:
    total = 0 if early else total
Path(os.environ["RESEARCH_OUTPUT"], "model").write_text(str(total))
"""


@pytest.mark.parametrize("sandbox", ["bubblewrap", "landlock", "none"])
def test_what_is_fed_is_all_that_a_training_gets_to_see(tmp_path: Path, sandbox: str) -> None:
    data = tmp_path / "data" / "numbers"
    data.parent.mkdir()
    data.write_text(" ".join(map(str, range(100_000))))
    hidden = sandbox != "none"
    train = TRAIN.replace("DATA", str(data) if hidden else "/nowhere")
    lab = Lab(tmp_path, sandbox=choose_sandbox(sandbox, private=[tmp_path]))
    try:
        program = contract(feed="python feed.py", data=[str(data.parent)])
        job = lab.job(train, program, **{"feed.py": FEED.replace("DATA", str(data)), "prepare.py": EVALUATE})
        found = lab.end_of(job).measurement
        assert (found.outcome, found.metric) == ("ok", sum(range(100_000))), found.reason
        # One that fails in the middle: what was trained on the half is no measurement, though it ended well.
        half = FEED.replace("DATA", str(data)) + "raise SystemExit('the disk is gone')\n"
        failed = lab.end_of(lab.job(train, program, **{"feed.py": half, "prepare.py": EVALUATE}))
        assert isinstance(failed, ev.MachineFault) and failed.reason == "feed: the disk is gone"
    finally:
        lab.executor.close(now=True)


def test_the_same_batches_come_by_stdin_as_from_the_files_and_end_with_the_budget(tmp_path: Path) -> None:
    write_corpus(tmp_path / "texts")
    values(build(tmp_path / "cache", tmp_path / "texts"))
    env = {"OVERNIGHT_CACHE": tmp_path / "cache", "RESEARCH_OUTPUT": tmp_path / "out", "RESEARCH_SEED": 3}
    env |= {"RESEARCH_BUDGET_TOKENS": 64 * 40, "RESEARCH_BUDGET_SECONDS": 300}
    code = """
import hashlib, prepare
data, budget, digests = prepare.TrainData(), prepare.Budget(), []
budget.start()
for batch in data.batches(4):
    digests.append(hashlib.sha256(batch.tobytes()).hexdigest()[:8])
    if data.served >= 4 * 64 * (100 if prepare.FED else 10):
        break
print("digests:", *digests)
"""
    by_hand = values(run("-c", code, **env))["digests"].split()
    assert len(by_hand) == 10
    environment = {name: str(value) for name, value in env.items()}
    feed = subprocess.Popen(
        [sys.executable, "prepare.py", "feed"], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    training = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment | {"RESEARCH_FEED": "stdin"}, stdin=feed.stdout,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert feed.stdin and feed.stdout and training.stdout
    feed.stdout.close()
    assert training.stdout.readline() == "ready\n"
    feed.stdin.write(b"go\n")
    feed.stdin.close()
    fed = training.stdout.read().split()[1:]
    assert (training.wait(), feed.wait()) == (0, 0)
    assert fed == by_hand  # 2,560 tokens and a twentieth more are ten batches of 256
