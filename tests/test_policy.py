"""What to begin next, by itself: pure states in, one action out."""

from __future__ import annotations

from test_ledger import STARTED, asked, begun

from agent import events as ev
from agent.night import Night
from agent.policy import Ask, Capacity, CountAsCrash, End, Judge, Publish, Rebase, Train, deadline, next_action
from agent.records import Measurement, Reply, Stoppers, Verdict

ONE, TWO = Capacity(), Capacity(slots=2, calls=2)


def measured(experiment: int, number: int, attempt: int = 1, metric: float = 1.0) -> ev.Measured:
    ok = Measurement(outcome="ok", metric=metric)
    return ev.Measured(experiment=experiment, number=number, attempt=attempt, measurement=ok)


def train(experiment: int, number: int = 0, attempt: int = 1, slot: int = 0) -> ev.TrialBegun:
    known = {"experiment": experiment, "number": number, "attempt": attempt, "commit": f"c{experiment}"}
    return ev.TrialBegun(**known, seed=1000 * experiment + number + 1, slot=slot)  # type: ignore[arg-type]


def fault(experiment: int, number: int = 0, attempt: int = 1, lost: bool = False) -> ev.MachineFault:
    known = {"experiment": experiment, "number": number, "attempt": attempt}
    return ev.MachineFault(**known, reason="the GPU is lost", slot_lost=lost)  # type: ignore[arg-type]


def proposed(number: int, call: int) -> list[ev.Event]:
    """From the question to a commit on the baseline."""
    first = asked(call).model_copy(update={"experiment": number})
    return [
        first,
        ev.Replied(experiment=number, call=call, reply=Reply(text="", proposer="p", usd=0.0)),
        ev.Proposed(experiment=number, proposal="p", category="other", files="f", fingerprint=f"m{number}"),
        ev.Committed(experiment=number, commit=f"c{number}"),
    ]


def won(number: int, low: float) -> ev.Judged:
    verdict = Verdict(kind="keep", reason="better", metric=0.5, effect=1.0, interval=(low, 2.0))
    return ev.Judged(experiment=number, verdict=verdict)


def after(night: Night, *events: ev.Event) -> Night:
    for event in events:
        night = night.after(event)
    return night


def test_a_machine_fault_is_tried_again_and_then_compared_with_the_incumbent_before_the_code_is_blamed():
    night = begun(*proposed(1, 0), train(1), fault(1))
    assert next_action(night, ONE) == Train(1, 0, 0)  # the same trial again
    night = after(night, train(1, attempt=2), fault(1, attempt=2))
    assert next_action(night, ONE) == Train(0, 1, 0)  # the incumbent
    night = after(night, train(0, 1), measured(0, 1))
    assert next_action(night, ONE) == Train(1, 0, 0)  # it runs, so the trial once more
    night = after(night, train(1, attempt=3), fault(1, attempt=3))
    assert next_action(night, ONE) == CountAsCrash(1, 0)


def test_where_the_incumbent_fails_too_the_slot_is_given_up_and_another_one_takes_its_work():
    night = begun(*proposed(1, 0), train(1), fault(1), train(1, attempt=2), fault(1, attempt=2))
    night = after(night, train(0, 1), fault(0, 1), train(0, 1, attempt=2), fault(0, 1, attempt=2))
    assert night.lost_slots == {0}
    assert next_action(night, ONE) == End("no slot is left: the GPU is lost", 3)
    assert isinstance(next_action(night, TWO), Train) and next_action(night, TWO).slot == 1  # type: ignore[union-attr]


def test_a_slot_that_the_executor_gives_up_is_lost_at_once_and_free_again_for_the_next_process():
    night = begun(*proposed(1, 0), train(1), fault(1, lost=True))
    assert next_action(night, ONE) == End("no slot is left: the GPU is lost", 3)
    assert next_action(after(night, STARTED), ONE) == Train(1, 0, 0)


def test_of_several_wins_the_surest_is_kept_and_the_other_put_onto_it():
    night = begun(*proposed(1, 0), *proposed(2, 1), train(1), train(2, slot=1), measured(1, 0), measured(2, 0))
    assert next_action(night, TWO) == Judge(1)
    night = after(night, won(1, 0.1), won(2, 0.4))
    assert next_action(night, TWO) == Publish(2)
    assert next_action(after(night, ev.Published(experiment=2, commit="k2")), TWO) == Rebase(1)


def test_what_was_begun_is_finished_when_enough_is_done():
    few = STARTED.model_copy(update={"stoppers": Stoppers(experiments=1)})
    night = begun(few, *proposed(1, 0))
    assert next_action(night, TWO) == Train(1, 0, 0)
    night = after(night, train(1), measured(1, 0), ev.Judged(experiment=1, verdict=Verdict(kind="discard", reason="r")))
    night = after(night, ev.Published(experiment=1, commit="c1"))
    assert next_action(night, TWO) == End("1 experiments are done, as asked", 0)


def test_a_call_never_holds_a_slot_and_a_trial_no_call():
    night = begun(*proposed(1, 0), train(1))
    assert next_action(night, ONE) is None  # one slot, one experiment under way
    assert next_action(night, TWO) == Ask(2, "first")


def test_after_outages_it_waits_longer_and_longer_and_then_says_so():
    night = begun()
    for outage in range(11):
        night = after(night, asked(outage), ev.CallFailed(at=night.now, experiment=1, call=outage, reason="HTTP 503"))
        if outage < 10:
            assert next_action(night, ONE) is None
            until = deadline(night)
            assert until == night.now + min(600.0, 15.0 * 2 ** (outage + 1))
            night = after(night, ev.Waited(at=until))
            assert next_action(night, ONE) == Ask(1, "first")
    assert next_action(night, ONE) == End("no more proposals: 11 calls in a row failed", 3)


def test_a_stop_waits_for_the_trials_to_end_and_for_no_call():
    night = begun(*proposed(1, 0), train(1), asked(1).model_copy(update={"experiment": 2}))
    night = after(night, ev.Requested(id="r", what="stop"))
    assert next_action(night, TWO) is None
    night = after(night, ev.TrialCancelled(experiment=1, number=0, attempt=1))
    assert next_action(night, TWO) == End("stopped", 3)
