"""How each action of the policy is done, in two halves. `prepare` makes the event that is journaled: it reads,
renders, judges and writes objects that nothing refers to yet. `carry_out` makes the world agree with an event that
is in the journal: it starts workers and moves refs. Both can be done again after a crash at any point.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from agent import events as ev
from agent import policy, requests
from agent.asking import Asking
from agent.errors import ProgramError
from agent.events import Event
from agent.history import History
from agent.judge.noise import baseline_trials, unreported
from agent.judging import Judging
from agent.limits import GO_ON
from agent.night import Night
from agent.program import Program
from agent.protocols import Caller, Emit, Executor, Job, Journal, Prompter, Proposer, Repository
from agent.records import Measurement, Stoppers, Surroundings
from agent.redact import hidden
from agent.remake import remake
from agent.run.inputs import difference
from agent.state import Experiment

LOAD = "load_seconds"  # what an evaluation may say of the model that it measured
FULL_LOGS = 200  # experiments, the newest, of which the whole logs stay; those of the baseline and of keeps always do
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
    fallback: Proposer | None = None
    """Proposes while the proposer can't."""
    inputs: Callable[[], dict[str, str]] = dict
    """What the data looks like now (agent/run/inputs.py)."""
    updated: Callable[[], str] = str
    """Why this process can't begin another trial: it runs an older version (agent/version.py). "": it can."""

    def __post_init__(self):
        self.history = History(self.journal.text)
        self.read_last: str | Program | None = None
        shared = self.journal, self.history, self.repository
        self.asking = Asking(*shared, self.proposer, self.prompts, self.device, self.fallback)
        self.judging = Judging(*shared, self.proposer.converses)

    def prepare(self, action: policy.Action, night: Night) -> Event:
        """The event that this action is journaled as."""
        try:
            return self.event_of(action, night)
        except Exception:
            if not (made := self.remake()):  # it was not that git has lost a commit
                raise
            self.emit(made[0])
            return self.event_of(action, night)

    def event_of(self, action: policy.Action, night: Night) -> Event:
        match action:
            case policy.BeginBaseline():
                return self.judging.begin_baseline(night)
            case policy.Ask(number, kind, fallback):
                return self.asking.ask(night, number, kind, fallback)
            case policy.Read(number):
                return self.judging.read(night, number)
            case policy.Refuse(number, skipped):
                return self.judging.refuse(night, number, skipped)
            case policy.Check(number):
                return self.judging.check(night, number)
            case policy.Judge(number):
                return self.judging.judge_baseline(night) if number == 0 else self.judging.judge(night, number)
            case policy.Rebase(number):
                return self.judging.rebase(night, number)
            case policy.Publish(number):
                return self.judging.publish(night, number)
            case policy.Train() | policy.Test() if updated := self.updated():
                return ev.Ended(reason=updated, code=3, then=GO_ON)
            case policy.Train() | policy.Test() if changed := self.changed(night):
                return ev.Ended(reason=changed, code=3)
            case policy.Train(number, index, slot):
                return self.train(night, number, index, slot)
            case policy.Test(number, slot):
                return self.test(night, number, slot)
            case policy.CountAsCrash(number, index):
                return self.count_as_crash(night, number, index)
            case policy.GiveUp(what, number, index):
                return self.give_up(night, what, number, index)
            case policy.Pause(reason, until, what):
                return ev.Paused(reason=reason, until=until, what=what)
            case policy.Resume():
                return ev.Resumed()
            case policy.End(reason, code, then):
                return ev.Ended(reason=reason, code=code, then=then)

    def carry_out(self, event: Event, night: Night) -> list[Event]:
        """Make the world agree with this event; `night` is the state after it. What there is to note of it."""
        match event:
            case ev.Asked():
                assert self.asking.request is not None
                self.caller.call(event, self.asking.request, self.emit)
            case ev.TrialBegun(experiment=number):
                self.forget(night, number)  # of several trials the newest output is enough; checkpoints are large
                trial = night.experiments[number].trials[event.number]
                if self.repository.missing([trial.commit]):
                    for note in self.remake():
                        self.emit(note)
                self.executor.submit(self.job(night, "train", number, trial.number, event), self.emit)
            case ev.TestBegun(experiment=number):
                self.executor.submit(self.job(night, "test", number, event.number, event), self.emit)
            case ev.Committed(experiment=number) | ev.Rebased(experiment=number):
                self.pin(night, number)
            case ev.Published(experiment=number):
                return self.published(night, number)
            case ev.Tested(experiment=number):
                if event.reason:  # it may have been given up, and still run
                    self.executor.cancel(number, night.experiments[number].test_number, event.reason)
                self.forget(night, number)
            case ev.TrialFailed() if night.experiments[event.experiment].trials[event.number].failures:
                self.executor.cancel(event.experiment, event.number, event.reason)
            case ev.Requested(what="stop"):
                self.cancel_all(night, "stopped by the person who runs it")
            case ev.Requested(what="skip" | "veto"):
                return self.end_unwanted(night)
        return []

    def agree(self, night: Night) -> list[Event]:
        """At the start: whatever the last process could not carry out any more, once again."""
        self.repository.clear_stale_locks()
        made = self.remake()
        pins = self.repository.pins()
        for e in night.experiments.values():
            if (commit := e.published or e.commit) and pins.get(e.number, "") != commit:
                self.pin(night, e.number)
            if e.state == "published" and e.test_slot is None:
                self.forget(night, e.number)
            if e.state == "published" and not e.kept:
                self.executor.discard(e.number)
            if e.number <= len(night.order) - FULL_LOGS:
                self.shorten(night, e.number)
        return [*made, *(self.advance(night) if night.tip else [])]

    def remake(self) -> list[Event]:
        """Commits that git has lost, as where somebody deleted refs/experiments and cleaned up, are made again."""
        made = remake((event for _, event in self.journal.events()), self.history, self.repository)
        text = f"{made} commits of this night were gone from the repository, and are made again"
        return [ev.Noted(text=text)] if made else []

    # The program.

    def started(self, surroundings: Surroundings, stoppers: Stoppers) -> ev.Started:
        """The first event of a process. Raises ProgramError."""
        program = self.reread()
        if isinstance(program, str):
            raise ProgramError(program)
        return ev.Started(
            program=self.journal.put(program.model_dump_json()),
            rules=self.rules(program),
            stoppers=stoppers,
            device=self.device,
            **surroundings.model_dump(),
            proposer=f"{self.proposer.name} {self.proposer.model}".strip(),
            reads=self.proposer.reads,
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
            if changed := found.incomparable(self.history.program(night.contract)):
                refused = f"program.md: a change of {changed} needs a new night (--tag)"
            elif silent := self.unreported(night, found):
                refused = f"program.md limits {silent}, which the incumbent does not report"
            else:
                unseen = bool(requests.not_started(night)) and self.asking.unseen(night, found)
                return ev.Steered(text=text, program=text, rules=self.rules(found), unseen=unseen)
        return ev.Steered(text=text, refused=f"{refused}; going on with the last good version")

    def unreported(self, night: Night, program: Program) -> str | None:
        """A limit that nothing could pass, because its number is not printed where it counts."""
        best = night.incumbent
        worked = [m for m in self.history.whole(best).current if m.outcome == "ok"] if best else []
        return unreported(program, worked) if worked else None

    def rules(self, program: Program) -> ev.Rules:
        budget, times = program.budget_on(self.device), program.timeouts  # type: ignore[arg-type]
        return ev.Rules(
            metric=program.metric.name,
            minimize=program.metric.direction == "minimize",
            target=program.metric.target,
            seeds=baseline_trials(budget),
            tests=program.test is not None,
            budget_seconds=budget.seconds,
            evaluates=program.evaluate is not None,
            limit_seconds=0.0 if budget.tokens else budget.seconds,
            trial_seconds=GRACE * (times.startup + budget.seconds + times.evaluation + 60),
        )

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
        trial, best = night.experiments[number].trials[index], night.incumbent
        return Job(
            what=what, experiment=number, number=index, attempt=begun.attempt, commit=trial.commit, seed=trial.seed,
            slot=begun.slot, program=self.program(night), builds_on=night.kept.get(night.experiments[number].parent),
            incumbent=best.verdict.metric if best and best.verdict else None,
            slowest_start=slowest_start(night), slowest_end=slowest_end(night), slowest_load=self.slowest_load(best),
            speaks=any(m.startup_seconds > 0 for m in ran(night)),
        )  # fmt: skip

    def slowest_load(self, best: Experiment | None) -> float | None:
        whole = self.history.brief(best).current if best else ()
        told = [m for m in whole if LOAD in (m.evaluated or ()) and LOAD in m.numbers]
        return max((m.numbers[LOAD] for m in told), default=None)

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
            self.executor.cancel(e.number, e.test_number, why)

    def end_unwanted(self, night: Night) -> list[Event]:
        """What a person has skipped or vetoed trains no longer, and is off the branch."""
        kept = set(night.kept.values())
        for e, t in night.running:
            if e.ending or e.state == "published" and e.number not in kept:
                self.executor.cancel(e.number, t.number, e.ending or requests.VETOED)
        for number in set(night.ever_kept.values()) - kept:
            if night.experiments[number].test_slot is not None:
                self.executor.cancel(number, night.experiments[number].test_number, requests.VETOED)
            self.executor.discard(number)
            self.forget(night, number)
        return self.advance(night) if night.tip else []

    def published(self, night: Night, number: int) -> list[Event]:
        e = night.experiments[number]
        notes = self.advance(night) if e.kept else []
        if not e.kept:
            self.executor.discard(number)
        if e.published:
            self.pin(night, number)
        self.shorten(night, number - FULL_LOGS)
        for done in [number, *list(night.kept.values())[-2:]]:  # the incumbent may have been run again for this
            self.forget(night, done)
        return notes

    def shorten(self, night: Night, number: int) -> None:
        """Of old experiments that were not kept no whole log stays."""
        for trial in reverted(night, number):
            self.executor.shorten(number, trial)

    def pin(self, night: Night, number: int) -> None:
        """Every commit that was measured stays for ever, whatever was decided about it."""
        e = night.experiments[number]
        for commit in {t.commit for t in e.trials if t.superseded} - {e.parent}:
            self.repository.pin_older(number, commit)
        self.repository.pin(number, e.published or e.commit, {e.commit, *(t.commit for t in e.trials)})

    def advance(self, night: Night) -> list[Event]:
        """research/<tag> moves to the incumbent; a tip that somebody else has put there is saved and noted."""
        saved = self.repository.advance(night.tip, list(night.ever_kept))
        return [ev.Noted(text=saved)] if saved else []

    def forget(self, night: Night, number: int) -> None:
        """Delete what the ended trials saved, but for what is still to be tested."""
        e = night.experiments[number]
        if e.state == "published" and e.kept and e.test is None:
            return
        for t in e.trials:
            if not t.running and (t.measurement or e.state == "published"):
                self.executor.forget(number, t.number)

    # Results, on their way into the journal.

    def changed(self, night: Night) -> str:
        """Why no trial can be compared with those before it: the data is not the same. "": it is."""
        return difference(json.loads(self.journal.text(night.inputs)), self.inputs()) if night.inputs else ""

    def stow(self, event: Event, night: Night) -> Event:
        """The event as it is journaled: long texts go into the side table, and no key goes with them. A measurement on
        data that changed meanwhile is none."""
        if isinstance(event, ev.Replied):
            return event.model_copy(
                update={"text": self.journal.put(event.reply.text), "reply": short(event.reply, "text", "unusable")}
            )
        if isinstance(event, ev.Requested) and event.words:
            return event.model_copy(update={"words": "", "idea": self.journal.put(event.words)})
        if isinstance(event, ev.Measured) and (changed := self.changed(night)):
            key = {"experiment": event.experiment, "number": event.number, "attempt": event.attempt}
            return ev.TrialCancelled(**key, reason=changed)
        if isinstance(event, ev.Measured):
            measurement = redacted(event.measurement)
            details = self.journal.put(measurement.model_dump_json())
            reason = ev.cut(measurement.reason)
            light = measurement.model_copy(
                update={"curve": (), "log_tail": "", "numbers": {}, "evaluated": None, "reason": reason}
            )
            return event.model_copy(update={"details": details, "measurement": light})
        if isinstance(event, ev.TrialFailed) and event.traceback:
            return event.model_copy(update={"traceback": "", "details": self.journal.put(event.traceback)})
        if isinstance(event, ev.Tested) and event.figures:
            return event.model_copy(update={"figures": {}, "numbers": self.journal.put(json.dumps(event.figures))})
        return event

    def program(self, night: Night) -> Program:
        return self.history.program(night.program)


def reverted(night: Night, number: int) -> list[int]:
    """Trials of an experiment that is over and was not kept."""
    e = night.experiments.get(number)
    return [t.number for t in e.trials] if e is not None and e.state == "published" and not e.kept else []


def ran(night: Night) -> list[Measurement]:
    """Of the trials that worked: those of the baseline, and of all that was kept."""
    experiments = {0, *night.kept.values()} & night.experiments.keys()
    trials = [t.measurement for number in experiments for t in night.experiments[number].trials]
    return [m for m in trials if m and m.outcome == "ok"]


def slowest_start(night: Night) -> float | None:
    """Of what was kept, once there is an incumbent; for a script without progress what it took beyond its budget."""
    if not night.kept or night.rules is None:
        return None
    return max(m.startup_seconds or max(0.0, m.training_seconds - night.rules.budget_seconds) for m in ran(night))


def slowest_end(night: Night) -> float | None:
    """The most seconds beyond the budget that the training of what was kept has taken, once there is an incumbent."""
    if not night.kept or night.rules is None:
        return None
    return max(max(0.0, m.training_seconds - night.rules.budget_seconds) for m in ran(night))


def short(reply, *names: str):
    """Without its text, and with a bounded reason."""
    values = {"text": "", "unusable": ev.cut(reply.unusable)}
    return reply.model_copy(update={name: values[name] for name in names})


def redacted(measurement: Measurement) -> Measurement:
    """Without anything that is, or looks like, a key: what a trial printed goes into prompts and reports."""
    return measurement.model_copy(update={name: hidden(getattr(measurement, name)) for name in ("reason", "log_tail")})
