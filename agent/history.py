"""The experiments of a night as whole records, for prompts, judge and reports: the state with its texts.

Experiments that are over are remembered without what only their own decision needed (questions, files, curves,
logs), so that a long night fits into memory; whoever wants these asks for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

from agent import state
from agent.night import Night
from agent.program import Program
from agent.records import Call, Experiment, Measurement, Proposal, Reply, Trial

SHORT_EDITS = 1000  # characters

Read = Callable[[str], str]
"""Hash -> text, from the side table of the journal."""


class History:
    """Reads the texts of one night; `read` may be called as often as needed."""

    def __init__(self, read: Read):
        self.read = read
        self.told: dict[int, tuple[state.Experiment, Experiment]] = {}
        self.program = lru_cache(maxsize=4)(lambda of: Program.model_validate_json(read(of)))
        """The parsed program with this hash."""

    def files(self, of: str) -> dict[str, str]:
        """Path -> text."""
        return json.loads(self.read(of)) if of else {}

    def finished(self, night: Night) -> tuple[Experiment, ...]:
        """Those with a final verdict, in the order in which they got it; the last kept one is the incumbent."""
        return tuple(self.brief(night.experiments[number]) for number in night.order)

    def brief(self, e: state.Experiment) -> Experiment:
        """Without questions, files, long edits, replies that were applied, curves and logs; of what was not kept
        without numbers either, and of a crash the end of its log stays."""
        before = self.told.get(e.number)
        if before is None or before[0] is not e:
            before = e, compact(self.whole(e, brief=True))
            self.told[e.number] = before
        return before[1]

    def whole(self, e: state.Experiment, brief: bool = False) -> Experiment:
        failed = e.verdict is not None and e.verdict.kind in ("crash", "timeout")
        last = len(e.trials) - 1
        return Experiment(
            number=e.number,
            state=e.state,
            parent=e.parent,
            commit=e.published or e.commit or None,
            proposal=self.proposal(e, brief) if e.proposal else put_on_again(e) if e.parts else None,
            files={} if brief else self.files(e.files),
            verdict=e.verdict,
            trials=tuple(self.trial(e, t, brief and not (failed and t.number == last)) for t in e.trials),
            calls=tuple(self.call(turn, call, brief, bool(e.proposal)) for turn, call in enumerate(e.calls)),
            test_numbers=None if e.test is None else json.loads(self.read(e.test)) if e.test else {},
            created=e.created,
            suggestion=self.read(e.suggestion) if e.suggestion else "",
            parts=e.parts,
            accepted=e.accepted,
        )

    def proposal(self, e: state.Experiment, brief: bool) -> Proposal:
        """In brief without edits that no search could learn from: those of a change of one constant are short."""
        proposal = Proposal.model_validate_json(self.read(e.proposal))
        long = sum(len(edit.search) + len(edit.replace) for edit in proposal.edits) > SHORT_EDITS
        return proposal.model_copy(update={"edits": ()}) if brief and long else proposal

    def trial(self, e: state.Experiment, t: state.Trial, brief: bool = False) -> Trial:
        measurement = t.measurement
        if measurement and t.details and (e.kept or not brief):
            measurement = Measurement.model_validate_json(self.read(t.details))
            if brief:
                measurement = measurement.model_copy(update={"curve": (), "log_tail": ""})
        known = {"experiment": e.number, "number": t.number, "commit": t.commit, "seed": t.seed}
        return Trial(**known, measurement=measurement, superseded=t.superseded)

    def call(self, turn: int, call: state.Call, brief: bool, applied: bool) -> Call:
        reply = call.reply if brief and applied else self.reply(call)
        question = "" if brief else self.read(call.question)
        return Call(turn=turn, kind=call.kind, question=question, reserved_usd=call.charge, reply=reply)

    def reply(self, call: state.Call) -> Reply | None:
        return call.reply and call.reply.model_copy(update={"text": self.read(call.text)})


def put_on_again(e: state.Experiment) -> Proposal:
    """What stands for a proposal where kept changes are put on again."""
    names = " and ".join(f"#{part}" for part in e.parts)
    text = f"What was kept of {names} holds without #{e.without} too, which the person vetoed."
    return Proposal(hypothesis=text, category="other", edits=())


def compact(e: Experiment) -> Experiment:
    """The same in less memory, as Record.model_copy says; it is held for the whole night."""
    proposal = e.proposal and e.proposal.model_copy(update={"edits": tuple(x.model_copy() for x in e.proposal.edits)})
    trials, calls = tuple(t.model_copy() for t in e.trials), tuple(c.model_copy() for c in e.calls)
    return e.model_copy(update={"proposal": proposal, "trials": trials, "calls": calls})
