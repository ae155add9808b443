"""The benchmark that runs train.py and what it is compared with side by side, and that comparison itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.comparison import train as comparison
from tests.test_evaluation import ROOT, prepared, run, write_corpus

COMPARISON = ROOT / "bench" / "comparison" / "train.py"
# Says which GPU it was given, and waits until the run on the other one has begun too.
ON_A_GPU = """
import os, pathlib, time
gpu, meeting = os.environ["CUDA_VISIBLE_DEVICES"], pathlib.Path(os.environ["MEETING"])
(meeting / gpu).touch()
deadline = time.monotonic() + 60
while len(list(meeting.iterdir())) < 2:
    assert time.monotonic() < deadline, "the other run did not begin"
    time.sleep(0.01)
print(f"on_gpu: {gpu}")
"""


def bench(*options: str, env: dict[str, str | Path] | None = None) -> subprocess.CompletedProcess[str]:
    return run(str(ROOT / "bench" / "train_speed.py"), *options, cwd=ROOT, **(env or {}))


def runs(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])["runs"]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.slow
def test_the_comparison_learns_and_its_evaluation_is_accepted(tmp_path: Path) -> None:
    write_corpus(tmp_path / "texts", train_pieces=100)
    env = prepared(tmp_path, tmp_path / "texts", 128)
    small_steps = "STEP_TOKENS=2048 DEVICE_ROWS=8"
    done = bench("--program", str(COMPARISON), "-v", small_steps, "--tokens", "16384", env=env)
    (row,) = runs(done)
    assert row["program"] == "bench/comparison/train.py"
    assert row["total_tokens"] == 16384 and row["num_steps"] == 8  # of two passes through the model each
    assert 1.0 < row["val_bpb"] < 4.4  # log2 of 512 tokens is 9, of two bytes or so each
    assert {"startup_seconds", "ending_seconds", "mfu_percent", "evaluation_wall_seconds"} <= set(row)
    table = next(line for line in done.stdout.splitlines() if "comparison" in line)
    assert row["program_hash"] in table and str(row["val_bpb"]) in table


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_windows_by_flex_attention_and_by_masks_give_the_same() -> None:
    """The one trains on a GPU, the other evaluates."""
    torch.manual_seed(0)
    config = comparison.Config(64, 128, depth=4, width=64, head_size=32)
    model = comparison.new_model(config, "cpu").requires_grad_(False)
    for p in model.parameters():
        if p.dim() == 2:
            p.normal_(std=0.2)
    tokens = torch.randint(64, (2, 128))
    masked = model(tokens)
    assert torch.allclose(masked, model(tokens, model.flex_masks("cpu")), atol=1e-4)
    full = comparison.GPT(replace(config, windows="L")).initialize()
    full.load_state_dict(model.state_dict())
    differs = (full(tokens) - masked).abs().amax((0, 2)) > 1e-4
    assert not differs[:64].any() and differs[64:].all()  # half the context is where a window begins to matter


def test_runs_share_the_gpus_and_say_which_file_gave_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "meeting").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(f"{ON_A_GPU}# {name}\n")
    programs = ("--program", str(tmp_path / "one.py"), "--program", str(tmp_path / "two.py"))
    options = ("--gpus", "0", "5", "--seeds", "0", "1", "--no-evaluation")
    done = runs(bench(*programs, *options, env={"MEETING": tmp_path / "meeting"}))
    assert [(Path(row["program"]).name, row["seed"]) for row in done] == [
        ("one.py", 0), ("two.py", 0), ("one.py", 1), ("two.py", 1)]
    assert {row["on_gpu"] for row in done[:2]} == {0, 5}
    assert all(row["on_gpu"] == float(row["gpu"]) for row in done)
    assert [row["program_hash"] for row in done[:2]] == [
        digest((tmp_path / name).read_text()) for name in ("one.py", "two.py")]


def test_a_variant_runs_where_its_constants_are(tmp_path: Path) -> None:
    (tmp_path / "with_rate.py").write_text("RATE = 1  # the rate\nprint(f'rate: {RATE}')\n")
    (tmp_path / "without.py").write_text("print('rate: 0')\n")
    programs = ("--program", str(tmp_path / "with_rate.py"), "--program", str(tmp_path / "without.py"))
    done = runs(bench(*programs, "-v", "", "-v", "RATE=3", "--no-evaluation"))
    assert [(Path(row["program"]).name, row["variant"], row["rate"]) for row in done] == [
        ("with_rate.py", "as it is", 1), ("without.py", "as it is", 0), ("with_rate.py", "RATE=3", 3)]
    assert done[2]["program_hash"] == digest("RATE = 3  # the rate\nprint(f'rate: {RATE}')\n")


@pytest.mark.parametrize("options", [("-v", "NO_SUCH=1"), ("-v", "WIDTH"), ("--program", "no_such_file.py")])
def test_what_cannot_be_run_is_said_in_one_line(options: tuple[str, str]) -> None:
    done = bench(*options)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert options[1] in line
