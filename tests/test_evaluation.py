"""Every leak is refused and every honest model is measured, by the real evaluation in its real processes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import evaluation

ROOT = Path(__file__).resolve().parent.parent
LEAKS = ROOT / "tests" / "leaks"
FIRST = ("softmax", "non_causal", "state")  # one of each
HONEST = ("linear", "window", "convolution")
NOT_CAUSAL = ("block_16", "block_64", "block_256", "spectral", "peek_200")
NOT_BY_ITSELF = ("batch_norm", "batch_attention")
Saved = tuple[dict[str, str | Path], dict]


def write_corpus(folder: Path, train_pieces: int = 300) -> None:
    """Pieces of the standard library, with more of the held-out kind than chance gives: real text, and little."""
    folder.mkdir()
    wanted = {"val": 30, "test": 30, "train": train_pieces}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        for start in range(0, len(text) - 4000, 4000):
            piece = text[start : start + 4000]
            first = hashlib.sha1(piece.encode()).digest()[0]
            split = "val" if first < 5 else "test" if first < 10 else "train"
            if wanted[split]:
                wanted[split] -= 1
                (folder / f"{path.parent.name}-{path.stem}-{start}.txt").write_text(piece)


def run(*command: str, cwd: Path = ROOT, **env: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in env.items()}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "texts"
    write_corpus(folder)
    return folder


def prepared(folder: Path, corpus: Path, context: int) -> dict[str, str | Path]:
    """A cache of its own for `context`, as environment variables."""
    env: dict[str, str | Path] = {"OVERNIGHT_CACHE": folder / "cache", "RESEARCH_OUTPUT": folder / "out"}
    done = run("prepare.py", "--source", str(corpus), "--vocab-size", "512", "--context", str(context), **env)
    assert done.returncode == 0, done.stderr
    return env


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, str | Path]:
    return prepared(tmp_path_factory.mktemp("short"), corpus, 512)


def outcomes(env: dict[str, str | Path], *kinds: str) -> dict[str, dict]:
    done = run(str(LEAKS / "train.py"), *kinds, **env)
    assert done.returncode == 0, done.stderr
    return {row["kind"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def first(short: dict[str, str | Path]) -> dict[str, dict]:
    return outcomes(short, *FIRST)


@pytest.fixture(scope="module")
def others(short: dict[str, str | Path]) -> dict[str, dict]:
    return outcomes(short, *HONEST, *NOT_CAUSAL, *NOT_BY_ITSELF)


@pytest.fixture(scope="module")
def saved(short: dict[str, str | Path], first: dict[str, dict]) -> Saved:
    """The softmax model in a folder of its own, as environment variables, and what its second evaluation gave."""
    env = short | {"RESEARCH_OUTPUT": Path(short["RESEARCH_OUTPUT"]).with_name("saved")}
    claimed = {"RESEARCH_INCUMBENT": str(first["softmax"]["val_bpb"] + 0.0001)}
    return env, outcomes(env | claimed, "softmax")["softmax"]


def assert_measured(found: dict) -> None:
    assert 1.5 < found["val_bpb"] < 4.5
    assert found["canary_bits"] > 8.9  # log2 of 511 is 8.997


@pytest.mark.slow
def test_honest_models_are_measured_and_leaks_are_refused(first: dict[str, dict]) -> None:
    assert_measured(first["softmax"])
    assert "not causal" in first["non_causal"]["violation"]
    assert "other rows of its batch or on earlier batches" in first["state"]["violation"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", HONEST)
def test_other_honest_models_are_measured(others: dict[str, dict], kind: str) -> None:
    assert_measured(others[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_a_model_that_sees_later_tokens_is_refused(others: dict[str, dict], kind: str) -> None:
    assert "not causal" in others[kind]["violation"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOT_BY_ITSELF)
def test_a_model_that_mixes_rows_is_refused(others: dict[str, dict], kind: str) -> None:
    assert "other rows of its batch or on earlier batches" in others[kind]["violation"]


@pytest.mark.slow
def test_a_leak_far_into_a_long_context_is_refused(tmp_path: Path, corpus: Path) -> None:
    found = outcomes(prepared(tmp_path, corpus, 2048), "beyond_1000", "softmax")
    assert "not causal" in found["beyond_1000"]["violation"]
    assert "val_bpb" in found["softmax"]


def test_probes_never_show_what_a_later_one_asks_for() -> None:
    """Several splices of one row come in turns, the shorter beginnings first; rows shown whole are not spliced."""
    rng = np.random.default_rng(0)
    inputs, tails = rng.integers(0, 9, (12, 16)), rng.integers(0, 9, (60, 16))
    probe = evaluation.plan_probe(inputs, rng.normal(size=(12, 16)), tails, rng)
    spliced = list(zip(probe.rows[:60], probe.turn[:60], probe.at[:60], strict=True))
    assert not {row for row, _, _ in spliced} & set(probe.rows[60:])
    for row in {row for row, _, _ in spliced}:
        mine = sorted((turn, at) for r, turn, at in spliced if r == row)
        assert [turn for turn, _ in mine] == list(range(len(mine)))
        assert [at for _, at in mine] == sorted(at for _, at in mine)
    for number, (row, _, at) in enumerate(spliced):
        assert (probe.inputs[number, :at] == inputs[row, :at]).all()
        assert (probe.inputs[number, at:] == tails[number, at:]).all()


@pytest.mark.slow
def test_what_is_claimed_decides_how_many_probes_there_are(first: dict[str, dict], saved: Saved) -> None:
    """An evaluation that is told the incumbent's value probes deeply enough for the gain that it sees."""
    few, found = first["softmax"], saved[1]
    assert (few["probes"], found["probes"]) == (96, 768)
    assert found["val_bpb"] == few["val_bpb"]  # evaluating is repeatable to the last digit
    assert evaluation.probes_needed(-5.0, 1000.0, "cpu") == evaluation.probes_needed(500.0, 1000.0, "cpu") == 96
    assert evaluation.probes_needed(10.0, 1000.0, "cpu") == 512  # ln(100) / (0.9 * 1%), rounded up


def copy_protected(folder: Path) -> None:
    for name in ("prepare.py", "corpus.py", "documents.py", "cleaning.py", "evaluation.py", "evaluated_model.py"):
        shutil.copy(ROOT / name, folder)


def test_no_number_is_no_agreement() -> None:
    inf, nan = math.inf, math.nan
    found = evaluation.apart(np.array([1.0, -inf, -inf, 1.0, nan]), np.array([0.5, -inf, 0.0, inf, nan]))
    assert found[:2].tolist() == [0.5, 0.0]
    assert (np.abs(found[2:]) > 1e300).all()


def evaluate_with(env: dict[str, str | Path], folder: Path, first_lines: str) -> subprocess.CompletedProcess[str]:
    """The saved model, evaluated with `first_lines` run when its code is imported."""
    code = (LEAKS / "train.py").read_text().split("from __future__ import annotations\n", 1)[1]
    (folder / "train.py").write_text(first_lines + code)
    copy_protected(folder)
    return run("prepare.py", "evaluate", cwd=folder, **env)


@pytest.mark.slow
def test_code_that_replaces_functions_changes_no_number(saved: Saved, tmp_path: Path) -> None:
    env, measured = saved
    patch = (
        "import json, sys, torch\n"
        "torch.logsumexp = lambda x, **k: x.sum(-1, keepdim=True) * 0\n"
        "torch.nn.functional.cross_entropy = lambda *a, **k: torch.zeros(())\n"
        "json.dumps = lambda *a, **k: 'val_bpb: 0.1'\n"
        "print('val_bpb: 0.1'); sys.stderr.write('val_bpb: 0.1\\n')\n"
    )
    done = evaluate_with(env, tmp_path, patch)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"val_bpb: {measured['val_bpb']:.6f}" in done.stdout
    assert "0.1\n" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["import os\nos._exit(0)\n", "raise SystemExit(0)\n"])
def test_code_that_prints_a_number_and_leaves_gets_none(
    saved: Saved, tmp_path: Path, ending: str
) -> None:
    done = evaluate_with(saved[0], tmp_path, "print('val_bpb: 0.1', flush=True)\n" + ending)
    assert done.returncode == 1
    assert "val_bpb" not in done.stdout
    assert "the model cannot be run" in done.stderr


@pytest.mark.slow
def test_violations_exit_with_3_and_say_why_last(saved: Saved, tmp_path: Path) -> None:
    peek = "import torch\n_roll = torch.Tensor.roll\n"
    code = "class Peek(Tiny):\n    def forward(self, tokens):\n        return super().forward(_roll(tokens, -1, 1))\n"
    (tmp_path / "train.py").write_text(
        peek + (LEAKS / "train.py").read_text().split("from __future__ import annotations\n", 1)[1]
        .replace("def load_model", code + "\n\ndef load_model").replace("model = Tiny(**json", "model = Peek(**json")
    )
    copy_protected(tmp_path)
    done = run("prepare.py", "evaluate", cwd=tmp_path, **saved[0])
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith("violation: not causal")
    assert "val_bpb" not in done.stdout


@pytest.mark.slow
def test_a_model_that_works_long_at_load_is_refused(saved: Saved, tmp_path: Path) -> None:
    """The harness tells how long the incumbent's took; what it did in that time must have been training."""
    env, measured = saved
    assert 0 < measured["load_seconds"] < 60
    done = evaluate_with(env | {"RESEARCH_LOAD_SECONDS": "0.01"}, tmp_path, "")
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1].startswith("violation: loading the model took longer than 0.01 s")


@pytest.mark.slow
def test_the_model_runs_behind_the_given_command(saved: Saved, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    prefix = json.dumps(["sh", "-c", f'echo run >> {seen}; exec "$@"', "sh"])
    env = saved[0] | {"RESEARCH_MODEL_SANDBOX": prefix}
    done = run(str(ROOT / "prepare.py"), "evaluate", "--split", "test", cwd=LEAKS, **env)
    assert done.returncode == 0, done.stderr
    assert "test_bpb: " in done.stdout and "val_bpb" not in done.stdout
    assert seen.read_text() == "run\nrun\n"
