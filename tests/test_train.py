"""train.py as the harness runs it: repeatable, honest about its budget, blind to what is held out."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train as training
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


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(env: Environment, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train(env, tmp_path / name, RESEARCH_SEED=seed, RESEARCH_BUDGET_TOKENS="5120")
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.slow
def test_held_out_text_is_not_needed_to_train(env: Environment, tmp_path: Path) -> None:
    heldout = Path(env["OVERNIGHT_CACHE"]) / "heldout"
    heldout.rename(heldout.with_name("hidden"))
    try:
        train(env, tmp_path, RESEARCH_BUDGET_TOKENS="2048")
    finally:
        heldout.with_name("hidden").rename(heldout)


@pytest.mark.slow
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


NOTHING = 50


def test_what_followed_the_same_run_before_is_copied() -> None:
    tokens = torch.tensor([[7, 8, 9, 1, 7, 8, 2, 7, 8]])
    found = training.copied(tokens, 2, NOTHING)
    assert found.tolist() == [[NOTHING] * 5 + [9] + [NOTHING] * 2 + [2]]  # the last time counts


@pytest.fixture(scope="module")
def trained(env: Environment) -> training.Trainer:
    """Trained in this process, on little; whoever changes it puts it back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.prepare, "TRAIN", Path(env["OVERNIGHT_CACHE"]) / "train")
        patch.setattr(training.prepare, "TOKENS", 10_240)
        trainer = training.Trainer(training.GPT(training.Config(512, 128, 128)))
        training.train(trainer, training.prepare.TrainData(), training.prepare.Budget())
    return trainer


@pytest.fixture
def served(env: Environment, monkeypatch: pytest.MonkeyPatch) -> training.prepare.TrainData:
    monkeypatch.setattr(training.prepare, "TRAIN", Path(env["OVERNIGHT_CACHE"]) / "train")
    monkeypatch.setattr(training.prepare, "TOKENS", 20_480)
    return training.prepare.TrainData()


def test_what_is_copied_has_its_say_in_two_ways(trained: training.Trainer, served: training.prepare.TrainData) -> None:
    """As an embedding that the blocks see, and as a nudge towards the copied token's logit."""
    model, tokens = trained.model, torch.from_numpy(next(served.batches(2)))[:, :-1]
    for left_out in [model.exit.trust], model.entrance.copies:
        weights = [layer.weight.clone() for layer in left_out]
        with torch.no_grad():
            before = model(tokens)
            for layer in left_out:
                layer.weight.zero_()
            assert not torch.equal(before, model(tokens))
            for layer, weight in zip(left_out, weights, strict=True):
                layer.weight.copy_(weight)


def test_the_saved_model_is_the_trained_one(
    trained: training.Trainer, served: training.prepare.TrainData, tmp_path: Path
) -> None:
    training.save(trained.model, str(tmp_path / "model"))
    tokens = torch.from_numpy(next(served.batches(2)))[:, :-1]
    with torch.no_grad():
        assert torch.equal(trained.model(tokens), training.load_model(str(tmp_path / "model"), "cpu")(tokens))


def test_the_step_that_compiles_leaves_no_trace(served: training.prepare.TrainData) -> None:
    model = training.GPT(training.Config(512, 128, 128))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.Trainer(model).step(torch.from_numpy(next(served.batches(4))), 0.0)
    assert not training.Trainer(model).adam.state
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_each_pass_serves_every_row_once_in_an_order_of_its_own(served: training.prepare.TrainData) -> None:
    meta = training.prepare.read_meta(training.prepare.TRAIN)
    rows, batches = meta["tokens"]["train"] // 128 - 1, served.batches(1)  # one may be lost by the pass's offset
    first, second = ([next(batches).tobytes() for _ in range(rows)] for _ in range(2))
    assert len(set(first)) == len(set(second)) == rows  # no row twice
    assert first != second


def test_rows_are_cut_into_shorter_ones_where_that_is_asked_for(served: training.prepare.TrainData) -> None:
    whole = next(training.prepare.TrainData().batches(2))
    short = next(served.batches(8, 32))
    assert short.shape == (8, 33)
    assert (short[:, :-1].reshape(2, 128) == whole[:, :-1]).all() and (short[3::4, -1] == whole[:, -1]).all()
    with pytest.raises(training.prepare.UserError, match="can't be cut"):
        next(served.batches(8, 100))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=16), st.data())
def test_nothing_that_comes_later_is_copied(row: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(row) - 1))
    other = row[:at] + data.draw(st.lists(st.integers(0, 3), min_size=len(row) - at, max_size=len(row) - at))
    for length in (1, 2):
        one, two = (training.copied(torch.tensor([tokens]), length, NOTHING) for tokens in (row, other))
        assert one[:, :at].tolist() == two[:, :at].tolist()


def test_the_width_follows_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    for factor, heads in ((1, 2), (16, 4), (1e-9, 1)):
        monkeypatch.setattr(training, "TOKENS", factor * training.USUAL_BUDGET)
        assert training.width() == heads * training.HEAD_SIZE


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
