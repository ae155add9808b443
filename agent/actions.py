"""How each action of the policy is done, in two halves. `prepare` makes the event that is journaled: it reads,
renders, judges and writes objects that nothing refers to yet. `carry_out` makes the world agree with an event that
is in the journal: it starts workers and moves refs. Both can be done again after a crash at any point.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from agent import events as ev
from agent import policy
from agent.errors import EditError, ProgramError, ProposerError
from agent.events import Event
from agent.history import History
from agent.judge import checks, integrity
from agent.judge.chain import put_onto
from agent.judge.noise import Noise, Rerun, baseline_trials
from agent.judge.verdict import is_slip, weigh
from agent.lab_note import lab_note
from agent.night import Night
from agent.program import Program
from agent.propose import edits
from agent.protocols import Caller, Emit, Executor, Job, Journal, Prompter, Proposer, Repository, Request
from agent.records import Experiment, Measurement, Stoppers, Turn, Verdict

GRACE = 2.0  # times what the contract allows a trial, plus as many minutes: after that it counts as lost


@dataclass
class Actions:
    """What one night works with."""

    reread: Callable[[], str | Program]
    """The program as program.md says it now, the same object while it is the same; a text says why it is no use."""
    journal: Journal
    repository: Repository
    executor: Executor
    proposer: Proposer
    caller: Caller
    prompts: Prompter
    device: str
    emit: Emit

    def __post_init__(self):
        self.history = History(self.journal.text)
        self.read_last: str | Program | None = None

    def prepare(self, action: policy.Action, night: Night) -> Event:
        """The event that this action is journaled as."""
        match action:
            case policy.BeginBaseline():
                return self.begin_baseline(night)
            case policy.Ask(number, kind):
                return self.ask(night, number, kind)
            case policy.Read(number):
                return self.read(night, number)
            case policy.Refuse(number):
                return self.refuse(night, number)
            case policy.Check(number):
                return self.check(night, number)
            case policy.Judge(number):
                return self.judge_baseline(night) if number == 0 else self.judge(night, number)
            case policy.Rebase(number):
                return self.rebase(night, number)
            case policy.Publish(number):
                return self.publish(night, number)
            case policy.Train(number, index, slot):
                return self.train(night, number, index, slot)
            case policy.Test(number, slot):
                return self.test(night, number, slot)
            case policy.CountAsCrash(number, index):
                return self.count_as_crash(night, number, index)
            case policy.GiveUp(what, number, index):
                return self.give_up(night, what, number, index)
            case policy.End(reason, code):
                return ev.Ended(reason=reason, code=code)

    def carry_out(self, event: Event, night: Night) -> list[Event]:
        """Make the world agree with this event; `night` is the state after it. What there is to note of it."""
        match event:
            case ev.Asked():
                self.caller.call(event, self.request(night, event), self.emit)
            case ev.TrialBegun(experiment=number):
                self.forget(night, number)  # of several trials the newest output is enough; checkpoints are large
                trial = night.experiments[number].trials[event.number]
                self.executor.submit(self.job(night, "train", number, trial.number, event), self.emit)
            case ev.TestBegun(experiment=number):
                self.executor.submit(self.job(night, "test", number, event.number, event), self.emit)
            case ev.Committed(experiment=number) | ev.Rebased(experiment=number):
                self.repository.pin(number, event.commit)
            case ev.Published(experiment=number):
                return self.published(night, number)
            case ev.Tested(experiment=number):
                self.forget(night, number)
            case ev.TrialFailed() if night.experiments[event.experiment].trials[event.number].failures:
                self.executor.cancel(event.experiment, event.number, event.reason)
            case ev.Requested(what="stop"):
                self.cancel_all(night, "stopped by the person who runs it")
        return []

    def agree(self, night: Night) -> list[Event]:
        """At the start: whatever the last process could not carry out any more, once again."""
        self.repository.clear_stale_locks()
        pins = self.repository.pins()
        for e in night.experiments.values():
            commit = e.published or e.commit
            if commit and pins.get(e.number) != commit:
                self.repository.pin(e.number, commit)
            if e.state == "published" and e.test_slot is None:
                self.forget(night, e.number)
        return self.advance(night) if night.tip else []

    # The program.

    def started(self, sandbox: str, data: str, stoppers: Stoppers) -> ev.Started:
        """The first event of a process. Raises ProgramError."""
        program = self.reread()
        if isinstance(program, str):
            raise ProgramError(program)
        return ev.Started(
            program=self.journal.put(program.model_dump_json()),
            rules=self.rules(program),
            stoppers=stoppers,
            device=self.device,
            sandbox=sandbox,
            data=data,
            proposer=f"{self.proposer.name} {self.proposer.model}".strip(),
        )

    def steer(self, night: Night) -> Event | None:
        """What an edit of program.md changes, or why it does not. None: there was no edit."""
        found = self.reread()
        if found is self.read_last:
            return None
        self.read_last = found
        refused = found if isinstance(found, str) else ""
        text = self.journal.put(found if isinstance(found, str) else found.model_dump_json())
        if text == (night.program_text or night.program):
            return None
        if isinstance(found, Program):
            if changed := found.other_race(self.history.program(night.contract)):
                refused = f"program.md: a change of {changed} needs a new night (--tag)"
            else:
                return ev.Steered(text=text, program=text, rules=self.rules(found))
        return ev.Steered(text=text, refused=f"{refused}; going on with the last good version")

    def rules(self, program: Program) -> ev.Rules:
        budget, times = program.budget_on(self.device), program.timeouts  # type: ignore[arg-type]
        return ev.Rules(
            metric=program.metric.name,
            minimize=program.metric.direction == "minimize",
            target=program.metric.target,
            seeds=baseline_trials(budget),
            tests=program.test is not None,
            trial_seconds=GRACE * (times.startup + budget.seconds + times.evaluation + 60),
        )

    # Asking.

    def ask(self, night: Night, number: int, kind) -> Event:
        """Set the call's upper bound aside, and write down the question."""
        e = night.experiments.get(number)
        parent = e.parent if e and kind != "first" else night.tip
        again = e is not None and e.state == "ask" and e.calls[-1].reply is None and parent == e.parent
        try:
            request = self.talk(night, number, parent) if again else self.new_question(night, number, kind, parent)
        except ProgramError as error:
            return ev.Blocked(reason=str(error))
        most = self.proposer.most_usd(request)
        if reason := policy.affords(night, most):
            return ev.Blocked(reason=reason)
        system, question = self.journal.put(request.system), self.journal.put(request.turns[-1].text)
        return ev.Asked(
            experiment=number, call=night.calls, kind=kind, parent=parent, system=system, question=question,
            reserved_usd=most,
        )  # fmt: skip

    def new_question(self, night: Night, number: int, kind, parent: str) -> Request:
        if kind == "first":
            program = self.program(night)
            files = self.repository.read(parent, program.edit)
            finished = self.history.finished(night)
            return self.prompts.first_request(number, program, files, finished, self.facts(finished))
        e, request = night.experiments[number], self.talk(night, number, parent)
        reply = next(self.journal.text(call.text) for call in reversed(e.calls) if call.reply)
        if kind == "repair":
            error = self.journal.text(e.refused)
            return self.prompts.repair(request, reply, error, policy.repairs(e) + 1)
        last = self.history.trial(*(e, [t for t in e.trials if t.measurement][-1]))
        return self.prompts.slip(request, reply, last.measurement.log_tail if last.measurement else "")

    def talk(self, night: Night, number: int, parent: str) -> Request:
        """The talk so far about this experiment; it ends with the last question."""
        e, program = night.experiments[number], self.program(night)
        turns: list[Turn] = []
        replied = [call for call in e.calls[:-1] if call.reply]
        for call in replied:
            said = self.journal.text(call.text) or "(empty reply)"  # providers refuse a turn without text
            turns += [Turn(role="user", text=self.journal.text(call.question)), Turn(role="assistant", text=said)]
        turns.append(Turn(role="user", text=self.journal.text(e.calls[-1].question)))
        files = self.repository.read(parent, program.edit)
        return Request(
            number=number, system=self.journal.text(e.calls[-1].system), turns=tuple(turns), program=program,
            files=files, history=self.history.finished(night), replies=self.replies_before(night, e.calls[-1].number),
        )  # fmt: skip

    def request(self, night: Night, asked: ev.Asked) -> Request:
        return self.talk(night, asked.experiment, asked.parent)

    def replies_before(self, night: Night, number: int) -> int:
        calls = [call for e in night.experiments.values() for call in e.calls if call.number < number]
        return sum(1 for call in calls if call.reply or call.in_flight)

    def facts(self, finished: tuple[Experiment, ...]) -> dict[str, object]:
        """What a prompt says beside the contract and the history."""
        noise = Noise.of_night(finished)
        return {
            "noise": 2 * noise.sigma if noise.sigma is not None else None,
            "Noise between seeds": str(noise),
            "This machine trains on": self.device,
        }

    # From a reply to a commit.

    def begin_baseline(self, night: Night) -> Event:
        """The editable files as they are, so that going back to them is seen to have been tried."""
        commit = self.repository.head
        files = self.repository.read(commit, self.program(night).edit)
        mark = checks.fingerprint(files)
        return ev.BaselineBegun(commit=commit, files=self.journal.put(json.dumps(files)), fingerprint=mark)

    def read(self, night: Night, number: int) -> Event:
        """Parse the reply and apply it; where that fails, it goes back to the proposer."""
        e = night.experiments[number]
        reply, program = self.history.reply(e.calls[-1]), self.program(night)
        assert reply is not None
        before = self.repository.read(e.parent, program.edit)
        try:
            if reply.unusable:
                raise EditError(reply.unusable)
            proposal = edits.parse_reply(reply.text)
            files = edits.apply_edits(proposal, before, program.edit)
        except EditError as error:
            return ev.ReplyRefused(experiment=number, error=self.journal.put(str(error)))
        return ev.Proposed(
            experiment=number,
            proposal=self.journal.put(proposal.model_dump_json()),
            category=proposal.category,
            files=self.journal.put(json.dumps(files)),
            fingerprint=checks.fingerprint({**before, **files}),
        )

    def refuse(self, night: Night, number: int) -> Event:
        e = night.experiments[number]
        reason = self.journal.text(e.refused) if e.refused else "this program failed to ask for it, again and again"
        return judged(number, Verdict(kind="invalid", reason=reason))

    def check(self, night: Night, number: int) -> Event:
        """Check the change before any GPU time, and commit it on top of the incumbent."""
        e, program = night.experiments[number], self.program(night)
        whole = self.history.whole(e)
        assert whole.proposal is not None
        before = self.repository.read(e.parent, program.edit)
        after = before | whole.files
        refusal = self.tried(night, e.fingerprint, checks.fingerprint(before))
        refusal = refusal or checks.check(whole.proposal, before, after, ())
        if refusal is None and (reason := integrity.check_edit(whole.proposal, before, after, program)):
            refusal = "violation", reason
        if refusal is not None:
            return judged(number, Verdict(kind=refusal[0], reason=refusal[1]))
        try:
            message = lab_note(whole, None, program)
            commit = self.repository.commit_files(e.parent, whole.files, message, e.created)
        except EditError as error:
            return judged(number, Verdict(kind="invalid", reason=str(error)))
        return ev.Committed(experiment=number, commit=commit)

    def tried(self, night: Night, mark: str, before: str):
        """Whether the same code ran before, or runs now; "changes nothing" is said by the other checks."""
        if mark == before or mark not in night.tried:
            return None
        same = night.experiments[night.tried[mark]]
        verdict = same.verdict
        metric = "" if verdict is None or verdict.metric is None else f", {verdict.metric:.6g}"
        kind = verdict.kind if verdict else "not decided yet"
        return "duplicate", f"same code as experiment {same.number}: {kind}{metric}; propose something else"

    # Trials.

    def train(self, night: Night, number: int, index: int, slot: int) -> Event:
        e = night.experiments[number]
        again = e.trials[index] if index < len(e.trials) else None
        return ev.TrialBegun(
            experiment=number,
            number=index,
            attempt=again.attempt + 1 if again else 1,
            commit=again.commit if again else e.commit,
            seed=again.seed if again else 1000 * number + index + 1,
            slot=slot,
        )

    def test(self, night: Night, number: int, slot: int) -> Event:
        e = night.experiments[number]
        worked = [t for t in e.current if t.measurement and t.measurement.outcome == "ok"]
        last = max(worked, key=lambda t: t.turn)  # the outputs of those before it are gone
        return ev.TestBegun(experiment=number, number=last.number, attempt=e.test_attempt + 1, slot=slot)

    def job(self, night: Night, what, number: int, index: int, begun: ev.TrialBegun | ev.TestBegun) -> Job:
        trial = night.experiments[number].trials[index]
        return Job(
            what=what, experiment=number, number=index, attempt=begun.attempt, commit=trial.commit, seed=trial.seed,
            slot=begun.slot, program=self.program(night), cold=number == 0,
        )  # fmt: skip

    def count_as_crash(self, night: Night, number: int, index: int) -> Event:
        trial = night.experiments[number].trials[index]
        why = "the machine failed it again and again, and ran the incumbent in between"
        if trial.failures >= policy.FAILURES:
            why = f"what runs it broke {trial.failures} times: see the notes of this night"
        crash = Measurement(outcome="crash", reason=why)
        return ev.Measured(experiment=number, number=index, attempt=trial.attempt, measurement=crash)

    def give_up(self, night: Night, what: str, number: int, index: int) -> Event:
        e, reason = night.experiments[number], "nothing was heard of it for longer than it can take"
        if what == "call":
            return ev.CallFailed(experiment=number, call=index, reason=reason, charged=True)
        if what == "test":
            return ev.Tested(experiment=number, attempt=e.test_attempt, reason=reason)
        return ev.TrialFailed(experiment=number, number=index, attempt=e.trials[index].attempt, reason=reason)

    def cancel_all(self, night: Night, why: str) -> None:
        for e, t in night.running:
            self.executor.cancel(e.number, t.number, why)
        for e in night.testing:
            for t in e.current:
                self.executor.cancel(e.number, t.number, why)

    # Verdicts.

    def judge(self, night: Night, number: int) -> Event:
        """Decide, or say which trial is missing. A first look is against the measurements of its own parent."""
        e, program = night.experiments[number], self.program(night)
        experiment = self.history.whole(e)
        last = experiment.current[-1]
        if last.outcome != "ok":
            if self.proposer.converses and is_slip(experiment):
                return ev.SentBack(experiment=number)
            return judged(number, Verdict(kind=last.outcome, reason=last.reason))  # type: ignore[arg-type]
        parent = self.history.whole(night.experiments[night.kept[e.parent]])
        before = self.repository.read(e.parent, list(experiment.files))
        decision = weigh(program, parent, experiment, self.history.finished(night), before)
        if isinstance(decision, Verdict) and not decision.kept:
            return judged(number, decision)
        if e.parent != night.tip:  # it may be better: that is for the present incumbent to say
            return self.rebase(night, number)
        if isinstance(decision, Rerun):
            return ev.RerunWanted(experiment=number, of=decision.of, reason=decision.reason)
        return judged(number, decision)

    def judge_baseline(self, night: Night) -> Event:
        """The unchanged program must run; several seeds tell its noise."""
        baseline = self.history.whole(night.experiments[0])
        bad = next((m for m in baseline.current if m.outcome != "ok"), None)
        if bad:
            return ev.BaselineFailed(
                reason="the unchanged program does not run, so nothing can be compared: "
                f"{bad.outcome}: {ev.cut(bad.reason)[:200]} (see `logs`); correct it, commit, and start again"
            )
        metrics = baseline.metrics
        mean = sum(metrics) / len(metrics)
        return judged(0, Verdict(kind="baseline", reason=str(Noise.of([metrics])), metric=mean))

    def rebase(self, night: Night, number: int) -> Event:
        """Put the change onto the present incumbent: the same experiment, a new commit, to be confirmed there."""
        e, program = night.experiments[number], self.program(night)
        whole, best = self.history.whole(e), night.kept[night.tip]
        base = self.repository.read(e.parent, program.edit)
        now = self.repository.read(night.tip, program.edit)
        files = put_onto(self.repository, whole.files, base, now) or reapplied(whole, now, program)
        metric = whole.metrics[0] if whole.metrics else None
        if files is None:
            why = f"better than its parent, but it can't be put onto experiment {best}: both change the same lines"
            return judged(number, Verdict(kind="discard", reason=why, metric=metric))
        mark = checks.fingerprint({**now, **files})
        if mark == checks.fingerprint(now):
            why = f"experiment {best} was kept meanwhile and holds this change already"
            return judged(number, Verdict(kind="discard", reason=why, metric=metric))
        message = lab_note(whole.model_copy(update={"verdict": None}), None, program)
        commit = self.repository.commit_files(night.tip, files, message, e.created)
        return ev.Rebased(
            experiment=number, parent=night.tip, commit=commit, files=self.journal.put(json.dumps(files)),
            fingerprint=mark,
        )  # fmt: skip

    def publish(self, night: Night, number: int) -> Event:
        """A kept commit gets its final message; the branch moves when this is in the journal."""
        e, best = night.experiments[number], night.incumbent
        commit = e.commit
        if e.kept and number:
            known = self.history.brief(best) if best else None
            message = lab_note(self.history.whole(e, brief=True), known, self.program(night))
            commit = self.repository.commit_tree(commit, e.parent, message, e.created)
        return ev.Published(experiment=number, commit=commit)

    def published(self, night: Night, number: int) -> list[Event]:
        e = night.experiments[number]
        notes = self.advance(night) if e.kept else []
        if e.published:
            self.repository.pin(number, e.published)
        for done in [number, *list(night.kept.values())[-2:]]:  # the incumbent may have been run again for this
            self.forget(night, done)
        return notes

    def advance(self, night: Night) -> list[Event]:
        """research/<tag> moves to the incumbent; a tip that somebody else has put there is saved and noted."""
        saved = self.repository.advance(night.tip, list(night.kept))
        return [ev.Noted(text=saved)] if saved else []

    def forget(self, night: Night, number: int) -> None:
        """Delete what the ended trials saved, but for what is still to be tested."""
        e = night.experiments[number]
        if e.state == "published" and e.kept and e.test is None:
            return
        for t in e.trials:
            if not t.running and (t.measurement or e.state == "published"):
                self.executor.forget(number, t.number, e.kept)

    # Results, on their way into the journal.

    def stow(self, event: Event) -> Event:
        """The event as it is journaled: long texts go into the side table, and no key goes with them."""
        if isinstance(event, ev.Replied):
            return event.model_copy(
                update={"text": self.journal.put(event.reply.text), "reply": short(event.reply, "text", "unusable")}
            )
        if isinstance(event, ev.Measured):
            measurement = redacted(event.measurement)
            details = self.journal.put(measurement.model_dump_json())
            light = measurement.model_copy(
                update={"curve": (), "log_tail": "", "numbers": {}, "reason": ev.cut(measurement.reason)}
            )
            return event.model_copy(update={"details": details, "measurement": light})
        if isinstance(event, ev.TrialFailed) and event.traceback:
            return event.model_copy(update={"traceback": "", "details": self.journal.put(event.traceback)})
        if isinstance(event, ev.Tested) and event.figures:
            return event.model_copy(update={"figures": {}, "numbers": self.journal.put(json.dumps(event.figures))})
        return event

    def program(self, night: Night) -> Program:
        return self.history.program(night.program)


def answer(proposer: Proposer, asked: ev.Asked, request: Request) -> Event:
    """One call, from its start to its end: whatever it raises becomes an event."""
    key = {"experiment": asked.experiment, "call": asked.call}
    try:
        return ev.Replied(**key, reply=proposer.propose(request))
    except ProposerError as error:
        if error.reply is None:
            return ev.CallFailed(**key, reason=hidden(str(error)), final=error.final)
        reply = error.reply.model_copy(update={"unusable": hidden(str(error))})  # paid for, but cut off or refused
        return ev.Replied(**key, reply=reply, final=error.final)
    except Exception as error:  # a defect of a proposer must not end the night
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        return ev.CallFailed(**key, reason=hidden(reason), charged=True, defect=True)


def reapplied(experiment: Experiment, now: dict[str, str], program: Program) -> dict[str, str] | None:
    """The blocks of the proposal, applied to the files as they are now; None where they don't fit."""
    assert experiment.proposal is not None
    try:
        return edits.apply_edits(experiment.proposal, now, program.edit)
    except EditError:
        return None


def judged(number: int, verdict: Verdict) -> ev.Judged:
    return ev.Judged(experiment=number, verdict=verdict.model_copy(update={"reason": ev.cut(verdict.reason)}))


def short(reply, *names: str):
    """Without its text, and with a bounded reason."""
    values = {"text": "", "unusable": ev.cut(reply.unusable)}
    return reply.model_copy(update={name: values[name] for name in names})


@lru_cache(maxsize=1)
def keys() -> tuple[str, ...]:
    return integrity.keys_of(os.environ)


def hidden(text: str) -> str:
    return integrity.redact(text, keys())


def redacted(measurement: Measurement) -> Measurement:
    """Without anything that is, or looks like, a key: what a trial printed goes into prompts and reports."""
    return measurement.model_copy(update={name: hidden(getattr(measurement, name)) for name in ("reason", "log_tail")})
