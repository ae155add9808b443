"""train.py as the harness runs it: repeatable, honest about its budget, blind to what is held out."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.test_evaluation import ROOT, prepared, run, write_corpus

Environment = dict[str, str | Path]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("train")
    write_corpus(folder / "texts")
    return prepared(folder, folder / "texts", 128)


def train(env: Environment, out: Path, **more: str) -> subprocess.CompletedProcess[str]:
    done = run("train.py", **env | {"RESEARCH_OUTPUT": out, "RESEARCH_BUDGET_TOKENS": "20480"} | more)
    assert done.returncode == 0, done.stderr
    return done


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(\w+): ([\d.]+)$", done.stdout, re.MULTILINE)}


def test_it_learns_and_is_measured(env: Environment, tmp_path: Path) -> None:
    done = train(env, tmp_path)
    lines = done.stdout.splitlines()
    assert re.match(r"step 0 \| loss \d+\.\d+ \| 0\.0%$", lines[0])
    assert {"training_seconds", "startup_seconds", "peak_vram_mb", "num_params"} <= set(summary(done))
    assert summary(done)["total_tokens"] == 20480
    measured = run("prepare.py", "evaluate", **env | {"RESEARCH_OUTPUT": tmp_path})
    assert measured.returncode == 0, measured.stdout + measured.stderr
    untrained = 9.0 / 2.0  # log2 of 512 tokens, of two bytes or so each
    assert 1.0 < summary(measured)["val_bpb"] < untrained - 0.5


def test_the_same_seed_gives_the_same_weights_and_another_does_not(env: Environment, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train(env, tmp_path / name, RESEARCH_SEED=seed, RESEARCH_BUDGET_TOKENS="5120")
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_held_out_text_is_not_needed_to_train(env: Environment, tmp_path: Path) -> None:
    heldout = Path(env["OVERNIGHT_CACHE"]) / "heldout"
    heldout.rename(heldout.with_name("hidden"))
    try:
        train(env, tmp_path, RESEARCH_BUDGET_TOKENS="2048")
    finally:
        heldout.with_name("hidden").rename(heldout)


def test_a_budget_in_seconds_ends_the_training(env: Environment, tmp_path: Path) -> None:
    done = run("train.py", **env | {"RESEARCH_OUTPUT": tmp_path, "RESEARCH_BUDGET_SECONDS": "1"})
    assert done.returncode == 0, done.stderr
    assert summary(done)["training_seconds"] >= 1
    assert summary(done)["num_steps"] >= 1


def test_without_data_it_says_what_to_run(tmp_path: Path) -> None:
    done = run("train.py", OVERNIGHT_CACHE=tmp_path, RESEARCH_OUTPUT=tmp_path)
    assert done.returncode == 2
    assert "python prepare.py" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_constants_at_the_top_are_plain_literals() -> None:
    """What tunes them reads them from the source."""
    body = ast.parse((ROOT / "train.py").read_text()).body
    constants = {
        node.targets[0].id: node.value
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()
    }
    derived = {"CUDA", "TOKENS"}
    assert len(constants) > 20
    for value in (value for name, value in constants.items() if name not in derived):
        ast.literal_eval(value)  # raises ValueError for an expression
