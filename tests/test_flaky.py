"""A program that fails now and then: it is run again with fresh seeds, judged by what worked, and its rate is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import git, make_repository
from test_ledger import STARTED
from test_loop import PROGRAM, block, night, results, write_replies
from test_policy import ONE, after, train

from agent import events as ev
from agent.judge.noise import Rerun
from agent.judge.verdict import failures, tried_again, weigh
from agent.night import Night
from agent.policy import Judge, Train, next_action
from agent.program import Program
from agent.records import Experiment, Measurement, Trial, Verdict

BEGUN = (
    STARTED.model_copy(update={"rules": STARTED.rules.model_copy(update={"seeds": 3})}),
    ev.BaselineBegun(commit="c0", files="f", fingerprint="m0"),
)


def ended(number: int, outcome: str) -> list[ev.Event]:
    m = Measurement(outcome=outcome, metric=1.0 if outcome == "ok" else None)  # type: ignore[arg-type]
    return [train(0, number), ev.Measured(experiment=0, number=number, attempt=1, measurement=m)]


def baseline(*outcomes: str) -> Night:
    return after(Night(), *BEGUN, *(event for n, outcome in enumerate(outcomes) for event in ended(n, outcome)))


@pytest.mark.parametrize(
    ("outcomes", "action"),
    [
        (["crash"], Train(0, 1, 0)),
        (["crash", "ok", "crash", "ok"], Train(0, 4, 0)),
        (["ok", "timeout"], Train(0, 2, 0)),
        (["crash", "ok", "crash", "ok", "ok"], Judge(0)),
        (["crash"] * 3, Judge(0)),  # it never worked
        (["timeout"], Judge(0)),  # each of these may cost a whole budget
        (["violation"], Judge(0)),
        (["ok", *["crash"] * 4], Judge(0)),
    ],
)
def test_a_seed_of_the_baseline_that_failed_is_replaced_by_another_but_not_for_ever(outcomes: list[str], action):
    assert next_action(baseline(*outcomes), ONE) == action


def test_a_journal_that_ended_at_the_first_failed_seed_can_still_be_read():
    old = after(baseline("ok", "crash"), ev.BaselineFailed(reason="the unchanged program does not run"))
    assert old.baseline_failed


def experiment(number: int, *values: float | None, kind: str = "baseline") -> Experiment:
    """One trial for each value; None: it crashed."""
    crash = Measurement(outcome="crash", reason="Odd")
    measured = [crash if value is None else Measurement(outcome="ok", metric=value) for value in values]
    trials = [Trial(experiment=number, number=i, commit=f"c{number}", seed=i, measurement=m)
              for i, m in enumerate(measured)]  # fmt: skip
    verdict = Verdict(kind=kind, reason="r") if kind else None  # type: ignore[arg-type]
    return Experiment(number=number, state="published", parent="c0", trials=tuple(trials), verdict=verdict)


LOSS = Program.model_validate({"metric": {"name": "loss"}, "reruns": 4})


def test_one_failed_rerun_of_the_incumbent_is_made_again_and_many_end_no_comparison():
    candidate = experiment(1, 0.995, kind="")
    once = experiment(0, 1.0, 1.01, None)
    said = weigh(LOSS, once, candidate, [once], {})
    assert isinstance(said, Rerun) and said.of == "incumbent"
    often = experiment(0, 1.0, 1.02, *[None] * 5)
    said = weigh(LOSS, often, candidate, [often], {})
    assert not (isinstance(said, Rerun) and said.of == "incumbent")
    wins = experiment(1, 0.5, 0.5, 0.5, 0.51, 0.5, kind="")
    said = weigh(LOSS, often, wins, [often], {})
    assert isinstance(said, Verdict) and said.kept, "what is known of the incumbent is enough for this one"


def test_a_candidate_s_crash_is_its_own_where_the_incumbent_never_crashes():
    steady, flaky = experiment(0, 1.0, 1.01), experiment(0, 1.0, None, 1.01)
    assert tried_again(experiment(1, None, kind=""), [steady]) is None
    again = tried_again(experiment(1, None, kind=""), [flaky])
    assert again and "1 of 3 trials crashed of what was kept, so once more" in again.reason
    assert tried_again(experiment(1, None, None, kind=""), [flaky]) is None
    assert tried_again(experiment(1, 0.9, None, None, kind=""), [flaky])
    assert failures(flaky) == "1 of 3 trials crashed" and failures(steady) == ""


FLAKY = """\
import os
RATE = 0.5
seed = int(os.environ["RESEARCH_SEED"])
print("step 0 loss 1.0", flush=True)
if seed in (1, 3, 1001):
    raise RuntimeError(f"bad luck with seed {seed}")
print("loss:", RATE)
"""


def test_a_night_of_a_flaky_program_keeps_what_is_better_and_says_the_rate(tmp_path: Path):
    root = make_repository(tmp_path / "project", {"train.py": FLAKY, "prepare.py": "", "program.md": PROGRAM})
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.4"))
    said = night(root, "--replay", str(replies), "--experiments", "1")
    rows = results(root)
    assert [row["status"] for row in rows] == ["baseline", "keep"], said
    assert rows[0]["reason"].endswith("2 of 6 trials crashed")
    assert "#0 trial 1: crash: RuntimeError: bad luck with seed 1" in said
    assert "2 of 6 trials crashed of what was kept, so once more" in said
    assert "3 of 8 trials crashed, of the baseline and what was kept" in " ".join(said.split())
    assert "RATE = 0.4" in git(root, "show", "research/night:train.py")
