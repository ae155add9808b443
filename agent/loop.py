"""The loop: propose one change, commit it, train, measure, judge, keep or reset - and tell the next proposal.

Every experiment walks through the states of agent/ledger.py, and `Loop.STEPS` names what happens in each. A step
either ends at once and the next one follows, or it starts something slow (a call, a trial) whose end is an
event. The loop waits for events and fills free slots. So resuming after a crash is nothing but taking up
every unfinished experiment at its recorded state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Event
from typing import Any

from agent.errors import EditError, Failure, ProgramError, ProposerError, Stop
from agent.judge import checks, integrity
from agent.judge.noise import Noise, Rerun, baseline_trials
from agent.judge.stoppers import Limits, afford, why_stop
from agent.judge.verdict import is_slip, weigh
from agent.ledger import Ledger
from agent.program import Device, Program
from agent.propose import context, edits
from agent.propose.templates import Templates
from agent.protocols import Executor, Proposer, Request
from agent.records import Call, Experiment, Measurement, Trial, Turn, Verdict
from agent.report.terminal import Terminal
from agent.report.text import lab_note
from agent.report.tsv import write_results
from agent.workspace import Workspace

REPAIRS = 3  # replies that may follow one that can't be applied; for the last the whole file is asked for
PATIENCE = 10  # outages of the proposer in a row before the night ends

Recorder = Callable[[Future[Any]], int]  # records what an event brought; returns the experiment to go on with
Waiting = tuple[Future[Any], Recorder]


class Loop:
    """One night in one repository. `reread` gives the program as program.md says it now."""

    def __init__(
        self,
        reread: Callable[[], Program],
        workspace: Workspace,
        ledger: Ledger,
        executor: Executor,
        proposer: Proposer,
        limits: Limits,
        device: Device,
        terminal: Terminal,
    ):
        self.reread, self.program = reread, reread()
        self.workspace, self.ledger, self.executor, self.proposer = workspace, ledger, executor, proposer
        self.limits, self.terminal = limits, terminal
        self.device: Device = device
        self.templates = Templates(workspace.root / "prompts", self.tell)
        self.ending: str | None = None  # why nothing new is begun
        self.outages = 0  # of the proposer, in a row
        self.interrupts = 0  # Ctrl-C: once ends the trials, twice ends at once
        self.leaving = Event()
        self.threads = ThreadPoolExecutor(max_workers=executor.slots)
        self.pending: dict[Future[Any], Recorder] = {}

    # The night.

    def run(self) -> str:
        """Go on until a stopper says enough; returns why. Raises Failure where the baseline can't be had."""
        self.workspace.clear_stale_locks()
        for experiment in self.ledger.experiments():
            if experiment.state != "published":
                self.advance(experiment.number)
        while self.begin():
            for record, future in self.events():
                try:
                    self.advance(record(future))
                except Stop as stop:
                    self.ending = str(stop)
        self.threads.shutdown(wait=False, cancel_futures=True)
        return self.ending or "nothing is left to do"

    def begin(self) -> bool:
        """Start an experiment in every free slot, unless the night is ending; False when nothing runs."""
        while len(self.pending) < self.executor.slots and not self.enough():
            if self.incumbent is None and self.ledger.experiments():
                break  # nothing is proposed before the baseline stands
            self.steer()
            parent = self.incumbent.commit if self.incumbent else None
            parent = parent or self.workspace.head
            self.advance(self.ledger.begin(parent, self.workspace.read(parent, self.program.edit)).number)
        return bool(self.pending)

    def advance(self, number: int) -> None:
        """Take one experiment as far as it goes without waiting; every step can be done again."""
        try:
            while (experiment := self.ledger.experiment(number)).state != "published":
                event = self.STEPS[experiment.state](self, experiment)
                if event is not None:
                    self.pending[event[0]] = event[1]
                    return
        except (Stop, ProgramError) as end:  # a prompt template that can't be rendered is a ProgramError
            self.ending = str(end)
            self.ledger.abandon(number)

    def interrupt(self) -> None:
        """Ctrl-C: the first ends the trials cleanly, a second one ends everything at once."""
        self.interrupts += 1

    # The steps of an experiment. Each returns what to wait for, or None when the next step may follow.

    def propose(self, experiment: Experiment) -> Waiting | None:
        """Ask for a proposal, or make one of the reply that has come."""
        request = self.request(experiment)
        if not experiment.calls:
            return self.ask(experiment, request, "first")
        reply = experiment.calls[-1].reply
        if reply is None:  # the answer never came: ask the same again
            return self.ask(experiment, request, experiment.calls[-1].kind)
        try:
            if reply.unusable:
                raise EditError(reply.unusable)
            proposal = edits.parse_reply(reply.text)
            files = edits.apply_edits(proposal, request.files, self.program.edit)
        except EditError as error:
            repairs = sum(1 for call in experiment.calls if call.kind == "repair" and call.reply)
            if repairs >= REPAIRS:
                return self.refuse(experiment, "invalid", str(error))
            answer = context.repair(request, reply.text, str(error), repairs + 1, self.templates)
            return self.ask(experiment, answer, "repair")
        self.ledger.proposed(experiment.number, proposal, files)
        return None

    def commit(self, experiment: Experiment) -> Waiting | None:
        """Check the change before any GPU time, and commit it on top of the incumbent."""
        before = self.workspace.read(experiment.parent, self.program.edit)
        after = before | experiment.files
        refusal = checks.check(before, after) or checks.tried(before, after, self.finished())
        if refusal is None and (reason := integrity.check_edit(before, after, self.program)):
            refusal = "violation", reason
        if refusal is not None:
            return self.refuse(experiment, *refusal)
        message = lab_note(experiment, None, self.program)
        commit = self.workspace.commit_files(experiment.parent, experiment.files, message, experiment.created)
        self.workspace.pin(experiment.number, commit)
        self.ledger.committed(experiment.number, commit)
        return None

    def train(self, experiment: Experiment, then: int | None = None) -> Waiting:
        """Run the next trial of this experiment with a fresh seed, and go on with experiment `then`."""
        if self.leaving.is_set():
            raise Stop(self.ending)
        number = sum(1 for trial in experiment.trials if trial.measurement)
        assert experiment.commit is not None
        trial = Trial(
            experiment=experiment.number,
            number=number,
            commit=experiment.commit,
            seed=1000 * experiment.number + number + 1,
        )
        if number:  # of several trials the newest output is enough for the test; checkpoints can be large
            self.executor.forget(experiment.number)
        self.ledger.running(trial)
        self.terminal.training(experiment, trial)
        return self.executor.submit(trial, self.program), partial(
            self.trained, experiment.number if then is None else then, trial
        )

    def judge(self, experiment: Experiment) -> Waiting | None:
        """Decide, or ask for the trial that is missing for a decision."""
        last = experiment.measurements[-1]
        if experiment.number == 0:
            return self.judge_baseline(experiment)
        if last.outcome != "ok":
            if self.proposer.converses and is_slip(experiment):
                reply = next(call.reply.text for call in reversed(experiment.calls) if call.reply)
                answer = context.slip(self.request(experiment), reply, last.log_tail, self.templates)
                return self.ask(experiment, answer, "slip")
            return self.refuse(experiment, last.outcome, last.reason)
        incumbent = self.incumbent
        assert incumbent is not None
        before = self.workspace.read(experiment.parent, list(experiment.files))
        decision = weigh(self.program, incumbent, experiment, self.finished(), before)
        if isinstance(decision, Rerun):
            self.terminal.say(f"#{experiment.number} {decision.reason}")
            if decision.of == "candidate":
                return self.train(experiment)
            return self.train(incumbent, then=experiment.number)
        self.ledger.judged(experiment.number, decision)
        return None

    def judge_baseline(self, experiment: Experiment) -> Waiting | None:
        """The unchanged program must run; several seeds tell its noise."""
        last = experiment.measurements[-1]
        if last.outcome != "ok":
            self.ledger.restart()
            raise Failure(
                f"the unchanged program does not run, so nothing can be compared: {last.outcome}: {last.reason} "
                f"(log: {self.workspace.home}/logs); correct it, commit, and start again"
            )
        if len(experiment.metrics) < baseline_trials(self.program.budget_on(self.device)):
            return self.train(experiment)
        noise = Noise.of([experiment.metrics])
        mean = sum(experiment.metrics) / len(experiment.metrics)
        self.ledger.judged(0, Verdict(kind="baseline", reason=str(noise), metric=mean))
        return None

    def publish(self, experiment: Experiment) -> Waiting | None:
        """Keep: research/<tag> moves to the commit, under its final message. Reset: it stays where it is."""
        verdict, commit, incumbent = experiment.verdict, experiment.commit, self.incumbent
        assert verdict is not None
        if verdict.kept and commit:
            if self.program.test and experiment.test_numbers is None:
                trial = experiment.trials[-1]
                return self.executor.test(trial, self.program), partial(self.tested, experiment.number)
            if experiment.number:
                message = lab_note(experiment, incumbent, self.program)
                commit = self.workspace.commit_tree(commit, experiment.parent, message, experiment.created)
            self.workspace.advance(commit)
        if commit:
            self.workspace.pin(experiment.number, commit)
        self.ledger.published(experiment.number, commit)
        self.executor.forget(experiment.number, verdict.kept)
        if incumbent:  # it may have been run again for this verdict
            self.executor.forget(incumbent.number)
        write_results(self.workspace.home / "results.tsv", self.ledger.experiments(), self.program)
        self.terminal.published(self.ledger.experiment(experiment.number), self.program)
        return None

    STEPS = {
        "proposing": propose,
        "proposed": commit,
        "committed": train,
        "running": train,
        "measured": judge,
        "judged": publish,
    }

    # Events: what is recorded when something slow has ended. Each returns the experiment to go on with.

    def events(self) -> Iterator[tuple[Recorder, Future[Any]]]:
        """Wait for at least one event. Ctrl-C makes the trials end, and so become events."""
        done: set[Future[Any]] = set()
        while not done:
            done, _ = wait(self.pending, timeout=0.5, return_when=FIRST_COMPLETED)
            self.terminal.tick()
            if self.interrupts:
                self.ending = "interrupted; the same command goes on from here"
                self.leaving.set()
                self.executor.stop(now=self.interrupts > 1)
            if self.interrupts > 1:
                raise KeyboardInterrupt
        for future in done:
            yield self.pending.pop(future), future

    def replied(self, number: int, turn: int, future: Future[Any]) -> int:
        """A call has ended: the reply is recorded before anything is made of it."""
        try:
            self.ledger.replied(number, turn, future.result())
            self.outages = 0
        except ProposerError as error:
            if error.reply is not None:  # paid for, but cut off or refused
                self.ledger.replied(number, turn, error.reply.model_copy(update={"unusable": str(error)}))
            else:
                self.outages += 1
                self.ledger.unanswered(number, turn)
            if error.final or self.outages > PATIENCE or self.leaving.is_set():
                self.ledger.abandon(number)
                raise Stop(f"no more proposals: {error}") from error
            self.tell(f"the proposer failed: {error}")
        return number

    def trained(self, number: int, trial: Trial, future: Future[Any]) -> int:
        """A trial has ended. One that was interrupted did not happen: it runs again when the night goes on."""
        measurement = redacted(future.result())
        if measurement.outcome == "interrupted":
            raise Stop(self.ending)
        self.ledger.measured(trial, measurement)
        self.terminal.measured(trial, measurement, self.program)
        return number

    def tested(self, number: int, future: Future[Any]) -> int:
        """The held-out test of a kept commit: for the person only, so a failure is told and nothing more."""
        try:
            self.ledger.tested(number, future.result())
        except Failure as error:
            self.tell(f"the test of experiment {number} failed: {error}")
            self.ledger.tested(number, {})
        return number

    # What the steps use.

    def ask(self, experiment: Experiment, request: Request, kind: Any) -> Waiting:
        """Set the call's upper bound aside, write down the question, and only then ask."""
        most = self.proposer.most_usd(request)
        afford(self.limits, self.ledger.experiments(), most)
        call = Call(turn=len(experiment.calls), kind=kind, question=request.turns[-1].text, reserved_usd=most)
        self.ledger.ask(experiment.number, call)
        self.terminal.proposing(experiment.number, kind)
        pause = min(600.0, 15.0 * 2**self.outages) if self.outages else 0.0

        def answer():
            if self.leaving.wait(pause):
                raise ProposerError("interrupted before it was asked")
            return self.proposer.propose(request)

        return self.threads.submit(answer), partial(self.replied, experiment.number, call.turn)

    def request(self, experiment: Experiment) -> Request:
        """The prompt of this experiment: the state of the night, then the talk so far from the ledger."""
        files = self.workspace.read(experiment.parent, self.program.edit)
        request = context.first_request(
            experiment.number, self.program, files, self.finished(), self.facts(), self.templates
        )
        talk: list[Turn] = []
        for call in experiment.calls:
            if call.reply is not None:
                talk += [Turn(role="user", text=call.question), Turn(role="assistant", text=call.reply.text)]
        if experiment.calls and experiment.calls[-1].reply is None:
            talk.append(Turn(role="user", text=experiment.calls[-1].question))
        elif talk:
            talk = talk[:-1]  # the last reply is what is being considered; repair and slip append it
        return request.model_copy(update={"turns": tuple(talk)}) if talk else request

    def facts(self) -> dict[str, object]:
        """What a prompt says beside the contract and the history."""
        noise = Noise.of_night(self.finished())
        return {
            "noise": 2 * noise.sigma if noise.sigma is not None else None,
            "Noise between seeds": str(noise),
            "This machine trains on": self.device,
        }

    def refuse(self, experiment: Experiment, kind: Any, reason: str) -> None:
        self.ledger.judged(experiment.number, Verdict(kind=kind, reason=reason))

    def steer(self) -> None:
        """Read program.md again; a broken edit is reported, and the last good version used."""
        try:
            program = self.reread()
            if changed := program.other_race(self.program):
                raise ProgramError(f"program.md: a change of {changed} needs a new night (--tag)")
            if program != self.program:
                self.tell("program.md was edited: it steers from the next proposal on")
            self.program = program
        except ProgramError as error:
            self.tell(f"{error}; going on with the last good version")

    def tell(self, text: str) -> None:
        """For the person: on the terminal once, and in the ledger."""
        text = integrity.redact(text, integrity.keys_of(os.environ))
        if text not in (said for _, said in self.ledger.notes()[-3:]):
            self.ledger.note(text)
            self.terminal.say(text)

    def enough(self) -> bool:
        """Should nothing new be begun?"""
        self.ending = self.ending or why_stop(self.limits, self.finished(), self.program, self.workspace.home)
        return self.ending is not None

    def finished(self) -> tuple[Experiment, ...]:
        return tuple(e for e in self.ledger.experiments() if e.state == "published")

    @property
    def incumbent(self) -> Experiment | None:
        """The best verified state: the last kept experiment; None before the baseline stands."""
        kept = [e for e in self.finished() if e.verdict and e.verdict.kept]
        return kept[-1] if kept else None


def redacted(measurement: Measurement) -> Measurement:
    """Without anything that is, or looks like, a key: what a trial printed goes into prompts and reports."""
    keys = integrity.keys_of(os.environ)
    texts = {name: integrity.redact(getattr(measurement, name), keys) for name in ("reason", "log_tail")}
    return measurement.model_copy(update=texts)


if __name__ == "__main__":
    from agent.cli import loop

    loop()
