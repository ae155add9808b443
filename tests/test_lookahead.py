"""The next proposal is asked for while a trial runs, and tried on what was kept meanwhile."""

from agent import events as ev
from agent.ledger import Ledger
from bench.idle import night


def test_a_proposal_is_asked_for_while_a_trial_runs_and_put_onto_what_was_kept(tmp_path):
    found = night(tmp_path / "ahead", 9, 1.0, 0.2, [])
    ledger = Ledger(tmp_path / "ahead" / "project" / ".research" / "bench", readonly=True)
    events = [event for _, event in ledger.events()]
    asked = events.index(next(e for e in events if isinstance(e, ev.Asked) and e.experiment == 2))
    measured = events.index(next(e for e in events if isinstance(e, ev.Measured) and e.experiment == 1))
    assert asked < measured
    question = ledger.text(events[asked].question)
    assert "Being tried now, outcome unknown: #1 WIDTH 1 is better." in question
    assert found["rebased"] >= 1 and found["redone"] >= 1
    after = ledger.night()
    assert [after.experiments[n].verdict.kind for n in (4, 8)] == ["keep", "keep"]
    for e in events:
        if isinstance(e, ev.TrialBegun) and e.experiment and not e.number:
            kept = [k for k in events[: events.index(e)] if isinstance(k, ev.Published) and k.experiment in (0, 4, 8)]
            assert after.experiments[e.experiment].parent == kept[-1].commit, "never on an older incumbent"


def test_without_it_every_proposal_waits_for_the_verdict_before(tmp_path):
    night(tmp_path / "alone", 4, 0.5, 0.1, ["--no-lookahead"])
    ledger = Ledger(tmp_path / "alone" / "project" / ".research" / "bench", readonly=True)
    order = [(type(e).__name__, e.experiment) for _, e in ledger.events() if isinstance(e, ev.Asked | ev.Published)]
    expected = [("Published", 0)]
    for number in range(1, 5):
        expected += [("Asked", number), ("Published", number)]
    assert order == expected
