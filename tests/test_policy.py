"""What to begin next, by itself: pure states in, one action out."""

from __future__ import annotations

from test_ledger import STARTED, asked, begun

from agent import events as ev
from agent.limits import GO_ON
from agent.night import Night
from agent.policy import (
    Ask,
    Capacity,
    CountAsCrash,
    End,
    Judge,
    Pause,
    Publish,
    Rebase,
    Refuse,
    Resume,
    Train,
    deadline,
    next_action,
)  # fmt: skip
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


def test_what_was_proposed_ahead_is_not_begun_once_a_person_wants_the_end():
    ahead = Capacity(lookahead=1)
    night = begun(*proposed(1, 0), train(1), *proposed(2, 1))
    free = after(night, measured(1, 0), ev.Judged(experiment=1, verdict=Verdict(kind="discard", reason="worse")),
                 ev.Published(experiment=1, commit="c1"))  # fmt: skip
    assert next_action(free, ahead) == Train(2, 0, 0)
    ending = after(free, ev.Requested(id="1", what="finish", text="enough"))
    action = next_action(ending, ahead)
    assert isinstance(action, End) and (action.code, action.reason) == (3, "enough")


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
    assert next_action(night, ONE) == Pause("the GPU is lost", night.fault_at + 15, "machine")
    assert isinstance(next_action(night, TWO), Train) and next_action(night, TWO).slot == 1  # type: ignore[union-attr]


def test_a_slot_that_the_executor_gives_up_is_lost_at_once_and_free_again_for_the_next_process():
    night = begun(*proposed(1, 0), train(1), fault(1, lost=True))
    assert next_action(night, ONE) == Pause("the GPU is lost", night.fault_at + 15, "machine")
    assert next_action(after(night, STARTED), ONE) == Train(1, 0, 0)


def test_a_machine_without_a_slot_is_waited_for_and_tried_again_ever_more_rarely():
    night = begun(*proposed(1, 0), train(1), fault(1, lost=True))
    for attempt, wait in ((2, 15), (3, 30), (4, 60)):
        until = night.fault_at + wait
        assert next_action(night, ONE) == Pause("the GPU is lost", until, "machine")
        night = after(night, ev.Paused(reason="the GPU is lost", until=until, what="machine"))
        assert next_action(night, ONE) is None and deadline(night) == until
        night = after(night, ev.Waited(at=until))
        assert next_action(night, ONE) == Resume()
        night = after(night, ev.Resumed())
        assert next_action(night, ONE) == Train(1, 0, 0)
        night = after(night, train(1, attempt=attempt), fault(1, attempt=attempt, lost=True))
    assert not night.experiments[1].verdict, "it says nothing about the experiment"


def test_proposals_that_can_not_be_trained_are_waited_with_ever_longer():
    night = begun()
    for number in range(1, 6):
        assert next_action(night, ONE) == Ask(number, "first")
        unusable = ev.Judged(experiment=number, verdict=Verdict(kind="invalid", reason="it names no file"))
        night = after(night, *proposed(number, number - 1)[:3], unusable, ev.Published(experiment=number, commit=""))
    said = next_action(night, ONE)
    assert isinstance(said, Pause) and said.reason.startswith("5 proposals in a row could not be trained")
    night = after(night, ev.Paused(reason=said.reason, until=said.until))
    assert next_action(night, ONE) is None and deadline(night) == said.until == night.fruitless_at + 15
    night = after(night, ev.Waited(at=said.until))
    assert next_action(night, ONE) == Ask(6, "first")
    night = after(night, *proposed(6, 5))
    assert next_action(night, ONE) == Resume()


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


def failed(call: int, at: float, **how: object) -> ev.CallFailed:
    return ev.CallFailed(at=at, experiment=1, call=call, reason="HTTP 503", **how)  # type: ignore[arg-type]


def replied(call: int, experiment: int = 1, **how: object) -> ev.Replied:
    return ev.Replied(experiment=experiment, call=call, reply=Reply(text="", proposer="p", usd=0.0), **how)  # type: ignore[arg-type]


def said(night: Night) -> Night:
    """The pause that the policy wants to be said is said."""
    wanted = next_action(night, ONE)
    assert isinstance(wanted, Pause)
    return after(night, ev.Paused(at=night.now, reason=wanted.reason, until=wanted.until))


def test_outages_never_end_the_night_it_waits_longer_and_longer_and_says_so_once():
    night = begun()
    for outage in range(2000):
        night = after(night, asked(outage), failed(outage, night.now))
        if outage == 2:
            night = said(night)
            assert night.paused and night.paused.reason == "HTTP 503" and night.paused.until == night.now + 120
        assert next_action(night, ONE) is None
        until = night.now + min(600.0, 15.0 * 2 ** min(outage + 1, 10))
        assert deadline(night) == until
        night = after(night, ev.Waited(at=until))
        assert next_action(night, ONE) == Ask(1, "first")
    night = after(night, asked(2000), replied(2000), ev.ReplyRefused(experiment=1, error="e"))
    assert next_action(night, ONE) == Resume()
    assert next_action(after(night, ev.Resumed()), ONE) == Ask(1, "repair")


def test_a_refused_key_is_a_pause_at_once_and_is_tried_again():
    night = said(begun(asked(0), failed(0, 10.0, final=True)))
    assert next_action(night, ONE) is None and deadline(night) == 40.0
    assert next_action(after(night, ev.Waited(at=40.0)), ONE) == Ask(1, "first")


def test_a_server_that_asks_for_more_time_gets_it():
    assert deadline(said(begun(asked(0), failed(0, 10.0, final=True, retry_after=1800.0)))) == 1810.0
    assert deadline(said(begun(asked(0), failed(0, 10.0, final=True, retry_after=1e9)))) == 3610.0


def test_a_pause_ends_by_what_the_person_asked_for_and_by_a_new_start():
    night = said(begun(asked(0), failed(0, 10.0, final=True)))
    stopped = after(night, ev.Requested(id="r", what="stop"))
    assert next_action(stopped, ONE) == End("stopped", 3, GO_ON)
    finish = after(night, ev.Requested(id="r", what="finish", text="a person asked for an end"))
    assert next_action(finish, ONE) == End("a person asked for an end", 3, GO_ON)
    again = after(night, STARTED)
    assert again.paused is None and next_action(again, ONE) == Ask(1, "first")
    hours = after(again, STARTED.model_copy(update={"stoppers": Stoppers(hours=1.0)}))
    hours = said(after(hours, asked(1), failed(1, 10.0, final=True)))
    assert next_action(after(hours, ev.Waited(at=3700.0)), ONE) == End("1 hours are over, as asked", 3, GO_ON)


def with_search(*events: ev.Event) -> Night:
    return begun(STARTED.model_copy(update={"fallback": "search"}), *events)


def test_while_the_model_is_away_the_fallback_proposes_and_the_model_is_tried_again():
    night = said(with_search(asked(0), failed(0, 10.0, final=True)))
    assert next_action(night, ONE) == Ask(1, "first", fallback=True)
    stands_in = asked(1).model_copy(update={"fallback": True})
    night = after(night, stands_in, replied(1), *proposed(1, 1)[2:])
    assert night.outages == 1 and night.paused, "an answer of the fallback is none of the model"
    night = after(night, train(1), measured(1, 0), ev.Judged(experiment=1, verdict=Verdict(kind="discard", reason="r")))
    night = after(night, ev.Published(at=20.0, experiment=1, commit="c1"))
    assert next_action(night, ONE) == Ask(2, "first", fallback=True)
    night = after(night, ev.Waited(at=40.0))
    assert next_action(night, ONE) == Ask(2, "first")
    night = after(night, asked(2).model_copy(update={"experiment": 2, "at": 40.0}))
    assert next_action(night, ONE) == Ask(3, "first", fallback=True), "no slot is idle while the model is tried"
    night = after(night, replied(2, 2), *proposed(2, 2)[2:])
    assert next_action(night, ONE) == Resume()


def test_a_talk_with_a_model_that_is_away_is_dropped_where_there_is_a_fallback_and_waited_for_where_there_is_none():
    talk = [asked(0), replied(0), ev.ReplyRefused(experiment=1, error="e"), asked(1, kind="repair")]
    night = said(with_search(*talk, failed(1, 10.0, final=True)))
    assert next_action(night, ONE) == Refuse(1, skipped=True)
    assert next_action(said(begun(*talk, failed(1, 10.0, final=True))), ONE) is None


def test_what_has_nothing_more_to_propose_ends_the_night_unless_another_does():
    over = next_action(begun(asked(0), failed(0, 10.0, exhausted=True)), ONE)
    assert isinstance(over, End) and over.code == 3 and "--proposer" in over.then
    night = with_search(asked(0), failed(0, 10.0, exhausted=True))
    assert next_action(night, ONE) == Ask(1, "first", fallback=True)
    night = after(night, asked(1).model_copy(update={"fallback": True}), failed(1, 10.0, exhausted=True))
    assert isinstance(next_action(night, ONE), End)


def test_a_talk_with_what_has_nothing_more_to_propose_is_over():
    """A crash that was sent back is judged by itself, and what can't be repaired is left; with --usd it goes on."""
    crash = measured(1, 0).model_copy(update={"measurement": Measurement(outcome="crash", reason="IndexError")})
    sent_back = [*proposed(1, 0), train(1), crash, ev.SentBack(experiment=1), asked(1, kind="slip")]
    repair = [asked(0), replied(0), ev.ReplyRefused(experiment=1, error="e"), asked(1, kind="repair")]
    for talk in (sent_back, repair):
        night = begun(*talk, failed(1, 10.0, exhausted=True))
        assert next_action(night, ONE) == Refuse(1, skipped=True)
        capped = after(begun(*talk, failed(1, 10.0)), ev.Blocked(reason="$5 are spent", limit=True))
        assert isinstance(next_action(capped, ONE), End) and not capped.experiments[1].verdict
    night = begun(asked(0), failed(0, 10.0, exhausted=True))
    assert isinstance(next_action(night, ONE), End), "a question that was never answered is asked again"


def test_a_talk_that_does_not_fit_is_no_outage():
    night = begun(asked(0), failed(0, 10.0, too_long=True))
    assert night.experiments[1].shortened == 1 and next_action(night, ONE) == Ask(1, "first")
    skipped = ev.Judged(at=11.0, experiment=1, verdict=Verdict(kind="skipped", reason="it does not fit"))
    night = after(night, skipped, ev.Published(at=11.0, experiment=1, commit=""))
    assert next_action(night, ONE) is None, "the next request would not fit either: no spinning"
    assert deadline(night) == 41.0


def test_a_stop_waits_for_the_trials_to_end_and_for_no_call():
    night = begun(*proposed(1, 0), train(1), asked(1).model_copy(update={"experiment": 2}))
    night = after(night, ev.Requested(id="r", what="stop"))
    assert next_action(night, TWO) is None
    night = after(night, ev.TrialCancelled(experiment=1, number=0, attempt=1))
    assert next_action(night, TWO) == End("stopped", 3, GO_ON)
