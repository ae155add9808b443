"""Runs trials on this machine: each free slot takes a trial, and tells a fault of the machine from one of the code."""

from __future__ import annotations

import queue
import re
import shlex
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from agent.errors import Failure, MachineFault
from agent.program import Device, Program
from agent.records import Measurement, Trial
from agent.run import trial as trials
from agent.run.cache import CompileCache, ModuleCache
from agent.run.gpu import Gpu, visible_gpus
from agent.run.log import Log
from agent.run.probe import device_fault
from agent.run.process import Cancel
from agent.run.sandbox import Sandbox
from agent.run.trial import Job, make_room, remove

Result = TypeVar("Result")
RESERVE_BYTES = 256 << 20  # of disk: with less a trial is not begun
STRANGERS_SHARE = 0.1  # of a GPU's memory, taken by other programs since the start: a trial is not begun
STRANGERS_SECONDS = 20.0  # how long a process that has ended may take to give its memory back
# What drivers print when a GPU fails, and code under test as well may print: a trial with it is run a second time.
# A courtesy to the code, no proof of a fault: that is what the probe after every crash is for.
DRIVER_FAILED = re.compile(
    r"(?i)no CUDA-capable device|no CUDA GPUs are available|ECC error|busy or unavailable|system not yet initialized|"
    r"driver shutting down|CUDA error: unknown error|hardware stack error|GPU is lost|fallen off the bus"
)


class LocalExecutor:
    """Trials on this machine's CPU (all slots together) or GPUs (one for each slot). See protocols.Executor.

    `home`: the folder of one night, .research/<tag>; `root`: the repository, to which relative data folders
    belong; `export(commit, folder)` writes that commit's files into an empty folder; `slack`: seconds, see the rules
    of time in trial.py.
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
        slack: float = 10.0,
    ):
        self.home, self.root, self.export, self.sandbox = home.resolve(), root.resolve(), export, sandbox
        self.device: Device = device
        self.slots, self.slack = slots, slack
        self._gpus = visible_gpus() if device == "cuda" else []
        if device == "cuda" and len(self._gpus) < slots:
            raise Failure(f"{slots} slots need {slots} GPUs, but {len(self._gpus)} can be seen: use fewer slots")
        self._used_at_start = [gpu.used_bytes() for gpu in self._gpus]
        self._compiled, self._modules = CompileCache(self.home / "compiled"), ModuleCache(self.home / "modules")
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._cancels: set[Cancel] = set()
        self._lock = threading.Lock()
        self._speaks: set[str] = set()  # commands that have been seen to print progress

    def check(self, program: Program) -> None:
        """What would make every trial fail. Raises Failure, one line."""
        program.budget_on(self.device)
        for command in filter(None, (program.run, program.evaluate, program.test)):
            try:
                empty = not shlex.split(command)
            except ValueError as error:
                raise Failure(f"program.md: {command!r} is no command line ({error})") from None
            if empty:
                raise Failure("program.md: a command is empty; write for example run: python train.py")
        for path in (self.root / Path(name).expanduser() for name in (*program.data, *program.holdout)):
            if not path.exists():
                how = f"`{program.prepare}` did not make it" if program.prepare else "make it, or mend program.md"
                raise Failure(f"the data {path} does not exist: {how}")

    def submit(self, trial: Trial, program: Program) -> Future[Measurement]:
        """Start the trial when a slot is free. The future never raises for what the code under test does; it raises
        MachineFault, one line, where the machine failed and the trial says nothing about the code."""
        return self._start(trial, program, "", self._measure)

    def test(self, trial: Trial, program: Program) -> Future[dict[str, float]]:
        """Score the held-out split on the output that the trial left: each number that `program.test` prints.
        The future raises Failure, one line, where there is none to be had."""
        return self._start(trial, program, "-test", trials.test)

    def stop(self, now: bool = False) -> None:
        with self._lock:
            for cancel in self._cancels:
                cancel.ask(now)

    def forget(self, experiment: int, kept: bool = False) -> None:
        """Delete the outputs of an experiment, and, unless it was kept, what it compiled."""
        for output in self.home.glob(f"outputs/{experiment}-*"):
            remove(output)
        if not kept:
            self._compiled.forget(experiment)

    def _start(self, trial: Trial, program: Program, name: str, work: Callable[[Job], Result]) -> Future[Result]:
        cancel = Cancel()
        with self._lock:
            self._cancels.add(cancel)

        def in_slot() -> Result:
            slot = self._free.get()
            try:
                with Log(self.home / "logs" / f"{trial.experiment}-{trial.number}{name}.log") as log:
                    return work(self._job(trial, program, slot, cancel, log))
            finally:
                self._free.put(slot)
                with self._lock:
                    self._cancels.discard(cancel)
                    cancel.close()

        return self._pool.submit(in_slot)

    def _job(self, trial: Trial, program: Program, slot: int, cancel: Cancel, log: Log) -> Job:
        return Job(
            trial=trial,
            program=program,
            device=self.device,
            slots=self.slots,
            slack=self.slack,
            root=self.root,
            folder=self.home / "slots" / str(slot),
            output=self.home / "outputs" / f"{trial.experiment}-{trial.number}",
            export=self.export,
            sandbox=self.sandbox,
            compiled=self._compiled,
            modules=self._modules,
            cancel=cancel,
            log=log,
            gpu=self._gpus[slot] if self._gpus else None,
            speaks=self._speaks,
        )

    def _measure(self, job: Job) -> Measurement:
        """After a crash the machine is looked at before the code is blamed: the probe kernel, then the trial again
        where its log looks like a driver's failure. A trial that fails so twice is a crash."""
        self._ready(job)
        measurement = trials.measure(job)
        if measurement.outcome in ("crash", "timeout") and not job.cancel.asked:
            self._examine(job)
            if DRIVER_FAILED.search(measurement.log_tail):
                job.found.clear()
                measurement = trials.measure(job)
        return measurement

    def _ready(self, job: Job) -> None:
        """Raises MachineFault where a trial should not begin."""
        free = shutil.disk_usage(self.home).free
        if free < RESERVE_BYTES:
            raise MachineFault(f"the disk of {self.home} is full ({free >> 20} MiB free): make room")
        if job.gpu:
            allowed = self._used_at_start[self._gpus.index(job.gpu)] + STRANGERS_SHARE * job.gpu.total_bytes()
            until = time.monotonic() + STRANGERS_SECONDS
            while (used := job.gpu.used_bytes()) > allowed:
                if time.monotonic() > until:
                    raise MachineFault(strangers(job.gpu, used))
                job.cancel.wait(0.5)

    def _examine(self, job: Job) -> None:
        """Raises MachineFault where the machine can't run anything at all just now."""
        self._ready(job)
        if not (job.folder / "tree").is_dir() or not job.output.is_dir():
            for folder in (job.folder / "tree", job.output):
                folder.mkdir(parents=True, exist_ok=True)
        if fault := device_fault(self.sandbox, make_room(job, "training"), self.device):
            raise MachineFault(fault)
        remove(job.output)


def strangers(gpu: Gpu, used: int) -> str:
    """What to say when other programs hold a GPU's memory."""
    return (
        f"another program has taken memory of GPU {gpu.index} ({gpu.name}) since the start: {used / 1e9:.1f} GB are in "
        "use before the trial begins; nvidia-smi shows whose they are"
    )
