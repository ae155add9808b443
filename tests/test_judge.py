"""The judge: the noise it measures, the verdicts it gives, and a real night in which nothing has an effect."""

from __future__ import annotations

import csv
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import ROOT, git, make_repository
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from agent.judge.noise import Noise, Rerun, baseline_trials, counted, decide, gain
from agent.program import Budget, Program
from agent.records import Measurement, Verdict

NOISE = Noise.of([[0.99, 1.01, 1.0, 0.985, 1.015]])
BASELINE = (0.99, 1.01, 1.0, 0.985, 1.015)
metrics = st.floats(0.5, 1.5)


def program(**contract: object) -> Program:
    return Program.model_validate({"metric": {"name": "loss"}, "reruns": 4, **contract})


def measured(values: Sequence[float], **fields: object) -> list[Measurement]:
    return [Measurement.model_validate({"outcome": "ok", "metric": value, **fields}) for value in values]


def ask(candidate: Sequence[float], incumbent: Sequence[float] = BASELINE, **contract: object) -> Verdict | Rerun:
    return decide(program(**contract), measured(incumbent), measured(candidate), NOISE, False, baseline=True)


def play(
    draw: Callable[[], float], held: Callable[[], float], contract: Program, first: Sequence[float]
) -> tuple[Verdict, int, int]:
    """Answer every rerun that is asked for. The verdict, and the trials of candidate and incumbent."""
    incumbent, candidate = list(first), [draw()]
    while True:
        noise = Noise.of([incumbent, candidate[1:]])
        said = decide(contract, measured(incumbent), measured(candidate), noise, False, baseline=True)
        if isinstance(said, Verdict):
            return said, len(candidate), len(incumbent)
        (candidate if said.of == "candidate" else incumbent).append(draw() if said.of == "candidate" else held())
        assert len(candidate) + len(incumbent) < 50, "it never decides"


# The noise.


def test_noise_is_pooled_within_commits_and_knows_how_well_it_is_known():
    noise = Noise.of([[1.0, 1.2], [5.0, 5.1, 5.2], [9.0]])
    assert noise.freedom == 3
    assert noise.sigma == pytest.approx(((0.02 + 0.02) / 3) ** 0.5)
    assert noise.low and noise.high and noise.sigma
    assert noise.low**2 == pytest.approx(0.04 / stats.chi2.ppf(0.975, 3))
    assert noise.high**2 == pytest.approx(0.04 / stats.chi2.ppf(0.025, 3))
    assert Noise.of([[1.0], []]).sigma is None
    assert "not measured" in str(Noise.of([]))
    assert Noise.model_validate_json(noise.model_dump_json()) == noise


@given(st.lists(st.lists(metrics, min_size=2, max_size=5), min_size=1, max_size=5), st.floats(0.1, 10), metrics)
@example(groups=[[1.0, 1.5], [1.0, 1.0, 1.0]], scale=1.0, level=0.99999)  # equal values, and their rounding
def test_noise_follows_the_unit_and_not_the_level(groups: list[list[float]], scale: float, level: float):
    noise = Noise.of(groups)
    moved = Noise.of([[scale * value + level * i for value in group] for i, group in enumerate(groups)])
    assert moved.freedom == noise.freedom
    assert moved.sigma == pytest.approx(scale * (noise.sigma or 0.0), rel=1e-6, abs=1e-7)


def test_the_interval_of_the_noise_holds_the_truth_19_times_in_20():
    rng, held = random.Random(1), 0
    for _ in range(1000):
        noise = Noise.of([[rng.gauss(i, 2.0) for _ in range(3)] for i in range(2)])
        held += (noise.low or 9) <= 2.0 <= (noise.high or 0)
    assert 930 <= held <= 970


def test_one_diverged_seed_does_not_blind_the_judge_for_the_night():
    calm = [[1.0, 1.01, 0.99], [0.9, 0.91, 0.905]]
    noise, wild = Noise.of(calm), Noise.of([*calm, [0.95, 1e200]])
    assert wild == noise
    assert (Noise.of([*calm, [0.9, 0.93]]).sigma or 0) > (noise.sigma or 0), "what is only wide still counts"


def test_more_seeds_where_trials_are_cheap_and_never_fewer_than_two():
    counts = [baseline_trials(Budget.parse(text)) for text in ("10s", "20s", "5m", "1h", "2M tokens within 60s")]
    assert counts == sorted(counts[:4], reverse=True) + [counts[0]]
    assert counts[2] >= 2 and counts[3] == 2 and counts[0] > counts[2]


# The decision.


def test_a_clear_loss_costs_one_trial():
    said = ask([1.2])
    assert isinstance(said, Verdict) and said.kind == "discard"
    assert said.effect == pytest.approx(-0.2) and "worse than the incumbent" in said.reason


def test_a_clear_win_is_kept_once_fresh_seeds_confirm_it():
    assert isinstance(ask([0.8]), Rerun)
    said = ask([0.8, 0.82, 0.81])
    assert isinstance(said, Verdict) and said.kind == "keep"
    assert said.metric == pytest.approx(0.815), "the trial that selected it does not count"
    assert said.effect == pytest.approx(0.185) and said.interval and said.interval[0] > 0.1
    assert said.reason.startswith("0.185 better than the incumbent, 90% interval 0.1")
    assert "mean of 2 trials" in said.reason


def test_one_lucky_draw_does_not_enter():
    said = ask([0.9, 1.0, 1.005, 1.01])
    assert isinstance(said, Verdict) and said.kind == "discard"
    assert said.metric == pytest.approx(1.005)


def test_one_lucky_draw_of_the_incumbent_does_not_block():
    """Its first trial selected it and was lucky; the others tell what it is worth."""
    incumbent = measured([0.8, 1.0, 0.99, 1.01, 1.0])
    said = decide(program(), incumbent, measured([0.9, 0.9, 0.91]), NOISE, False, baseline=False)
    assert isinstance(said, Verdict) and said.kind == "keep"
    assert counted([0.8], baseline=False) == [0.8], "one trial is better than none"


@given(st.lists(metrics, min_size=1, max_size=4), st.floats(0.5, 1.5))
def test_the_trial_that_selected_says_nothing_in_the_confirmation(fresh: list[float], first: float):
    assert ask([first, *fresh]) == ask([0.8, *fresh])


@given(st.lists(metrics, min_size=1, max_size=5), st.lists(metrics, min_size=2, max_size=5))
def test_maximizing_is_the_mirror_of_minimizing(candidate: list[float], incumbent: list[float]):
    low = ask(candidate, incumbent)
    high = ask([-x for x in candidate], [-x for x in incumbent], metric={"name": "acc", "direction": "maximize"})
    assert type(low) is type(high)
    if isinstance(low, Verdict) and isinstance(high, Verdict):
        assert (low.kind, low.reason) == (high.kind, high.reason)


@given(st.integers(), st.floats(-1, 4), st.integers(1, 6))
def test_it_always_decides_within_the_allowance(seed: int, effect: float, reruns: int):
    rng, contract = random.Random(seed), program(reruns=reruns)
    first = [rng.gauss(0, 1) for _ in range(2)]
    verdict, trials, held = play(lambda: rng.gauss(-effect, 1), lambda: rng.gauss(0, 1), contract, first)
    assert trials <= 1 + reruns
    assert held <= max(6, reruns)
    assert not verdict.kept or (trials > 1 and verdict.effect and verdict.effect > 0)


def test_without_reruns_a_keep_is_marked_for_review():
    said = ask([0.8], reruns=0)
    assert isinstance(said, Verdict) and said.kind == "keep" and said.review and "not confirmed" in said.reason
    said = ask([0.985], reruns=0)
    assert isinstance(said, Verdict) and said.kind == "discard"


def test_unmeasured_noise_is_measured_on_the_incumbent_first():
    empty = Noise.of([])
    said = decide(program(), measured([1.0]), measured([0.5]), empty, False, baseline=True)
    assert isinstance(said, Rerun) and said.of == "incumbent"
    said = decide(program(), measured([1.0, 1.01]), measured([2.0]), empty, False, baseline=True)
    assert isinstance(said, Verdict) and said.kind == "discard"


@pytest.mark.parametrize(("value", "kind"), [(0.999999, "keep"), (1.0, "discard"), (1.000001, "discard")])
def test_a_deterministic_target_pays_for_no_rerun(value: float, kind: str):
    exact = Noise.of([[1.0, 1.0]])
    said = decide(program(), measured([1.0, 1.0]), measured([value]), exact, False, baseline=True)
    assert isinstance(said, Verdict) and said.kind == kind


def test_a_limit_is_held_against_what_the_evaluation_printed_not_against_what_training_says():
    """Training is the agent's to write: a number that it prints there proves nothing."""
    contract = program(limits={"latency_ms": 5})
    held = measured(BASELINE, numbers={"latency_ms": 4}, evaluated=("latency_ms",))
    for evaluated, kind in ((("latency_ms",), "keep"), ((), "discard"), (None, "keep")):
        candidate = measured([0.8, 0.8, 0.8], numbers={"latency_ms": 4}, evaluated=evaluated)
        verdict = decide(contract, held, candidate, NOISE, False, baseline=True)
        assert isinstance(verdict, Verdict) and verdict.kind == kind


def test_a_keep_respects_the_limits_in_every_trial():
    contract = program(limits={"peak_memory_gb": 70, "latency_ms": 5})
    fine = measured([0.8, 0.8, 0.8], numbers={"latency_ms": 4}, peak_memory_gb=60)
    heavy = measured([0.8], numbers={"latency_ms": 4}, peak_memory_gb=71)
    silent = measured([0.8], peak_memory_gb=60)
    held = measured(BASELINE, numbers={"latency_ms": 4}, peak_memory_gb=60)

    def said(candidate: list[Measurement]) -> Verdict | Rerun:
        return decide(contract, held, candidate, NOISE, False, baseline=True)

    kept, over, late, mute = said(fine), said(heavy), said([*fine, *heavy]), said(silent)
    assert isinstance(kept, Verdict) and kept.kind == "keep"
    for verdict in (over, late):
        assert isinstance(verdict, Verdict) and verdict.kind == "discard"
        assert "peak_memory_gb is 71, over the limit of 70" in verdict.reason
    assert isinstance(mute, Verdict) and mute.kind == "discard" and "latency_ms" in mute.reason


def test_equal_and_simpler_is_kept_only_where_the_contract_asks_for_it():
    candidate = measured([1.0, 0.995, 1.0])
    for simplify, shorter, kind in [(True, True, "simplification"), (True, False, "discard"), (False, True, "discard")]:
        said = decide(program(simplify=simplify), measured(BASELINE), candidate, NOISE, shorter, baseline=True)
        assert isinstance(said, Verdict) and said.kind == kind
    worse = measured([1.0, 1.02, 1.02])
    said = decide(program(simplify=True), measured(BASELINE), worse, NOISE, True, baseline=True)
    assert isinstance(said, Verdict) and said.kind == "discard"
    light, heavy = measured([1.0, 0.995, 1.0], peak_memory_gb=4), measured(BASELINE, peak_memory_gb=5)
    said = decide(program(simplify=True), heavy, light, NOISE, False, baseline=True)
    assert isinstance(said, Verdict) and said.kind == "simplification"


def test_the_nights_gain_counts_no_trial_that_selected():
    found = gain(program(), measured(BASELINE), measured([0.5, 0.9, 0.9]), NOISE)
    assert found and found[0] == pytest.approx(0.1) and found[1][0] < 0.1 < found[1][1]
    assert gain(program(), measured([1.0]), measured([0.9]), Noise.of([])) is None


# Whole nights.


def test_the_simulated_nights_meet_what_is_promised():
    ran = subprocess.run(
        [sys.executable, "-m", "bench.noise", "--nights", "40"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["false_keep"] <= 0.05
    assert found["power_3sigma"] >= 0.9 and found["power_2sigma"] >= 0.64
    assert found["extra_trials"] <= 0.4
    assert 0.9 <= found["claim_ratio"] <= 1.1
    assert found["worse_than_start"] <= 0.03, "480 nights: the standard error is 0.006"


NAPS = "".join(f"NAP_{number} = 1\n" for number in range(2, 17))
NOISY = f"""\
import os, random
{NAPS}random.seed(int(os.environ["RESEARCH_SEED"]))
print("step 0 loss 3.0 0%", flush=True)
print("loss:", 3.0 + random.gauss(0.0, 0.02))
"""
DIRECTION = """\
---
metric: {name: loss, direction: minimize}
edit: [train.py]
protect: [prepare.py]
budget: 10s
---
Change how often it naps; leave everything else alone, since nothing else is known to matter.
"""


@pytest.mark.slow
def test_a_night_of_changes_without_effect_keeps_almost_nothing(tmp_path: Path):
    files = {"train.py": NOISY, "prepare.py": "# protected\n", "program.md": DIRECTION}
    root = make_repository(tmp_path / "project", files)
    replies = tmp_path / "replies"
    replies.mkdir()
    for number in range(2, 17):
        (replies / f"{number:03}.txt").write_text(
            f"Hypothesis: Napping {number} times helps.\nCategory: hyperparameter\n\ntrain.py\n"
            f"<<<<<<< SEARCH\nNAP_{number} = 1\n=======\nNAP_{number} = {number}\n>>>>>>> REPLACE\n"
        )
    command = [sys.executable, "-m", "agent.loop", "--repo", str(root), "--tag", "night"]
    flags = ["--proposer", "replay", "--replay", str(replies), "--experiments", "15"]
    ran = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    with (root / ".research/night/results.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert not list(root.glob(".research/night/outputs/*")), "the incumbent's reruns leave nothing behind either"
    kinds = [row["status"] for row in rows]
    assert kinds[0] == "baseline" and len(kinds) == 16
    assert set(kinds[1:]) <= {"keep", "discard"} and kinds.count("keep") <= 1
    best, plain = statistics.fmean([3.0]), 0
    for number in range(1, 16):  # the rule "better = keep" on the same first trials
        value = 3.0 + random.Random(1000 * number + 1).gauss(0.0, 0.02)
        plain, best = (plain + 1, value) if value < best else (plain, best)
    assert plain > kinds.count("keep")
    assert len(git(root, "log", "--oneline", "main..research/night").splitlines()) == kinds.count("keep")
