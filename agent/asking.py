"""Calls of the proposer: the question that is journaled before each, and the answer as an event."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from functools import partial
from typing import Any

from agent import events as ev
from agent import limits, policy, state
from agent.errors import ProgramError, ProposerError
from agent.events import Event
from agent.history import History
from agent.judge.noise import Noise
from agent.judge.verdict import failures
from agent.night import Night
from agent.program import Program
from agent.protocols import Journal, Prompter, Proposer, Repository, Request
from agent.records import CallKind, Experiment, Turn, Verdict
from agent.redact import hidden


@dataclass
class Asking:
    """What questions are made of."""

    journal: Journal
    history: History
    repository: Repository
    proposer: Proposer
    prompts: Prompter
    device: str
    fallback: Proposer | None = None
    """Proposes while the proposer can't."""
    request: Request | None = None
    """What the newest question was made for: it is sent as soon as the question is journaled."""

    def ask(self, night: Night, number: int, kind: CallKind, fallback: bool) -> Event:
        """Set the call's upper bound aside, and write down the question."""
        e = night.experiments.get(number)
        parent = e.parent if e and kind != "first" else night.tip
        again = e is not None and parent == e.parent and sent_again(e, fallback)
        suggestion = e.suggestion if e else ""
        if kind == "first" and not again:
            suggestion = suggestion or next(iter(night.suggestions), "")
        proposer = self.fallback if fallback and self.fallback else self.proposer
        suggestion = suggestion if proposer.reads else ""
        words = self.journal.text(suggestion) if suggestion else ""
        try:
            fresh = partial(self.new_question, night, number, kind, parent, words)
            request = self.talk(night, number, parent) if again else fresh()
        except ProgramError as error:
            return ev.Blocked(reason=str(error))
        if e is not None and (request := self.shortened(night, e.shortened, request)) is None:
            reason = "the talk about it does not fit the model, however short"
            if not any(call.reply for call in e.talk):
                reason = "the request does not fit the model, without a history too: choose one with a longer context"
            return ev.Judged(experiment=number, verdict=Verdict(kind="skipped", reason=reason))
        replies = self.replies_before(night, night.calls)
        self.request = request = request.model_copy(update={"replies": replies})
        most = proposer.most_usd(request)
        if reason := limits.affords(night, most):
            return ev.Blocked(reason=reason, then=f"with more --usd {limits.GO_ON}", limit=True)
        system, question = self.journal.put(request.system), self.journal.put(request.turns[-1].text)
        return ev.Asked(
            experiment=number, call=night.calls, kind=kind, parent=parent, system=system, question=question,
            reserved_usd=most, fallback=fallback, suggestion=suggestion if kind == "first" else "",
        )  # fmt: skip

    def shortened(self, night: Night, times: int, request: Request) -> Request | None:
        """With less to read each time that it did not fit: older turns go first, then the history; None: no more."""
        steps = 1 + max(0, len(request.turns) - 3) // 2
        for _ in range(min(times, steps)):
            request = self.prompts.shorter(request, self.facts(request.history)) or request
        return request if times <= steps else None

    def new_question(self, night: Night, number: int, kind: CallKind, parent: str, suggestion: str) -> Request:
        if kind == "first":
            program = self.program(night)
            files = self.repository.read(parent, program.edit)
            finished = self.history.finished(night)
            facts = self.facts(finished) | self.in_flight(night, number)
            return self.prompts.first_request(number, program, files, finished, facts, suggestion)
        e, request = night.experiments[number], self.talk(night, number, parent)
        reply = next(self.journal.text(call.text) for call in reversed(e.talk) if call.reply)
        if kind == "repair":
            error = self.journal.text(e.refused)
            return self.prompts.repair(request, reply, error, policy.repairs(e) + 1)
        last = self.history.trial(*(e, [t for t in e.trials if t.measurement][-1]))
        return self.prompts.slip(request, reply, last.measurement.log_tail if last.measurement else "")

    def unseen(self, night: Night, program: Program) -> bool:
        """Whether the next question would be the same by this program as by the present one."""
        finished = self.history.finished(night)
        files, facts = self.repository.read(night.tip, program.edit), self.facts(finished)
        one, other = (
            self.prompts.first_request(len(night.experiments), by, files, finished, facts, "")
            for by in (self.program(night), program)
        )
        return (one.system, one.turns) == (other.system, other.turns)

    def talk(self, night: Night, number: int, parent: str) -> Request:
        """The talk so far about this experiment; it ends with the last question."""
        e, program = night.experiments[number], self.program(night)
        turns: list[Turn] = []
        replied = [call for call in e.talk[:-1] if call.reply]
        for call in replied:
            said = self.journal.text(call.text) or "(empty reply)"  # providers refuse a turn without text
            turns += [Turn(role="user", text=self.journal.text(call.question)), Turn(role="assistant", text=said)]
        turns.append(Turn(role="user", text=self.journal.text(e.calls[-1].question)))
        files = self.repository.read(parent, program.edit)
        return Request(
            number=number, system=self.journal.text(e.calls[-1].system), turns=tuple(turns), program=program,
            files=files, history=self.history.finished(night),
            suggestion=self.journal.text(e.suggestion) if e.suggestion else "",
        )  # fmt: skip

    def replies_before(self, night: Night, number: int) -> int:
        calls = [call for e in night.experiments.values() for call in e.calls if call.number < number]
        return sum(1 for call in calls if (call.reply or call.in_flight) and not call.fallback)

    def facts(self, finished: tuple[Experiment, ...]) -> dict[str, object]:
        """What a prompt says beside the contract and the history."""
        noise = Noise.of_night(finished)
        kept = [e for e in finished if e.verdict and e.verdict.kept]
        return {
            "noise": 2 * noise.sigma if noise.sigma is not None else None,
            "Noise between seeds": str(noise),
            "Trials of what was kept that failed": failures(*kept) or None,
            "This machine trains on": self.device,
        }

    def in_flight(self, night: Night, number: int) -> dict[str, object]:
        """What other experiments try, whose outcome is not known."""
        others = [self.history.whole(e) for e in night.open if e.number not in (0, number) and e.proposal]
        return {"Being tried now, outcome unknown": "; ".join(f"#{e.number} {e.label}" for e in others) or None}

    def program(self, night: Night) -> Program:
        return self.history.program(night.program)


def sent_again(e: state.Experiment, fallback: bool) -> bool:
    """Whether its last question was not answered, and holds still."""
    last = e.calls[-1]
    return e.state == "ask" and last.reply is None and last.fallback == fallback and not e.stale


def answer(proposer: Proposer, asked: ev.Asked, request: Request) -> Event:
    """One call, from its start to its end: whatever it raises becomes an event."""
    key: dict[str, Any] = {"experiment": asked.experiment, "call": asked.call}
    try:
        return ev.Replied(**key, reply=proposer.propose(request))
    except ProposerError as error:
        if error.reply is None:
            # A talk that is refused may be one that does not fit, in words that nobody knows.
            refused = error.status in (400, 413, 422) and len(request.turns) > 1
            return ev.CallFailed(
                **key, reason=hidden(str(error)), final=error.final, exhausted=error.exhausted,
                too_long=error.too_long or refused, retry_after=error.retry_after,
            )  # fmt: skip
        reply = error.reply.model_copy(update={"unusable": hidden(str(error))})  # paid for, but cut off or refused
        return ev.Replied(**key, reply=reply, final=error.final)
    except Exception as error:  # a defect of a proposer must not end the night
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        return ev.CallFailed(**key, reason=hidden(reason), charged=True, defect=True)
