"""Promises broken on purpose, one at a time: the simulation must notice each. Each mutation is a patch of the real
code, as somebody might write it by mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from unittest.mock import patch

from agent import events as ev
from agent import limits, policy, requests
from agent.actions import Actions
from agent.judging import Judging
from agent.loop import Loop
from agent.night import Night
from agent.state import replace, settled
from bench import world as world_module
from bench.simulate import simulate

Mutation = Callable[[], object]


def reply_used_before_it_is_recorded():
    def hear(self: Loop, events) -> None:
        for event in events:
            if self.night.awaits(event):
                event = self.actions.stow(event, self.night).model_copy(update={"at": self.clock.now()})
                self.night = self.night.after(event)
                while isinstance(event, ev.Replied) and (action := policy.next_action(self.night, self.capacity)):
                    self.record(self.actions.prepare(action, self.night))
                    break
                self.journal.append(event)
                self.actions.carry_out(event, self.night)
            self.inbox.done(event)

    return patch.object(Loop, "hear", hear)


def intent_recorded_after_its_effect():
    def record(self: Loop, event) -> None:
        event = event.model_copy(update={"at": self.clock.now()})
        after = self.night.after(event)
        notes = self.actions.carry_out(event, after)
        self.journal.append(event)
        self.night = after
        for note in notes:
            self.record(note)

    return patch.object(Loop, "record", record)


def incumbent_moved_before_its_confirmation():
    carry_out = Actions.carry_out

    def moved(self: Actions, event, night):
        if isinstance(event, ev.RerunWanted) and event.of == "candidate":
            self.repository.advance(night.experiments[event.experiment].commit, list(night.kept))
        return carry_out(self, event, night)

    return patch.object(Actions, "carry_out", moved)


def trial_number_given_twice():
    train = Actions.train

    def counted(self: Actions, night, number, index, slot):
        begun = train(self, night, number, index, slot)
        measured = sum(1 for t in night.experiments[number].trials if t.measurement)
        return begun.model_copy(update={"number": measured, "seed": 1000 * number + measured + 1})

    return patch.object(Actions, "train", counted)


def cap_checked_without_the_reserve():
    def affords(night, usd) -> str:
        cap = night.stoppers.usd
        return "all is spent" if cap is not None and (night.spent is None or night.spent >= cap) else ""

    return patch.object(limits, "affords", affords)


def failure_of_a_worker_swallowed():
    hear = Loop.hear

    def deaf(self: Loop, events) -> None:
        hear(self, [event for event in events if not isinstance(event, ev.TrialFailed | ev.CallFailed)])

    return patch.object(Loop, "hear", deaf)


def experiment_dropped_when_a_limit_is_reached():
    next_action = policy.next_action

    def hasty(night, can):
        reason = limits.enough(night)
        if reason and not list(night.running) and not night.testing:
            return policy.End(reason, 0 if limits.finished(night) else 3)
        return next_action(night, can)

    return patch.object(policy, "next_action", hasty)


def old_win_kept_without_confirmation():
    class Patches:
        """Judged on its own parent, and then taken for judged on the incumbent."""

        def __enter__(self):
            def publish(night):
                judged = [e for e in night.open if e.state == "judged"]
                wins = sorted(judged, key=lambda e: (e.kept, -policy.certain(e)))
                return policy.Publish(wins[0].number) if wins else None

            def stay(self, night, number):
                verdict = ev.Verdict(kind="keep", reason="better", metric=0.0, effect=1.0, interval=(0.5, 1.5))
                return ev.Judged(experiment=number, verdict=verdict)

            def published(night, event):
                e = night.need(event.experiment, "judged")
                night = night.change(e.number, parent=night.tip or e.parent)
                return original(night, event)

            original = Night.on_Published
            self.all = [
                patch.object(policy, "publish", publish),
                patch.object(Judging, "rebase", stay),
                patch.object(Night, "on_Published", published),
            ]
            for one in self.all:
                one.start()

        def __exit__(self, *_):
            for one in self.all:
                one.stop()

    return Patches()


def request_lost_before_it_is_appended():
    def hear(self: Loop, events) -> None:
        for event in events:
            self.inbox.done(event)
            if self.night.awaits(event):
                self.record(self.actions.stow(event, self.night))

    return patch.object(Loop, "hear", hear)


def fold_reads_the_clock():
    after = Night.after
    ticks = iter(range(10**9))

    def clocked(self: Night, event):
        return replace(after(self, event), now=event.at + next(ticks) * 1e-6)

    return patch.object(Night, "after", clocked)


def reserve_of_a_cut_off_call_forgotten():
    started = Night.on_Started

    def forgetful(night, event):
        for e in night.open:
            if e.asking:
                night = replace(night, spent=settled(night.spent, e.asking.charge, 0.0))
        return started(night, event)

    return patch.object(Night, "on_Started", forgetful)


def wins_taken_in_order_of_arrival():
    return patch.object(policy, "certain", lambda e: 0.0)


def failing_proposer_asked_at_once():
    return patch.multiple(limits, FIRST_WAIT=0.0, LONGEST_WAIT=0.0)


def pause_that_nobody_is_told():
    return patch.object(policy, "pause", lambda night, can: None)


def outages_end_the_night():
    end = policy.end

    def impatient(night):
        busy = list(night.running) or night.testing or any(e.asking for e in night.open)
        return policy.End("no model", 3, "again") if night.outages >= 4 and not busy else end(night)

    return patch.object(policy, "end", impatient)


def proposals_of_no_use_asked_for_on_and_on():
    return patch.object(limits, "of_no_use", lambda night: False)


def pause_that_begins_what_is_ready():
    trial_or_call, next_action = policy.trial_or_call, policy.next_action

    def restless(night, can):
        action = next_action(night, can)
        return action or (trial_or_call(night, can) if night.on_hold else None)

    return patch.object(policy, "next_action", restless)


def veto_that_only_changes_the_verdict():
    veto = requests.veto

    def lenient(night, event, number):
        after = veto(night, event, number)
        return replace(after, kept=night.kept) if number in night.kept.values() else after

    return patch.object(requests, "veto", lenient)


def suggestion_put_to_the_proposer_again_and_again():
    passed_on = requests.passed_on

    def kept(night, number, suggestion):
        after = passed_on(night, number, suggestion)
        return replace(after, suggestions=night.suggestions)

    return patch.object(requests, "passed_on", kept)


def skip_forgotten_with_the_process():
    started = Night.on_Started

    def forgetful(night, event):
        for e in night.open:
            night = night.change(e.number, ending="")
        return started(night, event)

    return patch.object(Night, "on_Started", forgetful)


def what_was_overtaken_trained_as_it_is():
    return patch.object(policy, "overtaken", lambda night, e: False)


def proposals_asked_for_far_ahead():
    begin = policy.begin
    return patch.object(policy, "begin", lambda night, can: begin(night, can._replace(lookahead=can.lookahead + 1)))


MUTATIONS: dict[str, Mutation] = {
    function.__name__.replace("_", " "): function
    for function in (
        reply_used_before_it_is_recorded,
        intent_recorded_after_its_effect,
        incumbent_moved_before_its_confirmation,
        trial_number_given_twice,
        cap_checked_without_the_reserve,
        failure_of_a_worker_swallowed,
        experiment_dropped_when_a_limit_is_reached,
        old_win_kept_without_confirmation,
        request_lost_before_it_is_appended,
        fold_reads_the_clock,
        reserve_of_a_cut_off_call_forgotten,
        wins_taken_in_order_of_arrival,
        failing_proposer_asked_at_once,
        pause_that_nobody_is_told,
        outages_end_the_night,
        proposals_of_no_use_asked_for_on_and_on,
        pause_that_begins_what_is_ready,
        veto_that_only_changes_the_verdict,
        suggestion_put_to_the_proposer_again_and_again,
        skip_forgotten_with_the_process,
        what_was_overtaken_trained_as_it_is,
        proposals_asked_for_far_ahead,
    )
}


def caught(name: str, seed: str, nights: int) -> tuple[str, int] | None:
    """By which promise, and in which night; None: it was not noticed."""
    with MUTATIONS[name]():  # type: ignore[attr-defined]
        for number in range(nights):
            try:
                outcome = simulate(f"{seed}:{number}")
            except world_module.Violation as violation:
                return str(violation), number + 1
            if outcome.violation:
                return outcome.violation, number + 1
    return None


def run_all(seed: str, nights: int) -> int:
    missed = []
    for name in MUTATIONS:
        found = caught(name, seed, nights)
        if found is None:
            missed.append(name)
            print(f"{name:45} NOT NOTICED in {nights} nights", flush=True)
        else:
            print(f"{name:45} night {found[1]:4}  {found[0]}", flush=True)
    print(json.dumps({"mutations": len(MUTATIONS), "caught": len(MUTATIONS) - len(missed), "missed": missed}))
    return 1 if missed else 0
