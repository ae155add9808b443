"""From a reply to a commit, and from trials to a verdict: each step makes the one event that says how it came out."""

from __future__ import annotations

import json
from dataclasses import dataclass

from agent import events as ev
from agent import state
from agent.errors import EditError
from agent.events import Event
from agent.history import History
from agent.judge import checks, integrity
from agent.judge.chain import put_onto
from agent.judge.noise import Noise, Rerun
from agent.judge.verdict import failures, is_slip, tried_again, weigh
from agent.night import Night
from agent.program import Program
from agent.propose import edits
from agent.protocols import Journal, Repository
from agent.records import Experiment, Verdict, VerdictKind
from agent.remake import final_note, first_note


@dataclass
class Judging:
    """What decisions are made from."""

    journal: Journal
    history: History
    repository: Repository
    converses: bool
    """Whether a crash within seconds can go back to the proposer."""

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

    def refuse(self, night: Night, number: int, skipped: bool) -> Event:
        e = night.experiments[number]
        if e.ending:
            return judged(number, Verdict(kind="skipped", reason=e.ending))
        if e.state == "ask" and e.current:  # its crash was sent back, and nobody mends it
            return failed(self.history.whole(e))
        if skipped:
            why = night.blocked or night.failure
            return judged(number, Verdict(kind="skipped", reason=f"the proposer can't be had: {why}"))
        reason = self.journal.text(e.refused) if e.refused else "this program failed to ask for it, again and again"
        return judged(number, Verdict(kind="invalid", reason=reason))

    def check(self, night: Night, number: int) -> Event:
        """Check the change before any GPU time, and commit it on top of the incumbent."""
        e, program = night.experiments[number], self.program(night)
        whole = self.history.whole(e)
        before = self.repository.read(e.parent, program.edit)
        after = before | whole.files
        refusal = checks.check(before, after) or self.tried(night, number)
        if refusal is None and (reason := integrity.check_edit(before, after, program)):
            refusal = "violation", reason
        if refusal is not None:
            return judged(number, Verdict(kind=refusal[0], reason=refusal[1]))
        try:
            message = first_note(self.history, night, number, program)
            commit = self.repository.commit_files(e.parent, whole.files, message, e.created)
        except EditError as error:
            return judged(number, Verdict(kind="invalid", reason=str(error)))
        return ev.Committed(experiment=number, commit=commit)

    def tried(self, night: Night, number: int) -> tuple[VerdictKind, str] | None:
        """Whether the same code ran before, or runs now in another slot."""
        same = night.experiments[night.tried.get(night.experiments[number].fingerprint, number)]
        if same.number == number:
            return None
        verdict = same.verdict
        metric = "" if verdict is None or verdict.metric is None else f", {verdict.metric:.6g}"
        kind = verdict.kind if verdict else "not decided yet"
        return "duplicate", f"same code as experiment {same.number}: {kind}{metric}; propose something else"

    def judge(self, night: Night, number: int) -> Event:
        """Decide, or say which trial is missing. A first look is against the measurements of its own parent."""
        e, program = night.experiments[number], self.program(night)
        experiment = self.history.whole(e)
        last = experiment.current[-1]
        if last.outcome != "ok":
            if again := tried_again(experiment, self.history.finished(night)):
                return ev.RerunWanted(experiment=number, of=again.of, reason=again.reason)
            if self.converses and e.calls and not e.calls[-1].fallback and is_slip(experiment):
                return ev.SentBack(experiment=number)
            return failed(experiment)
        parent = self.history.whole(night.experiments[night.ever_kept[e.parent]])
        before = self.repository.read(e.parent, list(experiment.files))
        apart = night.rules if program.evaluate else None  # else its evaluation is timed with its training
        seconds = apart.limit_seconds if apart else 0.0
        decision = weigh(program, parent, experiment, self.history.finished(night), before, seconds)
        if isinstance(decision, Verdict) and not decision.kept:
            return judged(number, decision)
        if e.parent != night.tip:  # it may be better: that is for the present incumbent to say
            return self.rebase(night, number)
        if isinstance(decision, Rerun):
            return ev.RerunWanted(experiment=number, of=decision.of, reason=decision.reason)
        return judged(number, decision)

    def judge_baseline(self, night: Night) -> Event:
        """The unchanged program must run; several seeds tell its noise. One that fails at times is run again with
        fresh seeds (`state.Experiment.missing`), and judged by what worked."""
        baseline = self.history.whole(night.experiments[0])
        metrics, often = baseline.metrics, failures(baseline)
        if len(metrics) < min(2, night.experiments[0].wanted):
            bad = [m for m in baseline.current if m.outcome != "ok"][-1]
            what = f"{often}, the last one: {bad.outcome}" if len(baseline.current) > 1 else bad.outcome
            return ev.BaselineFailed(
                reason="the unchanged program does not run, so nothing can be compared: "
                f"{what}: {ev.cut(bad.reason)[:200]} (see `logs`); correct it, commit, and start again"
            )
        noise = str(Noise.of([metrics])) + (f"; {often}" if often else "")
        mean = sum(metrics) / len(metrics)
        return judged(0, Verdict(kind="baseline", reason=noise, metric=mean, trials=len(metrics)))

    def rebase(self, night: Night, number: int) -> Event:
        """Put the change onto the present incumbent: the same experiment, a new commit, to be confirmed there."""
        e, program = night.experiments[number], self.program(night)
        whole, best = self.history.whole(e), night.kept[night.tip]
        now = self.repository.read(night.tip, program.edit)
        if e.state == "detached" and e.parts:
            files, left_out = self.put_on_again(night, e, now, program)
            why = f"#{e.without} was vetoed, and what was kept after it can't be put onto experiment {best} without it"
        else:
            files, left_out = self.put_on(whole, now, program), ()
            why = f"better than its parent, but it can't be put onto experiment {best}: both change the same lines"
        measured = {"metric": whole.metrics[0], "trials": 1} if whole.metrics else {}
        if files is None and e.state == "trials":  # not one of it was begun
            return ev.Overtaken(experiment=number, by=best)
        if files is None:
            return judged(number, Verdict(kind="discard", reason=why, **measured))
        mark = checks.fingerprint({**now, **files})
        if mark == checks.fingerprint(now):
            why = f"experiment {best} was kept meanwhile and holds this change already"
            return judged(number, Verdict(kind="discard", reason=why, **measured))
        if refusal := self.refused_there(night, e, mark, now, {**now, **files}):
            return judged(number, refusal)
        message = first_note(self.history, night, number, program)
        commit = self.repository.commit_files(night.tip, files, message, e.created)
        return ev.Rebased(
            experiment=number, parent=night.tip, commit=commit, files=self.journal.put(json.dumps(files)),
            fingerprint=mark, left_out=left_out,
        )  # fmt: skip

    def refused_there(
        self, night: Night, e: state.Experiment, mark: str, before: dict[str, str], after: dict[str, str]
    ) -> Verdict | None:
        """Why a change that was not tried yet is not worth a trial on the present incumbent, or not allowed there."""
        if e.trials or e.parts:
            return None
        same = night.tried.get(mark, e.number)
        if same != e.number:
            return Verdict(kind="duplicate", reason=f"same code as experiment {same}; propose something else")
        if refusal := checks.check(before, after):
            return Verdict(kind=refusal[0], reason=refusal[1])
        reason = integrity.check_edit(before, after, self.program(night))
        return Verdict(kind="violation", reason=reason) if reason else None

    def put_on(self, whole: Experiment, now: dict[str, str], program: Program) -> dict[str, str] | None:
        """The files that its change makes of those of `now`; None where it does not apply."""
        base = self.repository.read(whole.parent, program.edit)
        return put_onto(self.repository, whole.files, base, now) or reapplied(whole, now, program)

    def put_on_again(
        self, night: Night, e: state.Experiment, now: dict[str, str], program: Program
    ) -> tuple[dict[str, str] | None, tuple[int, ...]]:
        """The changes of its parts, one after the other; and those that don't apply. None: not one does."""
        changed: dict[str, str] = {}
        left_out: list[int] = []
        for part in e.parts:
            whole = self.history.whole(night.experiments[part])
            files = self.put_on(whole, now | changed, program)
            changed |= files or {}
            left_out += [] if files is not None else [part]
        return (changed if len(left_out) < len(e.parts) else None), tuple(left_out)

    def publish(self, night: Night, number: int) -> Event:
        """A kept commit gets its final message; the branch moves when this is in the journal."""
        e = night.experiments[number]
        commit = e.commit
        if e.kept and number:
            message = final_note(self.history, night, number, self.program(night))
            commit = self.repository.commit_tree(commit, e.parent, message, e.created)
        return ev.Published(experiment=number, commit=commit)

    def program(self, night: Night) -> Program:
        return self.history.program(night.program)


def reapplied(experiment: Experiment, now: dict[str, str], program: Program) -> dict[str, str] | None:
    """The blocks of the proposal, applied to the files as they are now; None where they don't fit."""
    if experiment.proposal is None or not experiment.proposal.edits:
        return None
    try:
        return edits.apply_edits(experiment.proposal, now, program.edit)
    except EditError:
        return None


def failed(experiment: Experiment) -> ev.Judged:
    """By its last trial, which ended without a measurement."""
    last = experiment.current[-1]
    often = failures(experiment) if len(experiment.current) > 1 else ""
    reason = f"{last.reason}; {often}" if often else last.reason
    return judged(experiment.number, Verdict(kind=last.outcome, reason=reason))  # type: ignore[arg-type]


def judged(number: int, verdict: Verdict) -> ev.Judged:
    return ev.Judged(experiment=number, verdict=verdict.model_copy(update={"reason": ev.cut(verdict.reason)}))
