"""Runs trials on this machine: each free slot takes a fresh copy of the commit, trains it, and measures it.

The rules of time, which only this program's clock decides:
- startup, up to the first progress line, has `timeouts.startup`; a script that was never seen to print
  progress has startup and training together;
- training, from the first progress line to the end, is killed at 110% of its budget and 1.5 times the slack:
  "timeout". For a budget in tokens that is its cap on time. Without an `evaluate` command the script measures
  itself too, so `timeouts.evaluation` is added;
- what ends by itself, but past 105% of a budget in time and the slack, trained on: "violation". The slack is
  for saving the model and for the end of the process: 4 to 5 s were seen on a GPU with compiled code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import queue
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from agent.errors import Failure
from agent.program import Device, Program
from agent.records import Measurement, Trial
from agent.run.gpu import Gpu, visible_gpus
from agent.run.log import Log
from agent.run.process import Cancel, Ended, Limit, run_process
from agent.run.progress import Progress, explain_exit, find_metric
from agent.run.sandbox import Room, Sandbox, adopt_cache, lend_cache

Result = TypeVar("Result")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PERSON = ("HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "XDG_CACHE_HOME")
MACHINE = ("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_DEVICE_ORDER")
REFUSED = 3  # exit code of an evaluation that refuses: its last line says `violation: <reason>`
STOPPED = "stopped by the person who runs it"
GIB = 1 << 30


class _Bad(Exception):
    """The trial has no metric, and why."""

    def __init__(self, outcome: Literal["crash", "timeout", "violation", "interrupted"], reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


@dataclasses.dataclass
class _Job:
    """One trial at work in its slot. `folder` holds its `tree` (trained in) and `pristine` (evaluated in)."""

    trial: Trial
    program: Program
    slot: int
    folder: Path
    output: Path
    cancel: Cancel
    log: Log
    gpu: Gpu | None
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the measurement, as they become known."""


class LocalExecutor:
    """Trials on this machine's CPU (all slots together) or GPUs (one for each slot). See protocols.Executor.

    `home`: the folder of one run, .research/<tag>; `root`: the repository, to which relative data folders
    belong; `export(commit, folder)` writes that commit's files into an empty folder; `slack`: seconds,
    see the rules of time above.
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
        for name in (*program.data, *program.holdout):
            if not self._path(name).exists():
                how = f"`{program.prepare}` did not make it" if program.prepare else "make it, or mend program.md"
                raise Failure(f"the data {self._path(name)} does not exist: {how}")

    def submit(self, trial: Trial, program: Program) -> Future[Measurement]:
        """Start the trial when a slot is free. The future never raises for what the code under test does."""
        return self._start(trial, program, "", self._measure)

    def test(self, trial: Trial, program: Program) -> Future[dict[str, float]]:
        """Score the held-out split on the output that the trial left: each number that `program.test` prints.
        The future raises Failure, one line, where there is none to be had."""
        return self._start(trial, program, "-test", self._test)

    def stop(self, now: bool = False) -> None:
        with self._lock:
            for cancel in self._cancels:
                cancel.ask(now)

    def forget(self, experiment: int, kept: bool = False) -> None:
        """Delete the outputs of an experiment that has its verdict. What a kept one compiled is lent to later
        trials, as copies: a trial that was not kept can't leave anything for the next."""
        for output in self.home.glob(f"outputs/{experiment}-*"):
            if kept and not (output / "cache").is_symlink():
                adopt_cache(output / "cache", self.home / "cache")
            _remove(output)

    def _start(self, trial: Trial, program: Program, name: str, work: Callable[[_Job], Result]) -> Future[Result]:
        cancel = Cancel()
        with self._lock:
            self._cancels.add(cancel)

        def in_slot() -> Result:
            slot = self._free.get()
            try:
                label = f"{trial.experiment}-{trial.number}"
                with Log(self.home / "logs" / f"{label}{name}.log") as log:
                    folder, output = self.home / "slots" / str(slot), self.home / "outputs" / label
                    gpu = self._gpus[slot] if self._gpus else None
                    return work(_Job(trial, program, slot, folder, output, cancel, log, gpu))
            finally:
                self._free.put(slot)
                with self._lock:
                    self._cancels.discard(cancel)
                    cancel.close()

        return self._pool.submit(in_slot)

    def _measure(self, job: _Job) -> Measurement:
        try:
            if job.cancel.asked:
                raise _Bad("interrupted", STOPPED)
            self._train(job)
            if job.program.evaluate or job.program.protect:
                self._fill(job, "pristine", (*job.program.data, *job.program.holdout))
                _check_protected(job)
            text = job.found.pop("text")
            if job.program.evaluate:
                started = time.monotonic()
                numbers, text = self._score(job, job.program.evaluate)
                job.found["evaluation_seconds"] = time.monotonic() - started
                job.found["numbers"].update(numbers)
            try:
                metric = find_metric(job.program.metric, text)
            except ValueError as error:
                raise _Bad("crash", str(error)) from None
            job.found.update(outcome="ok", metric=metric)
            if job.trial.experiment == 0:  # the program as the person wrote it: its further seeds need not compile
                adopt_cache(job.output / "cache", self.home / "cache")
        except _Bad as bad:
            job.found.update(outcome=bad.outcome, reason=bad.reason)
            job.found.pop("text", None)
            _remove(job.output)
        job.found.setdefault("numbers", {}).pop(job.program.metric.name, None)
        return Measurement(**job.found, log_tail=job.log.tail)

    def _test(self, job: _Job) -> dict[str, float]:
        if not job.program.test:
            raise Failure("program.md names no `test` command")
        if not job.output.is_dir():
            raise Failure(f"experiment {job.trial.experiment} has left no output to test")
        self._fill(job, "pristine", (*job.program.data, *job.program.holdout))
        try:
            return self._score(job, job.program.test)[0]
        except _Bad as bad:
            raise Failure(f"test of experiment {job.trial.experiment}: {bad.reason}") from None

    def _train(self, job: _Job) -> None:
        """Fills job.found but for the metric; `text` is what was printed. Raises _Bad."""
        program, budget = job.program, job.program.budget_on(self.device)
        self._fill(job, "tree", program.data)
        _remove(job.output)
        job.output.mkdir(parents=True)
        lend_cache(self.home / "cache", job.output / "cache")
        progress, startup = Progress(budget.seconds), program.timeouts.startup
        most = budget.seconds * 1.1 + 1.5 * self.slack + (0 if program.evaluate else program.timeouts.evaluation)
        if program.run in self._speaks:
            limit = Limit(startup, f"no progress line within {startup:g} s of the start")
        else:
            limit = Limit(startup + most, f"no progress and no end within {startup + most:g} s of the start")

        def on_line(line: str) -> None:
            waiting = not progress.began
            progress.feed(line)
            if waiting and progress.began:
                self._speaks.add(program.run)
                limit.within(most, f"training with a budget of {budget} did not end within {most:g} s")
            if progress.diverged:
                limit.within(0, progress.diverged)

        started = time.monotonic()
        hidden = tuple(map(self._path, program.holdout))
        room = self._room(job, "tree", program.data, hidden)
        ended, peak = self._run(job, program.run, room, limit, on_line)
        begin = (progress.began or started) - started
        trained = max(0.0, ended.seconds - begin)  # begin counts from a moment before the process
        peak = max(peak, progress.numbers.get("peak_vram_mb", 0) * (1 << 20))
        job.found.update(
            text=progress.text,
            numbers=progress.numbers,
            curve=progress.curve,
            startup_seconds=begin,
            training_seconds=trained,
            peak_memory_gb=peak / GIB if peak else None,
        )
        if progress.diverged and ended.stopped != "interrupted":
            raise _Bad("crash", progress.diverged)
        _check_end(ended, job.log.tail)
        if program.run in self._speaks and not progress.began:
            raise _Bad("violation", "it prints no progress lines (step N, loss X), so its time can't be told")
        spent = trained if program.evaluate else progress.last - progress.began
        if progress.began and budget.tokens is None and spent > budget.seconds * 1.05 + self.slack:
            raise _Bad("violation", f"it trained for {spent:.1f} s; its budget is {budget}")

    def _score(self, job: _Job, command: str) -> tuple[dict[str, float], str]:
        """Run the evaluation in the pristine copy: its numbers, and its stdout. Raises _Bad."""
        program = job.program
        holdout = tuple(map(self._path, program.holdout))
        room = self._room(job, "pristine", (*program.data, *program.holdout), holdout, nested=True)
        if (inner := self.sandbox.inner(room)) is not None:
            env = {**room.env, "RESEARCH_MODEL_SANDBOX": json.dumps(inner)}
            room = dataclasses.replace(room, env=env)
        seconds = program.timeouts.evaluation
        limit = Limit(seconds, f"the evaluation took longer than {seconds:g} s")
        said = Progress(seconds)
        ended, _ = self._run(job, command, room, limit, said.feed, apart=True)
        if ended.code == REFUSED and not ended.stopped:
            last = said.text.rpartition("\n")[2].strip()
            found, _, reason = last.partition("violation:")
            raise _Bad("violation", reason.strip() if reason and not found else "the evaluation refused it")
        _check_end(ended, job.log.tail, "evaluation: ")
        return said.numbers, said.text

    def _run(
        self,
        job: _Job,
        command: str,
        room: Room,
        limit: Limit,
        on_line: Callable[[str], None],
        apart: bool = False,
    ) -> tuple[Ended, int]:
        """Run a command in its room. How it ended, and the most memory it held on the device, in bytes."""
        gpu = job.gpu
        before = most = gpu.used_bytes() if gpu else 0

        def sample() -> None:
            nonlocal most
            most = max(most, gpu.used_bytes()) if gpu else 0

        with tempfile.TemporaryDirectory(prefix="research-", ignore_cleanup_errors=True) as scratch:
            if self.sandbox.name == "none":  # a sandbox has a /tmp of its own
                room = dataclasses.replace(room, env={**room.env, "TMPDIR": scratch})
            ended = run_process(
                self.sandbox.wrap(shlex.split(command), room),
                cwd=room.workdir,
                env=room.env,
                log=job.log,
                limit=limit,
                cancel=job.cancel,
                on_line=on_line,
                apart=apart,
                sample=sample,
                record=job.folder / "process.json",
            )
        return ended, most - before if gpu else ended.peak_bytes

    def _path(self, name: str) -> Path:
        """A folder of the contract, absolute: ~ is home, a relative one is in the repository."""
        return self.root / Path(name).expanduser()

    def _fill(self, job: _Job, name: str, data: tuple[str, ...]) -> None:
        """A fresh copy of the commit; data folders that lie untracked in the repository are linked in."""
        folder = job.folder / name
        _remove(folder)
        folder.mkdir(parents=True)
        self.export(job.trial.commit, folder)
        for path in map(self._path, data):
            if path.is_relative_to(self.root) and not (link := folder / path.relative_to(self.root)).exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)

    def _room(
        self, job: _Job, name: str, data: tuple[str, ...], hidden: tuple[Path, ...], nested: bool = False
    ) -> Room:
        return Room(
            workdir=job.folder / name,
            output=job.output,
            data=tuple(map(self._path, data)),
            hidden=hidden,
            slot=job.gpu.index if job.gpu else None,
            env=self._environment(job),
            nested=nested,
        )

    def _environment(self, job: _Job) -> dict[str, str]:
        """The whole environment of a trial: only what is named here or in the contract."""
        named = (*PERSON, *MACHINE, *THREADS, *job.program.environment)
        env = {name: os.environ[name] for name in named if name in os.environ}
        env |= {name: value for name, value in os.environ.items() if name.startswith("LC_")}
        if self.device == "cpu":
            env = {"GOMP_SPINCOUNT": "10000"} | env  # longer spinning while waiting starves a CPU that is shared
        if self.device == "cpu" and self.slots > 1:
            share = str(max(1, (os.cpu_count() or 1) // self.slots))
            env = {name: share for name in THREADS} | env
        budget, seed = job.program.budget_on(self.device), job.trial.seed
        env |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": str(seed % 2**32),
            "CUDA_VISIBLE_DEVICES": job.gpu.uuid if job.gpu else "",
            "TORCHINDUCTOR_CACHE_DIR": str(job.output / "cache" / "inductor"),
            "TRITON_CACHE_DIR": str(job.output / "cache" / "triton"),
            "RESEARCH_SEED": str(seed),
            "RESEARCH_BUDGET_SECONDS": str(budget.seconds),
            "RESEARCH_OUTPUT": str(job.output),
        }
        return env if budget.tokens is None else env | {"RESEARCH_BUDGET_TOKENS": str(budget.tokens)}


def _check_end(ended: Ended, tail: str, prefix: str = "") -> None:
    if ended.stopped == "interrupted":
        raise _Bad("interrupted", STOPPED)
    if ended.stopped:
        raise _Bad("timeout", ended.stopped)
    if ended.code:
        raise _Bad("crash", prefix + explain_exit(ended.code, tail))


def _check_protected(job: _Job) -> None:
    """Raises _Bad where a protected file is not as the commit has it."""
    for name in job.program.protect:
        if _digest(job.folder / "tree" / name) != _digest(job.folder / "pristine" / name):
            raise _Bad("violation", f"{name} is protected, but was changed while training")


def _digest(path: Path) -> str:
    """SHA-256 of a file, of a link's target, or of all that a folder holds; empty: there is nothing."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        listing = [f"{entry.name} {_digest(entry)}" for entry in sorted(path.iterdir())]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _remove(path: Path) -> None:
    """Delete a folder, whatever the modes that a trial has given to what is in it."""
    if not path.is_symlink() and path.is_dir():
        for folder, _, _ in os.walk(path):  # top down: each is opened before it is listed
            os.chmod(folder, 0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
