"""What the judge says: the words agree with the numbers, and with each other, whatever the trials gave."""

from __future__ import annotations

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_flaky import LOSS, experiment

from agent.judge.noise import Noise, Rerun
from agent.judge.verdict import weigh
from agent.lab_note import lab_note
from agent.observers.report.markdown import kept_row
from agent.observers.tsv import COLUMNS, FURTHER, row
from agent.propose.context import first_request
from agent.propose.templates import Templates
from agent.records import Experiment, Measurement, Verdict
from agent.run.progress import LARGEST

TRIALS = (COLUMNS + FURTHER).index("trials")


def play(held: list[float], draw, rerun, program=LOSS) -> tuple[list[str], Verdict, Experiment]:
    """Ask until it is decided: what was said on the way, the verdict, and the candidate with it."""
    candidate, said = [draw()], []
    while True:
        base, new = experiment(0, *held), experiment(1, *candidate, kind="")
        decision = weigh(program, base, new, [base], {"train.py": "a\nb\n"})
        if isinstance(decision, Verdict):
            return [*said, decision.reason], decision, new.model_copy(update={"verdict": decision})
        said.append(decision.reason)
        (candidate if decision.of == "candidate" else held).append(draw() if decision.of == "candidate" else rerun())
        assert len(said) < 60, "it never decides"


@given(st.integers(), st.sampled_from([0.0, 0.5, 1, 2, 5, 15, 25, 100, 1e4]), st.integers(2, 4), st.booleans())
@example(seed=4, effect=25, seeds=2, simplify=True)
@settings(deadline=None, max_examples=300)
def test_the_words_of_a_verdict_agree_with_its_interval(seed: int, effect: float, seeds: int, simplify: bool):
    rng = random.Random(seed)
    program = LOSS.model_copy(update={"simplify": simplify})
    held = [rng.gauss(1000, 1) for _ in range(seeds)]
    said, verdict, judged = play(held, lambda: rng.gauss(1000 - effect, 1), lambda: rng.gauss(1000, 1), program)
    for reason in said:
        assert not ("within the noise" in reason and "times the noise" in reason)
    low, high = verdict.interval or (0.0, 0.0)
    if verdict.kind == "keep":
        assert low > 0, verdict.reason
    if "within the noise" in verdict.reason:
        assert low <= 0 <= high, verdict.reason
    assert verdict.trials == judged.counted
    count = "1 trial" if verdict.trials == 1 else f"mean of {verdict.trials} trials"
    assert count in verdict.reason


VALUES = st.lists(st.floats(-LARGEST, LARGEST) | st.sampled_from([0.0, 5e-324, 1.0, LARGEST]), min_size=2, max_size=5)


@given(VALUES, VALUES)
@settings(deadline=None, max_examples=300)
def test_whatever_trials_print_as_their_metric_is_judged_and_survives_the_journal(held: list[float], new: list[float]):
    base, candidate = experiment(0, *held), experiment(1, *new, kind="")
    decision = weigh(LOSS, base, candidate, [base], {})
    assert type(decision).model_validate_json(decision.model_dump_json()) == decision
    assert str(Noise.of([held]))


def test_trials_are_counted_alike_in_prompt_table_and_commit():
    """Four trials: one that selected, and the mean of three fresh ones."""
    wins = experiment(1, 0.5, 0.52, 0.51, 0.53, kind="")
    base = experiment(0, 1.0, 1.01, 0.99)
    verdict = weigh(LOSS, base, wins, [base], {})
    assert isinstance(verdict, Verdict) and verdict.kept and "mean of 3 trials" in verdict.reason
    kept = wins.model_copy(update={"verdict": verdict})
    first = base.model_copy(update={"verdict": Verdict(kind="baseline", reason="r", metric=1.0, trials=3)})
    assert row(kept)[TRIALS] == "3"
    assert "Trials: 3\n" in lab_note(kept, first, LOSS)
    later = kept.model_copy(update={"trials": (*kept.trials, *kept.trials[:2])})  # it was run again as the incumbent
    asked = first_request(2, LOSS, {"train.py": ""}, (first, later), {}, Templates(None)).turns[0].text
    assert "Baseline: loss 1 (mean of 3 trials)" in asked
    assert "loss 0.52, mean of 3 trials; experiment #1" in asked
    assert "loss: 0.52 (mean of 3 trials)" in asked


def test_what_stretches_its_budget_is_held_for_review():
    base = experiment(0, 1.0, 1.01, 0.99)

    def trained(*seconds: float) -> Verdict | Rerun:
        new = experiment(1, 0.5, 0.51, 0.49, kind="")
        times = zip(new.trials, seconds, strict=True)
        slow = [t.model_copy(update={"measurement": with_seconds(t.measurement, s)}) for t, s in times]
        return weigh(LOSS, base, new.model_copy(update={"trials": tuple(slow)}), [base], {}, seconds=300.0)

    held = trained(312.0, 311.0, 313.0)
    assert isinstance(held, Verdict) and held.kind == "held" and "trained for 311.0 s or more" in held.reason
    once = trained(312.0, 301.0, 313.0)
    assert isinstance(once, Verdict) and once.kept, "one slow trial is the machine's doing"


def with_seconds(measurement: Measurement | None, seconds: float) -> Measurement | None:
    return measurement and measurement.model_copy(update={"training_seconds": seconds})


def test_one_value_with_every_seed_is_held_for_review_where_the_baseline_varies():
    base = experiment(0, 1.0, 1.01, 0.99)
    again = weigh(LOSS, base, experiment(1, 0.5, 0.5, kind=""), [base], {})
    assert isinstance(again, Rerun) and again.of == "candidate"
    held = weigh(LOSS, base, experiment(1, 0.5, 0.5, 0.5, kind=""), [base], {})
    assert isinstance(held, Verdict) and held.kind == "held" and held.review and not held.kept
    accepted = experiment(1, 0.5, 0.5, 0.5, kind="").model_copy(update={"accepted": True})
    kept = weigh(LOSS, base, accepted, [base], {})
    assert isinstance(kept, Verdict) and kept.kept, "not held again for the same sign"
    assert held.reason.startswith("held for review, not on the branch: the same value with 3 seeds")
    exact = experiment(0, 1.0, 1.0, 1.0)
    kept = weigh(LOSS, exact, experiment(1, 0.5, 0.5, 0.5, kind=""), [exact], {})
    assert isinstance(kept, Verdict) and kept.kept, "a program without noise is no sign of anything"
    assert "training has to read RESEARCH_SEED" in str(Noise.of([exact.metrics]))


def test_the_interval_of_a_night_of_before_is_labelled_as_it_was_computed():
    """Verdicts said no trials while their intervals were those of 95%."""
    now = Verdict(kind="keep", reason="r", metric=1.0, effect=0.2, interval=(0.1, 0.3), trials=3)
    before = now.model_copy(update={"trials": None})
    row = {"review": False, "metric": 1.0, "effect": 0.2, "interval": [0.1, 0.3], "commit": "c", "n": 1, "label": "l"}
    for verdict, level in ((now, "90%"), (before, "95%")):
        read = Verdict.model_validate_json(verdict.model_dump_json(exclude_defaults=True))
        assert read.level == level
        assert f"0.1 .. 0.3 ({level})" in kept_row({**row, "level": read.level})
        told = Experiment(number=1, state="published", parent="p", verdict=read)
        baseline = Experiment(number=0, state="published", parent="p", verdict=Verdict(kind="baseline", reason="r"))
        assert f"better, {level} 0.1 .. 0.3" in lab_note(told, baseline, LOSS)
