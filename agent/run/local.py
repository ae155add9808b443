"""Runs trials on this machine: a worker process for each, in the slot that it is given."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent import events as ev
from agent import live
from agent.errors import Failure
from agent.places import place
from agent.program import Device, Program
from agent.protocols import Emit, Job
from agent.records import Measurement
from agent.run.cache import CompileCache
from agent.run.gpu import visible_gpus
from agent.run.leftovers import remove
from agent.run.log import shorten
from agent.run.sandbox import Sandbox, describe
from agent.run.task import Card, Interpreter, Metric, Task
from agent.run.workers import Slot, Worker
from agent.storage import disk_full, is_full


class LocalExecutor:
    """Trials on this machine's CPU (all slots together) or GPUs (one for each slot). See protocols.Executor.

    `home`: the folder of one night, .research/<tag>; `root`: the repository; `project`: the folder of program.md in it,
    to which relative data folders belong; `interpreter`: of the project's own environment, if it has one;
    `export(commit, folder)` writes that commit's files into an empty folder; `slack`: seconds, see the rules of time in
    trial.py. Raises Failure where there are fewer GPUs than slots.
    """

    def __init__(
        self,
        home: Path,
        export: Callable[[str, Path], None],
        sandbox: Sandbox,
        device: Device,
        slots: int = 1,
        *,
        root: Path,
        project: str = "",
        interpreter: Interpreter | None = None,
        slack: float = 10.0,
    ):
        self.home, self.root, self.export, self.sandbox = home.resolve(), root.resolve(), export, sandbox
        self.device: Device = device
        self.project, self.interpreter = project, interpreter
        self.slots, self.slack = slots, slack
        gpus = visible_gpus() if device == "cuda" else []
        if device == "cuda" and len(gpus) < slots:
            raise Failure(f"{slots} slots need {slots} GPUs, but {len(gpus)} can be seen: use fewer slots")
        self._cards = [Card(gpu.index, gpu.uuid, gpu.name, gpu.used_bytes()) for gpu in gpus]
        self._compiled = CompileCache(self.home / "compiled")
        self._slots: dict[int, Slot] = {}
        self._running: dict[int, Running] = {}  # slot -> what it does
        self._lock = threading.Lock()
        self._speaks: set[str] = set()  # commands that have been seen to print progress

    def check(self, program: Program) -> None:
        """What would make every trial fail. Raises Failure, one line."""
        program.budget_on(self.device)
        for path in (place(self.root / self.project, name) for name in (*program.data, *program.holdout)):
            if not path.exists():
                how = f"`{program.prepare}` did not make it" if program.prepare else "make it, or mend program.md"
                if not program.prepare and (self.root / self.project / "prepare.py").is_file():
                    how = (
                        "run prepare.py, and train.py once by hand: they fetch what there is no network for in a trial"
                    )
                raise Failure(f"the data {path} does not exist: {how}")

    def submit(self, job: Job, emit: Emit) -> None:
        running = Running(job)
        with self._lock:
            if given_up := self._running.get(job.slot):  # nobody waits for its end, and this one must not
                given_up.kill()
            self._running[job.slot] = running
            if job.slot not in self._slots:
                self._slots[job.slot] = Slot(self.home / "slots" / str(job.slot), self.root)
        self._slots[job.slot].do(lambda: self._work(running, emit))

    def cancel(self, experiment: int, number: int, why: str) -> None:
        with self._lock:
            for running in self._running.values():
                if (running.job.experiment, running.job.number) == (experiment, number):
                    running.ask(b"c")

    def forget(self, experiment: int, number: int) -> None:
        remove(self.home / "outputs" / f"{experiment}-{number}")

    def discard(self, experiment: int) -> None:
        self._compiled.forget(experiment)

    def shorten(self, experiment: int, number: int) -> None:
        shorten(self.home / "logs" / f"{experiment}-{number}.log")

    def close(self, now: bool = False) -> None:
        with self._lock:
            for running in self._running.values():
                running.ask(b"n" if now else b"c")
            closed = [(slot.close(), number in self._running) for number, slot in self._slots.items()]
        for left, busy in closed:
            if not busy:
                left.wait(5)

    def _work(self, running: Running, emit: Emit) -> None:
        """One job, from its files to its last event."""
        job = running.job
        try:
            event = self._event(job, *self._run(running))
        except Exception as error:  # whatever this raises is an event: it must not end the night
            full = isinstance(error, OSError) and is_full(error, self.home)
            told = str(disk_full(self.home)) if full else f"{type(error).__name__}: {error}"
            event = self._fault(job, told) if full else self._broken(job, told)
        with contextlib.suppress(OSError):  # only views read it, and the slot must go on
            live.clear(self.home, job.slot)
        with self._lock:
            if self._running[job.slot] is running:
                del self._running[job.slot]
        emit(event)

    def _run(self, running: Running) -> tuple[int, bytes, str]:
        """Exit code, last line and stderr of the job's worker."""
        job = running.job
        task, slot = self._task(job), self._slots[job.slot]
        source = task.folder / "source"
        remove(source)
        source.mkdir(parents=True)
        self.export(job.commit, source)
        description = task.folder / "task.json"
        description.write_text(task.to_json())
        worker = slot.worker()
        worker.begin(description)
        with self._lock:
            running.started(worker)
        slot.start_ahead()
        try:
            return worker.wait()
        finally:
            worker.kill()  # where it could not even be waited for

    def _event(self, job: Job, code: int, last: bytes, errors: str) -> ev.Event:
        """What a worker's end means."""
        key: dict[str, Any] = {"experiment": job.experiment, "attempt": job.attempt}
        try:
            said = json.loads(last)
            if job.what == "test":
                if "tested" in said:
                    return ev.Tested(**key, figures=said["tested"])
                return ev.Tested(**key, reason=said["untested"])
            if "cancelled" in said:
                return ev.TrialCancelled(**key, number=job.number, reason=said["cancelled"])
            if "fault" in said:
                return ev.MachineFault(**key, number=job.number, reason=said["fault"], slot_lost=said["slot_lost"])
            measurement = Measurement(**said["measured"])
        except (ValueError, TypeError, KeyError, ValidationError):
            return self._broken(job, f"its worker ended with exit code {code}", errors)
        if measurement.curve:
            self._speaks.add(job.program.run)
        return ev.Measured(**key, number=job.number, measurement=measurement)

    def _fault(self, job: Job, reason: str) -> ev.Event:
        if job.what == "test":
            return ev.Tested(experiment=job.experiment, attempt=job.attempt, reason=reason)
        known = {"experiment": job.experiment, "number": job.number, "attempt": job.attempt}
        return ev.MachineFault(**known, reason=reason, slot_lost=True)

    def _broken(self, job: Job, reason: str, told: str = "") -> ev.Event:
        if job.what == "test":
            return ev.Tested(experiment=job.experiment, attempt=job.attempt, reason=reason)
        return ev.TrialFailed(
            experiment=job.experiment, number=job.number, attempt=job.attempt, reason=reason, traceback=told
        )

    def _task(self, job: Job) -> Task:
        program, budget = job.program, job.program.budget_on(self.device)
        return Task(
            what=job.what,
            experiment=job.experiment,
            number=job.number,
            seed=job.seed,
            builds_on=job.builds_on,
            run=program.run,
            feed=program.feed,
            evaluate=program.evaluate,
            test=program.test,
            metric=Metric(program.metric.name, program.metric.pattern),
            protect=list(program.protect),
            data=[str(place(self.root / self.project, name)) for name in program.data],
            holdout=[str(place(self.root / self.project, name)) for name in program.holdout],
            environment=list(program.environment),
            budget=str(budget),
            budget_seconds=budget.seconds,
            budget_tokens=budget.tokens,
            startup=program.timeouts.startup,
            slowest_start=job.slowest_start,
            slowest_end=job.slowest_end,
            incumbent=job.incumbent,
            slowest_load=job.slowest_load,
            evaluation=program.timeouts.evaluation,
            slack=self.slack,
            speaks=job.speaks or program.run in self._speaks,
            device=self.device,
            slots=self.slots,
            slot=job.slot,
            card=self._cards[job.slot] if self._cards else None,
            home=str(self.home),
            root=str(self.root),
            project=self.project,
            interpreter=self.interpreter,
            limits=list(program.limits),
            sandbox=describe(self.sandbox),
        )


class Running:
    """A job, from before its worker is at work; asked to end by bytes (see worker.py)."""

    def __init__(self, job: Job):
        self.job = job
        self._worker: Worker | None = None
        self._asked = b""
        self._killed = False

    def started(self, worker: Worker) -> None:
        self._worker = worker
        self.ask(self._asked)
        if self._killed:
            worker.kill()

    def kill(self) -> None:
        self._killed = True
        if self._worker:
            self._worker.kill()

    def ask(self, byte: bytes) -> None:
        self._asked = byte
        if self._worker and byte:
            self._worker.write(byte)
