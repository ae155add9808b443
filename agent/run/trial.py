"""One trial: a fresh copy of the commit, trained in a room, and measured in another.

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
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from agent.errors import Failure
from agent.program import Device, Program
from agent.records import Measurement, Trial
from agent.run.cache import CompileCache, ModuleCache, compiled_modules
from agent.run.gpu import Gpu
from agent.run.log import Log
from agent.run.model_rooms import CLIENT, ModelRooms
from agent.run.process import Cancel, Ended, Limit, run_process
from agent.run.progress import Progress, explain_exit, find_metric
from agent.run.sandbox import Room, Sandbox

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PERSON = ("HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "XDG_CACHE_HOME")
MACHINE = ("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_DEVICE_ORDER")
REFUSED = 3  # exit code of an evaluation that refuses: its last line says `violation: <reason>`
STOPPED = "stopped by the person who runs it"
CONTEXT_BYTES = 64 << 20  # the least that a process takes of a GPU's memory by starting to use it
GIB = 1 << 30


class Bad(Exception):
    """The trial has no metric, and why."""

    def __init__(self, outcome: Literal["crash", "timeout", "violation", "interrupted"], reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


@dataclasses.dataclass
class Job:
    """One trial at work in its slot. `folder` holds its `tree` (trained in) and `pristine` (evaluated in)."""

    trial: Trial
    program: Program
    device: Device
    slots: int
    slack: float
    """Seconds, see the rules of time above."""
    root: Path
    """The repository, to which relative data folders belong."""
    folder: Path
    output: Path
    export: Callable[[str, Path], None]
    """Writes a commit's files into an empty folder."""
    sandbox: Sandbox
    compiled: CompileCache
    modules: ModuleCache
    cancel: Cancel
    log: Log
    gpu: Gpu | None
    speaks: set[str]
    """Commands that have been seen to print progress; shared by all trials of an executor."""
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the measurement, as they become known."""

    @property
    def fills_modules(self) -> bool:
        """Whether this trial compiles Python's modules for all later ones: the first of the unchanged program."""
        return self.trial.experiment == 0 and self.modules.needed and not self.modules.filled


def measure(job: Job) -> Measurement:
    """Train and evaluate. Raises MachineFault where the GPU does not answer."""
    try:
        if job.cancel.asked:
            raise Bad("interrupted", STOPPED)
        train(job)
        if job.program.evaluate or job.program.protect:
            fill(job, "pristine", (*job.program.data, *job.program.holdout))
            check_protected(job)
        text = job.found.pop("text")
        if job.program.evaluate:
            started = time.monotonic()
            numbers, text = score(job, job.program.evaluate)
            job.found["evaluation_seconds"] = time.monotonic() - started
            job.found["numbers"].update(numbers)
        try:
            metric = find_metric(job.program.metric, text)
        except ValueError as error:
            raise Bad("crash", str(error)) from None
        job.found.update(outcome="ok", metric=metric)
    except Bad as bad:
        job.found.update(outcome=bad.outcome, reason=bad.reason)
        job.found.pop("text", None)
        remove(job.output)
    job.found.setdefault("numbers", {}).pop(job.program.metric.name, None)
    return Measurement(**job.found, log_tail=job.log.tail)


def test(job: Job) -> dict[str, float]:
    """Score the held-out split on the output that the trial left. Raises Failure, one line."""
    if not job.program.test:
        raise Failure("program.md names no `test` command")
    if not job.output.is_dir():
        raise Failure(f"experiment {job.trial.experiment} has left no output to test")
    fill(job, "pristine", (*job.program.data, *job.program.holdout))
    try:
        return score(job, job.program.test)[0]
    except Bad as bad:
        raise Failure(f"test of experiment {job.trial.experiment}: {bad.reason}") from None


def train(job: Job) -> None:
    """Fills job.found but for the metric; `text` is what was printed. Raises Bad."""
    program, budget = job.program, job.program.budget_on(job.device)
    fill(job, "tree", program.data)
    for folder in (job.output, job.folder / "compiled"):
        remove(folder)
        folder.mkdir(parents=True)
    job.output.chmod(0o777)  # where rooms are other users'; it lies below a folder that only its owner can enter
    room = make_room(job, "training")
    job.compiled.lend(job.trial, job.sandbox.compiled(room), job.folder / "compiled")
    progress, startup = Progress(budget.seconds), program.timeouts.startup
    most = budget.seconds * 1.1 + 1.5 * job.slack + (0 if program.evaluate else program.timeouts.evaluation)
    if program.run in job.speaks:
        limit = Limit(startup, f"no progress line within {startup:g} s of the start")
    else:
        limit = Limit(startup + most, f"no progress and no end within {startup + most:g} s of the start")

    def on_line(line: str) -> None:
        waiting = not progress.began
        progress.feed(line)
        if waiting and progress.began:
            job.speaks.add(program.run)
            limit.within(most, f"training with a budget of {budget} did not end within {most:g} s")
        if progress.diverged:
            limit.within(0, progress.diverged)

    started, use = time.monotonic(), DeviceUse(job.gpu)
    ended = run(job, program.run, room, limit, on_line, use)
    begin = (progress.began or started) - started
    trained = max(0.0, ended.seconds - begin)  # begin counts from a moment before the process
    peak = max(use.most_bytes(ended), progress.numbers.get("peak_vram_mb", 0) * (1 << 20))
    job.found.update(
        text=progress.text,
        numbers=progress.numbers,
        curve=progress.curve,
        startup_seconds=begin,
        training_seconds=trained,
        peak_memory_gb=peak / GIB if peak else None,
    )
    if progress.diverged and ended.stopped != "interrupted":
        raise Bad("crash", progress.diverged)
    check_end(ended, job.log.tail)
    use.check()
    if program.run in job.speaks and not progress.began:
        raise Bad("violation", "it prints no progress lines (step N, loss X), so its time can't be told")
    spent = trained if program.evaluate else progress.last - progress.began
    if progress.began and budget.tokens is None and spent > budget.seconds * 1.05 + job.slack:
        raise Bad("violation", f"it trained for {spent:.1f} s; its budget is {budget}")
    if job.fills_modules:
        job.modules.take(job.output / "modules")
    remove(job.output / "modules")
    job.compiled.take(job.trial, job.sandbox.compiled(room), job.folder / "compiled")


def score(job: Job, command: str) -> tuple[dict[str, float], str]:
    """Run the evaluation in the pristine copy: its numbers, and its stdout. Raises Bad."""
    room = make_room(job, "evaluation")
    rooms = None
    if job.sandbox.guarded:
        remove(job.folder / "rooms")
        rooms = ModelRooms(job.sandbox, make_room(job, "model"), job.folder / "rooms")
        env = {**room.env, "RESEARCH_MODEL_SANDBOX": json.dumps(rooms.prefix())}
        room = dataclasses.replace(room, env=env, rooms=job.folder / "rooms", data=(*room.data, CLIENT))
    seconds = job.program.timeouts.evaluation
    limit = Limit(seconds, f"the evaluation took longer than {seconds:g} s")
    said = Progress(seconds)
    try:
        ended = run(job, command, room, limit, said.feed, apart=True)
    finally:
        if rooms:
            rooms.close()
    if ended.code == REFUSED and not ended.stopped:
        last = said.text.rpartition("\n")[2].strip()
        found, _, reason = last.partition("violation:")
        raise Bad("violation", reason.strip() if reason and not found else "the evaluation refused it")
    check_end(ended, job.log.tail, "evaluation: ")
    return said.numbers, said.text


class DeviceUse:
    """What one command takes of its GPU, by the driver's word."""

    def __init__(self, gpu: Gpu | None):
        self.gpu, self.seen = gpu, False
        self._before = self._most = gpu.used_bytes() if gpu else 0
        self._strangers = gpu.processes() if gpu else set()

    def look(self, pids: set[int]) -> None:
        """Raises MachineFault where the driver does not answer."""
        if self.gpu:
            self._most = max(self._most, self.gpu.used_bytes())
            new = self.gpu.processes() - self._strangers
            # in some containers the driver names no process, or names it as the host does: then only memory tells
            nameless = not any(os.path.exists(f"/proc/{pid}") for pid in new)
            grown = self._most - self._before >= CONTEXT_BYTES
            self.seen = self.seen or bool(new & pids) or (nameless and grown)

    def most_bytes(self, ended: Ended) -> int:
        """The most memory that the command held, on the GPU or else in the machine."""
        return self._most - self._before if self.gpu else ended.peak_bytes

    def check(self) -> None:
        """Raises Bad where the command trained elsewhere than the contract says."""
        if self.gpu and not self.seen:
            raise Bad(
                "crash",
                f"it trained without the GPU: nothing of it was ever seen on GPU {self.gpu.index} ({self.gpu.name}). "
                "If training is meant to be on the CPU, write device: cpu in program.md",
            )


def run(
    job: Job,
    command: str,
    room: Room,
    limit: Limit,
    on_line: Callable[[str], None],
    use: DeviceUse | None = None,
    apart: bool = False,
) -> Ended:
    """Run a command in its room."""
    return run_process(
        job.sandbox.wrap(shlex.split(command), room),
        cwd=room.workdir,
        env=dict(room.env),
        log=job.log,
        limit=limit,
        cancel=job.cancel,
        on_line=on_line,
        apart=apart,
        sample=(use or DeviceUse(None)).look,
        record=job.folder / "process.json",
        guarded=job.sandbox.guarded,
    )


def make_room(job: Job, kind: Literal["training", "evaluation", "model"]) -> Room:
    """What a command of this kind may see. The model's room has the commit and the checkpoint, and no data at all."""
    program, scratch = job.program, job.folder / "scratch" / kind
    remove(scratch)
    scratch.mkdir(parents=True)
    data = {"training": program.data, "evaluation": (*program.data, *program.holdout), "model": ()}[kind]
    room = Room(
        kind=kind,
        workdir=job.folder / ("tree" if kind == "training" else "pristine"),
        output=job.output,
        scratch=scratch,
        data=tuple(path_of(job, name) for name in data),
        hidden=() if kind == "evaluation" else tuple(path_of(job, name) for name in program.holdout),
        compiled=job.folder / "compiled" if kind == "training" else None,
        slot=job.gpu.index if job.gpu else None,
    )
    return dataclasses.replace(room, env=environment(job, room), data=(*room.data, *modules_of(job)))


def modules_of(job: Job) -> list[Path]:
    return [job.modules.folder] if job.modules.filled else []


def path_of(job: Job, name: str) -> Path:
    """A folder of the contract, absolute: ~ is home, a relative one is in the repository."""
    return job.root / Path(name).expanduser()


def environment(job: Job, room: Room) -> dict[str, str]:
    """The whole environment of a trial: only what is named here or in the contract."""
    named = (*PERSON, *MACHINE, *THREADS, *job.program.environment)
    env = {name: os.environ[name] for name in named if name in os.environ}
    env |= {name: value for name, value in os.environ.items() if name.startswith("LC_")}
    if not job.sandbox.guarded:
        env["TMPDIR"] = str(room.scratch)  # a sandbox has a place of its own for temporary files
    if job.device == "cpu":
        env = {"GOMP_SPINCOUNT": "10000"} | env  # longer spinning while waiting starves a CPU that is shared
    if job.device == "cpu" and job.slots > 1:
        share = str(max(1, (os.cpu_count() or 1) // job.slots))
        env = {name: share for name in THREADS} | env
    budget, seed, compiled = job.program.budget_on(job.device), job.trial.seed, job.sandbox.compiled(room)
    fills = job.fills_modules and room.kind == "training"
    env |= compiled_modules(job.output / "modules" if fills else job.modules.folder if job.modules.filled else None)
    env |= {} if fills else {"PYTHONDONTWRITEBYTECODE": "1"}
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": str(seed % 2**32),
        "CUDA_VISIBLE_DEVICES": job.gpu.uuid if job.gpu else "",
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
        "RESEARCH_SEED": str(seed),
        "RESEARCH_BUDGET_SECONDS": str(budget.seconds),
        "RESEARCH_OUTPUT": str(job.output),
    }
    return env if budget.tokens is None else env | {"RESEARCH_BUDGET_TOKENS": str(budget.tokens)}


def fill(job: Job, name: str, data: tuple[str, ...]) -> None:
    """A fresh copy of the commit; data folders that lie untracked in the repository are linked in."""
    folder = job.folder / name
    remove(folder)
    folder.mkdir(parents=True)
    job.export(job.trial.commit, folder)
    for path in (path_of(job, one) for one in data):
        if path.is_relative_to(job.root) and not (link := folder / path.relative_to(job.root)).exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def check_end(ended: Ended, tail: str, prefix: str = "") -> None:
    """Raises Bad where the command did not end by itself and well."""
    if ended.stopped == "interrupted":
        raise Bad("interrupted", STOPPED)
    if ended.stopped:
        raise Bad("timeout", ended.stopped)
    if ended.code:
        raise Bad("crash", prefix + explain_exit(ended.code, tail))


def check_protected(job: Job) -> None:
    """Raises Bad where a protected file is not as the commit has it."""
    for name in job.program.protect:
        if digest(job.folder / "tree" / name) != digest(job.folder / "pristine" / name):
            raise Bad("violation", f"{name} is protected, but was changed while training")


def digest(path: Path) -> str:
    """SHA-256 of a file, of a link's target, or of all that a folder holds; empty: there is nothing."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        listing = [f"{entry.name} {digest(entry)}" for entry in sorted(path.iterdir())]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def remove(path: Path) -> None:
    """Delete a folder or file, whatever a trial has made of it: any modes, any depth, any names."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        try:
            shutil.rmtree(path)
        except (OSError, RecursionError):
            subprocess.run(["chmod", "-R", "u+rwX", "--", path], check=False, stderr=subprocess.DEVNULL)
            subprocess.run(["rm", "-rf", "--one-file-system", "--", path], check=True)
