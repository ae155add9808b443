"""The simulated world's workers: trials, and a proposer with its calls, that fail in all the ways there are."""

from __future__ import annotations

import random
from typing import Any

from agent import events as ev
from agent.asking import answer
from agent.errors import ProposerError
from agent.events import Event
from agent.protocols import Emit, Job, Request
from agent.records import Measurement, Reply, Turn
from bench.world import FILE, RESERVE, Process, World


class SimExecutor:
    """Trials that take virtual time, and fail in all ways there are."""

    def __init__(self, world: World, process: Process, slots: int):
        self.world, self.process, self.slots = world, process, slots

    def submit(self, job: Job, emit: Emit) -> None:
        world = self.world
        world.point("before a job")
        if world.inspector:
            world.inspector.submitted(job)
        key: dict[str, Any] = {"experiment": job.experiment, "attempt": job.attempt}
        if job.what == "test":
            there = (job.experiment, job.number) in world.outputs
            result: Event = ev.Tested(**key, figures={"test_loss": 1.0}) if there else ev.Tested(**key, reason="gone")
            seconds = world.rng.uniform(5, 20)
        else:
            world.outputs.add((job.experiment, job.number))
            result = self.trial(job, key | {"number": job.number})
            seconds = world.rng.choice([60.0, 60.0, 120.0, 301.0])  # several end at once
        if world.rng.random() < world.faults.lost:
            world.counts["lost result"] += 1
        else:
            self.process.emit_in(seconds, result)
            if world.rng.random() < world.faults.doubled:
                world.counts["doubled result"] += 1
                self.process.emit_in(seconds + world.rng.choice([0.0, 500.0]), result)
        world.point("after a job")

    def trial(self, job: Job, key: dict[str, Any]) -> Event:
        rng, faults = self.world.rng, self.world.faults
        if rng.random() < faults.machine:
            self.world.counts["machine fault"] += 1
            return ev.MachineFault(**key, reason="the GPU fell off the bus", slot_lost=rng.random() < 0.2)
        if rng.random() < faults.trial:
            if rng.random() < 0.3:
                self.world.counts["worker broke"] += 1
                return ev.TrialFailed(**key, reason="ValueError: what it printed", traceback="Traceback ...\n" * 50)
            outcome = rng.choice(["crash", "timeout", "violation"])
            if job.experiment:
                self.world.counts[f"trial {outcome}"] += 1
                tail = "Traceback (most recent call last)\n" if rng.random() < 0.5 else ""
                bad = Measurement(outcome=outcome, reason="it failed " * 60, log_tail=tail)  # type: ignore[arg-type]
                return ev.Measured(**key, measurement=bad)
        values = dict(line.split(" = ") for line in self.world.commits[job.commit][0][FILE].splitlines() if line)
        loss = sum((float(value) - 0.1) ** 2 for value in values.values())
        if values["E"] not in ("0.1", "0.2"):  # these make training ignore its seed
            loss += random.Random(job.seed).gauss(0, faults.sigma)
        return ev.Measured(**key, measurement=Measurement(outcome="ok", metric=loss, numbers={"n": 1.0}))

    def cancel(self, experiment: int, number: int, why: str) -> None:
        for index, (when, serial, event) in enumerate(self.process.heap):
            key: dict[str, Any] = {"experiment": experiment, "attempt": getattr(event, "attempt", 0)}
            if not isinstance(event, ev.Measured | ev.TrialFailed | ev.MachineFault | ev.Tested):
                continue
            if event.experiment == experiment and getattr(event, "number", number) == number:
                ended = ev.Tested(**key, reason=why) if isinstance(event, ev.Tested) else None
                self.process.heap[index] = when, serial, ended or ev.TrialCancelled(**key, number=number, reason=why)
                return
        # Nothing will be heard of it any more; a real executor kills the process and says so.
        night = self.world.inspector.night if self.world.inspector else None  # type: ignore[attr-defined]
        trials = night.experiments[experiment].trials if night else ()
        if night and number < len(trials) and trials[number].running:
            key: dict[str, Any] = {"experiment": experiment, "number": number, "attempt": trials[number].attempt}
            self.process.emit_in(0, ev.TrialCancelled(**key, reason=why))
        elif night and night.experiments[experiment].test_slot is not None:
            test = night.experiments[experiment].test_attempt
            self.process.emit_in(0, ev.Tested(experiment=experiment, attempt=test, reason=why))

    def forget(self, experiment: int, number: int) -> None:
        self.world.outputs.discard((experiment, number))

    def discard(self, experiment: int) -> None: ...
    def shorten(self, experiment: int, number: int) -> None: ...

    def close(self, now: bool = False) -> None: ...


class SimProposer:
    """Changes one constant at a time; or answers what can't be used."""

    name, model, converses = "sim", "", True

    def __init__(self, world: World, stands_in: bool = False):
        self.world, self.stands_in, self.reads = world, stands_in, not stands_in
        self.last, self.stubborn = "", 0
        """What it said last, and how often it will say it again."""

    def check(self, request: Request) -> None: ...
    def close(self) -> None: ...

    def most_usd(self, request: Request) -> float | None:
        return 0.0 if self.stands_in else RESERVE

    def propose(self, request: Request) -> Reply:
        rng, faults = self.world.rng, self.world.faults
        usd, kind = rng.uniform(0, RESERVE), rng.random()
        if self.stands_in:
            usd = 0.0
            self.world.counts["fallback asked"] += 1
            if rng.random() < 0.03:
                self.world.counts["fallback exhausted"] += 1
                raise ProposerError("search has tried all it can", exhausted=True)
        elif self.world.away:
            self.world.counts["call while it is away"] += 1
            raise ProposerError(self.world.away, final=self.world.away.startswith("final"))
        elif len(request.turns) > 1 and rng.random() < faults.reply * 0.5:
            self.world.counts["talk too long"] += 1
            raise ProposerError("HTTP 400: the context is exceeded", status=400)
        elif rng.random() < faults.reply * 0.02:
            self.world.counts["proposer exhausted"] += 1
            raise ProposerError("replay is exhausted", exhausted=True)
        if kind < faults.reply * 0.3:
            self.world.counts["outage"] += 1
            raise ProposerError("HTTP 503: overloaded")
        if kind < faults.reply * 0.4:
            self.world.counts["defect"] += 1
            raise ValueError("a defect of the proposer")
        if kind < faults.reply * 0.5:
            raise ProposerError("it was cut off", reply=Reply(text="Hypothesis: half", proposer=self.name, usd=usd))
        if kind < faults.reply:
            self.world.counts["unusable reply"] += 1
            return Reply(text="I would rather not.", proposer=self.name, usd=usd, output_tokens=5)
        if rng.random() < faults.reply * 0.3:
            self.stubborn = 20
        if self.stubborn and self.last:
            self.stubborn -= 1
            self.world.counts["the same proposal again"] += 1
            return Reply(text=self.last, proposer=self.name, usd=usd, input_tokens=100, output_tokens=50)
        old = rng.choice([line for line in request.files[FILE].splitlines() if line])
        new = f"{old.split(' = ')[0]} = {rng.choice([0.1, 0.2, 0.3, 0.4, 0.6])}"
        self.last = (
            f"Hypothesis: {new} is better than {old}\nCategory: hyperparameter\n\n{FILE}\n"
            f"<<<<<<< SEARCH\n{old}\n=======\n{new}\n>>>>>>> REPLACE\n"
        )
        return Reply(text=self.last, proposer=self.name, usd=usd, input_tokens=100, output_tokens=50)


class SimCaller:
    """The proposer's calls, in virtual time; each is billed when it is made, whoever lives to hear the answer."""

    def __init__(self, world: World, process: Process):
        self.world, self.process, self.proposer = world, process, SimProposer(world)
        self.fallback = SimProposer(world, stands_in=True)

    def call(self, asked: ev.Asked, request: Request, emit: Emit) -> None:
        world = self.world
        world.point("before a call")
        if world.inspector:
            world.inspector.called(asked)
        result = answer(self.fallback if asked.fallback else self.proposer, asked, request)
        if isinstance(result, ev.Replied):
            world.billed += result.reply.usd or 0.0
        seconds = world.rng.choice([5.0, 5.0, 30.0, 77.0])
        if world.rng.random() < world.faults.lost:
            world.counts["lost reply"] += 1
        else:
            self.process.emit_in(seconds, result)
            if world.rng.random() < world.faults.doubled:
                world.counts["doubled reply"] += 1
                self.process.emit_in(seconds + world.rng.choice([0.0, 30.0]), result)
        world.point("after a call")

    def close(self) -> None: ...


class SimPrompter:
    """Prompts without templates."""

    def first_request(self, number, program, files, history, facts, suggestion="") -> Request:
        text = f"propose #{number} after {len(history)}: {facts['Noise between seeds']}"
        text += f"; {program.direction}; {files[FILE]}" + (f"; do this now: {suggestion}" if suggestion else "")
        return Request(
            number=number, system="system", turns=(Turn(role="user", text=text),), program=program, files=dict(files),
            history=tuple(history), suggestion=suggestion,
        )  # fmt: skip

    def repair(self, request: Request, reply_text: str, error: str, attempt: int) -> Request:
        return self._on(request, reply_text, f"repair {attempt}: {error}")

    def slip(self, request: Request, reply_text: str, traceback: str) -> Request:
        return self._on(request, reply_text, f"slip {len(request.turns)}: {traceback}")

    def shorter(self, request: Request, facts) -> Request | None:
        first, *others = request.turns
        if len(others) > 2:
            return request.model_copy(update={"turns": (first, *others[2:])})
        text = f"propose #{request.number} briefly; {request.program.direction}; {request.files[FILE]}"
        brief = Turn(role="user", text=f"{text}; {request.suggestion}")
        return None if first == brief else request.model_copy(update={"turns": (brief, *others)})

    def _on(self, request: Request, reply: str, text: str) -> Request:
        turns = (Turn(role="assistant", text=reply), Turn(role="user", text=text))
        return request.model_copy(update={"turns": request.turns + turns})
