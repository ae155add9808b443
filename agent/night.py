"""The state of a night is the sum of its events: `night = night.after(event)`.

A pure fold: the same journal always gives the same night. An event that does not fit is a defect: `OutOfOrder`.
"""

from __future__ import annotations

from typing import Any

from agent import events as ev
from agent import requests
from agent.events import Event
from agent.records import State
from agent.state import Call, Experiment, Standing, Trial, added, replace, settled


class OutOfOrder(Exception):
    """An event that can't follow on what the journal holds: a defect of this program, never of the person."""


class Night(Standing):
    """Where the night stands, and what each event makes of it."""

    def after(self, event: Event) -> Night:
        """The night with this event. Raises OutOfOrder."""
        if self.ended and not isinstance(event, ev.Started | ev.Requested | ev.Noted):
            raise OutOfOrder(f"{type(event).__name__} in a night that has ended")
        night = getattr(self, f"on_{type(event).__name__}")(event)
        return replace(night, now=event.at)

    def change(self, number: int, **changes: Any) -> Night:
        experiment = replace(self.experiments[number], **changes)
        return replace(self, experiments={**self.experiments, number: experiment})

    def change_call(self, number: int, **changes: Any) -> Night:
        calls = self.experiments[number].calls
        return self.change(number, calls=(*calls[:-1], replace(calls[-1], **changes)))

    def change_trial(self, number: int, index: int, **changes: Any) -> Night:
        trials = list(self.experiments[number].trials)
        trials[index] = replace(trials[index], **changes)
        return self.change(number, trials=tuple(trials))

    def need(self, number: int, *states: State) -> Experiment:
        experiment = self.experiments.get(number)
        if experiment is None or experiment.state not in states:
            what = experiment.state if experiment else "missing"
            raise OutOfOrder(f"experiment {number} is {what}, not {' or '.join(states)}")
        return experiment

    def settle(self, number: int) -> Night:
        """After the end of a trial: is everything here that the judge was waiting for?"""
        e = self.experiments[number]
        if e.state == "trials" and e.current and all(t.measurement for t in e.current) and not e.missing:
            return self.change(number, state="measured")
        return self

    def on_Started(self, event: ev.Started) -> Night:
        night = self
        for e in night.open:
            if e.asking:  # cut off: what was reserved for it stays spent
                night = night.change_call(e.number, in_flight=False).change(e.number, state="ask")
        for e, t in list(night.running):
            night = night.change_trial(e.number, t.number, running=False)
        for e in night.testing:
            night = night.change(e.number, test_slot=None)
        contract = night.contract if night.measured else event.program
        if night.baseline_failed or contract != night.contract:  # the person may have corrected it: it begins anew
            begun = night.experiments[0].trials if night.experiments else night.void
            old = tuple(replace(t, superseded=True) for t in begun)
            night = replace(night, baseline_failed="", void=old, experiments={}, undecided=(), tried={})
        return replace(
            night, rules=event.rules, program=event.program, program_text="",
            stoppers=night.limits_with(event.stoppers), flags=event.stoppers, reads=event.reads,
            device=event.device, sandbox=event.sandbox, proposer=event.proposer, started=event.at,
            contract=contract, data=night.data or event.data, inputs=event.inputs, starts=night.starts + 1,
            hardware=night.hardware or event.hardware, weaker=event.weaker, cards=event.cards,
            other_cards=night.other_cards or bool(night.kept) and night.cards != event.cards,
            ended=None, stopping=False, blocked="", unblock="", exhausted=False, finishing="", after_finish="",
            paused=night.paused if night.on_hold else None, outages=0, lost_slots=frozenset(),
            fallback=event.fallback, fruitless=0, stalls=0,
        )  # fmt: skip

    def on_Steered(self, event: ev.Steered) -> Night:
        if event.refused:
            return replace(self, program_text=event.text, notes=(*self.notes, (event.at, event.refused)))
        night = replace(self, program_text=event.text, program=event.program, rules=event.rules)
        older = [] if event.unseen else requests.not_started(night)
        return requests.ask_again(night, event.at, "the edit of program.md", older)

    def on_Noted(self, event: ev.Noted) -> Night:
        return replace(self, notes=(*self.notes, (event.at, event.text)))

    def on_Requested(self, event: ev.Requested) -> Night:
        if event.id in self.requests:
            raise OutOfOrder(f"request {event.id} twice")
        return requests.made_of(replace(self, requests=self.requests | {event.id}), event)

    def noted(self, at: float, text: str) -> Night:
        return replace(self, notes=(*self.notes, (at, text)))

    def on_Waited(self, event: ev.Waited) -> Night:
        night = self
        for e in night.alive if event.stopped else ():
            if e.asking:
                night = night.change_call(e.number, began=e.asking.began + event.stopped)
            for t in e.trials:
                if t.running:
                    night = night.change_trial(e.number, t.number, began=t.began + event.stopped)
            if e.test_slot is not None:
                night = night.change(e.number, test_began=e.test_began + event.stopped)
        return night

    def on_Blocked(self, event: ev.Blocked) -> Night:
        return replace(self, blocked=event.reason, unblock=event.then, blocked_by_limit=event.limit)

    def on_Paused(self, event: ev.Paused) -> Night:
        return replace(self, paused=event, stalls=self.stalls + (event.what == "machine"))

    def on_Resumed(self, event: ev.Resumed) -> Night:
        """Where it was the machine that was waited for, its slots are tried again."""
        machine = self.paused is not None and self.paused.what == "machine"
        return replace(self, paused=None, lost_slots=frozenset() if machine else self.lost_slots)

    def on_Ended(self, event: ev.Ended) -> Night:
        return replace(self, ended=event)

    def on_BaselineBegun(self, event: ev.BaselineBegun) -> Night:
        if self.experiments:
            raise OutOfOrder("a second baseline")
        baseline = Experiment(
            number=0, parent=event.commit, created=event.at, state="trials", files=event.files,
            fingerprint=event.fingerprint, commit=event.commit, trials=self.void,
            wanted=self.rules.seeds if self.rules else 1,
        )  # fmt: skip
        return replace(self, experiments={0: baseline}, undecided=(0,), tried={event.fingerprint: 0})

    def on_BaselineFailed(self, event: ev.BaselineFailed) -> Night:
        if len(self.experiments) > 1:
            raise OutOfOrder("the baseline fails after it was built on")
        self.need(0, "measured", "trials")  # once it ended at the first trial that failed
        return replace(self, baseline_failed=event.reason)

    def on_Asked(self, event: ev.Asked) -> Night:
        night = self
        number, call = event.experiment, night.calls
        if event.call != call:
            raise OutOfOrder(f"call {event.call} after {call} calls")
        if event.kind == "first" and number not in night.experiments:
            if number != len(night.experiments) or night.baseline_failed:
                raise OutOfOrder(f"experiment {number} after {len(night.experiments)}, or without a baseline")
            new = Experiment(number=number, parent=event.parent, created=event.at)
            undecided = (*night.undecided, number)
            night = replace(night, experiments={**night.experiments, number: new}, undecided=undecided)
        e = night.need(number, "ask", "refused")
        asked = Call(
            call, event.kind, event.system, event.question, event.at, event.reserved_usd, fallback=event.fallback
        )
        night = night.change(
            number, state="asking", calls=(*e.calls, asked), parent=event.parent, refused="", stale=""
        )
        night = requests.passed_on(night, number, event.suggestion) if event.kind == "first" else night
        return replace(night, calls=call + 1, spent=added(night.spent, event.reserved_usd))

    def on_Replied(self, event: ev.Replied) -> Night:
        night = self
        call = night._in_flight(event)
        reply = event.reply.model_copy(update={"text": ""})
        spent = settled(night.spent, call.charge, reply.usd)
        night = night.change_call(event.experiment, in_flight=False, charge=reply.usd, reply=reply, text=event.text)
        night = night.change(event.experiment, state="replied", defects=0)
        tokens = night.tokens + reply.input_tokens + reply.output_tokens
        night = replace(night, spent=spent, tokens=tokens, replies=night.replies + 1)
        if since := night.experiments[event.experiment].stale:
            night = requests.not_used(night, event.experiment, event.at, since)
        if event.final:
            return night.outage(event.at, reply.unusable, hopeless=True)
        return night if reply.unusable or call.fallback else replace(night, outages=0, hopeless=False)

    def on_CallFailed(self, event: ev.CallFailed) -> Night:
        night = self
        call = night._in_flight(event)
        charge = call.charge if event.charged else 0.0
        e = night.experiments[event.experiment]
        night = replace(night, spent=settled(night.spent, call.charge, charge))
        night = night.change_call(e.number, in_flight=False, charge=charge)
        more = {"defects": e.defects + event.defect, "shortened": e.shortened + event.too_long}
        night = night.change(e.number, state="ask", **more)
        if call.fallback:
            return replace(night, fallback="")
        if event.exhausted:
            then = "with another --proposer, or with more for this one to propose, the same command goes on from here"
            return replace(night, blocked=f"no more proposals: {event.reason}", unblock=then, exhausted=True)
        if event.too_long:  # the provider works; the talk is made shorter
            return night
        return night.outage(event.at, event.reason, event.final, event.retry_after or 0.0)

    def outage(self, at: float, reason: str, hopeless: bool = False, retry_after: float = 0.0) -> Night:
        """The proposer can't propose now."""
        return replace(
            self, outages=self.outages + 1, failed_at=at, failure=reason, hopeless=hopeless, retry_after=retry_after
        )

    def on_ReplyRefused(self, event: ev.ReplyRefused) -> Night:
        self.need(event.experiment, "replied")
        return self.change(event.experiment, state="refused", refused=event.error)

    def on_Proposed(self, event: ev.Proposed) -> Night:
        self.need(event.experiment, "replied")
        new = {name: getattr(event, name) for name in ("proposal", "category", "files", "fingerprint")}
        return self.change(event.experiment, state="proposed", **new)

    def on_Committed(self, event: ev.Committed) -> Night:
        night = self
        e = night.need(event.experiment, "proposed")
        night = night.change(e.number, state="trials", commit=event.commit, wanted=len(e.current) + 1)
        night = night if e.calls and e.calls[-1].fallback else replace(night, fruitless=0)
        return replace(night, tried={**night.tried, e.fingerprint: e.number})

    def on_TrialBegun(self, event: ev.TrialBegun) -> Night:
        night = self
        e = night.need(event.experiment, "trials", "published")
        if event.slot in night.busy:
            raise OutOfOrder(f"slot {event.slot} is taken")
        begun = {"slot": event.slot, "attempt": event.attempt, "began": event.at, "running": True, "turn": night.begins}
        night = replace(night, begins=night.begins + 1)
        if event.number == len(e.trials) and event.attempt == 1:
            trial = Trial(event.number, event.commit, event.seed, **begun)
            return night.change(e.number, trials=(*e.trials, trial))
        old = e.trials[event.number] if event.number < len(e.trials) else None
        if old is None or old.running or old.measurement or event.attempt != old.attempt + 1 or event.seed != old.seed:
            raise OutOfOrder(f"trial {event.number} of experiment {e.number} was begun before")
        return night.change_trial(e.number, event.number, **begun)

    def on_Measured(self, event: ev.Measured) -> Night:
        night = self
        trial = night._unmeasured(event)
        light = event.measurement.model_copy(update={"curve": (), "log_tail": "", "numbers": {}})
        number, index = event.experiment, trial.number
        night = night.change_trial(number, index, running=False, measurement=light, details=event.details)
        night = replace(night, stalls=0)
        if night.experiments[number].state == "published":  # a rerun: whoever waits for it is judged again
            for e in night.open:
                if e.state == "waiting":
                    night = night.change(e.number, state="measured")
        if night.incumbent and number == night.incumbent.number:
            night = replace(night, other_cards=False)
            for e in night.alive:
                for t in e.trials:
                    if t.faults >= 2:
                        night = night.change_trial(e.number, t.number, incumbent_ran=True)
        return night.settle(number)

    def on_TrialFailed(self, event: ev.TrialFailed) -> Night:
        trial = self._in_a_slot(event)
        return self.change_trial(event.experiment, trial.number, running=False, failures=trial.failures + 1)

    def on_MachineFault(self, event: ev.MachineFault) -> Night:
        night = self
        trial = night._in_a_slot(event)
        night = replace(night, fault=event.reason, fault_at=event.at)
        night = night.change_trial(event.experiment, trial.number, running=False, faults=trial.faults + 1)
        incumbent = night.incumbent
        of_the_best = event.experiment == (incumbent.number if incumbent else 0)
        if not event.slot_lost and not (of_the_best and trial.faults + 1 >= 2):
            return night
        for e in night.alive:  # elsewhere everything begins anew
            for t in e.trials:
                if t.faults and not t.measurement:
                    night = night.change_trial(e.number, t.number, faults=0, incumbent_ran=False)
        return replace(night, lost_slots=night.lost_slots | {trial.slot})

    def on_TrialCancelled(self, event: ev.TrialCancelled) -> Night:
        return self.change_trial(event.experiment, self._in_a_slot(event).number, running=False)

    def on_RerunWanted(self, event: ev.RerunWanted) -> Night:
        e = self.need(event.experiment, "measured")
        if event.of == "incumbent":
            return self.change(e.number, state="waiting")
        return self.change(e.number, state="trials", wanted=len(e.current) + 1)

    def on_SentBack(self, event: ev.SentBack) -> Night:
        self.need(event.experiment, "measured")
        return self.change(event.experiment, state="ask")

    def on_Rebased(self, event: ev.Rebased) -> Night:
        night = self
        e = night.need(event.experiment, "trials", "measured", "waiting", "judged", "detached")
        if event.parent != night.tip:
            raise OutOfOrder(f"experiment {e.number} was put onto what is not the incumbent")
        old = tuple(replace(t, superseded=True) for t in e.trials)
        new = {name: getattr(event, name) for name in ("parent", "commit", "files", "fingerprint")}
        night = night.change(e.number, state="trials", trials=old, wanted=1, verdict=None, **new)
        night = requests.left_out(night, event) if event.left_out else night
        return replace(night, tried={**night.tried, event.fingerprint: e.number})

    def on_Overtaken(self, event: ev.Overtaken) -> Night:
        e = self.need(event.experiment, "trials")
        return requests.not_used(self, e.number, event.at, f"experiment {event.by}, which was kept")

    def on_Judged(self, event: ev.Judged) -> Night:
        number, verdict = event.experiment, event.verdict.model_copy()
        e = self.experiments[number]
        if not e.ending:
            self.need(number, "ask", "refused", "proposed", "trials", "measured", "waiting", "judged", "detached")
        night = self.change(number, state="judged", verdict=verdict)
        if verdict.kind == "violation":  # refused without a trial, and not to be proposed again
            night = replace(night, tried={**night.tried, e.fingerprint: number})
        if verdict.kind == "skipped" and not e.ending:
            night = night if e.proposal else requests.handed_back(night, number)
            if not any(call.reply for call in e.calls):  # the next one would fare no better
                night = night.outage(event.at, verdict.reason)
        return night

    def on_Published(self, event: ev.Published) -> Night:
        night = self
        e = night.need(event.experiment, "judged")
        night = night.change(e.number, state="published", published=event.commit)
        undecided = tuple(number for number in night.undecided if number != e.number)
        night = replace(night, order=(*night.order, e.number), undecided=undecided)
        if e.verdict and e.verdict.kind in ("invalid", "duplicate", "violation") and not e.trials:
            why = {"fruitless_at": event.at, "fruitless_why": e.verdict.reason}
            night = replace(night, fruitless=night.fruitless + 1, **why)
        if not e.kept:
            return night
        if night.tip and e.parent != night.tip:
            raise OutOfOrder(f"experiment {e.number} was confirmed on an older incumbent")
        for other in night.open:  # what waits for a trial of the old incumbent is judged again, on the new one
            if other.state == "waiting":
                night = night.change(other.number, state="measured")
        if night.rules and not night.rules.tests:
            night = night.change(e.number, test="")
        kept = {event.commit: e.number}
        return replace(night, kept=night.kept | kept, ever_kept=night.ever_kept | kept)

    def on_TestBegun(self, event: ev.TestBegun) -> Night:
        e = self.need(event.experiment, "published")
        if event.slot in self.busy or e.test is not None or event.attempt != e.test_attempt + 1:
            raise OutOfOrder(f"the test of experiment {e.number} is begun out of turn")
        begun = {"test_number": event.number, "test_attempt": event.attempt, "test_slot": event.slot}
        return self.change(e.number, test_began=event.at, **begun)

    def on_Tested(self, event: ev.Tested) -> Night:
        night = self
        if not night.awaits(event):
            raise OutOfOrder(f"a test of experiment {event.experiment} that does not run")
        if event.reason and (night.stopping or not night.experiments[event.experiment].kept):
            return night.change(event.experiment, test_slot=None)  # ended from here: if it is wanted, it begins again
        if event.reason:
            text = f"the test of experiment {event.experiment} failed: {event.reason}"
            night = replace(night, notes=(*night.notes, (event.at, text)))
        return night.change(event.experiment, test=event.numbers, test_slot=None)

    def _in_flight(self, event: ev.Replied | ev.CallFailed) -> Call:
        call = self.experiments[event.experiment].asking
        if call is None or call.number != event.call:
            raise OutOfOrder(f"call {event.call} is not in flight")
        return call

    def _unmeasured(self, event: ev.Measured) -> Trial:
        trial = self.experiments[event.experiment].trials[event.number]
        if trial.measurement or trial.attempt != event.attempt:
            raise OutOfOrder(f"trial {event.number} of experiment {event.experiment} is measured twice")
        return trial

    def _in_a_slot(self, event: ev.TrialFailed | ev.MachineFault | ev.TrialCancelled) -> Trial:
        trial = self.experiments[event.experiment].trials[event.number]
        if not trial.running or trial.attempt != event.attempt:
            raise OutOfOrder(f"trial {event.number} of experiment {event.experiment} does not run")
        return trial
