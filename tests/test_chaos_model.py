"""A part of bench.chaos_model: nothing dies, no complete answer is lost, none is paid for twice."""

import os
from dataclasses import replace

import pytest

from bench.chaos_answers import Case, command_cases, http_cases
from bench.chaos_model import counts, run

QUICK = [case for case in (*http_cases(), *command_cases()) if "hang" not in case.name and "SIGTERM" not in case.name]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("ANTHROPIC_", "OPENAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("part", range(4))
def test_no_odd_answer_ends_or_costs_more_than_it_must(part: int) -> None:
    outcomes = list(run(QUICK[part::8]))
    bad = {"died", "lost_reply", "paid_twice"}
    assert [(o.case.api, o.case.name, o.said) for o in outcomes if o.faults & bad] == []
    assert counts(outcomes)["recovered"] > 5


def test_a_complete_answer_is_taken_though_the_connection_hangs() -> None:
    cases = [c for c in http_cases() if "then a hang" in c.name and c.answers[0].complete]
    assert len(cases) >= 3
    assert not any(o.faults for o in run(cases))


def test_a_lost_answer_would_be_noticed() -> None:
    """The counting itself: a complete answer that is not the one that came out."""
    case = next(c for c in http_cases() if c.name == "as it should be")
    other = Case("another text", case.api, (replace(case.answers[0], text="something else"),))
    assert counts(run([other]))["lost_reply"] == 1
