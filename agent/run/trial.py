"""One trial: a fresh copy of the commit, trained in a room, and measured in another.

The rules of time, which only this program's clock decides:
- startup, up to the first progress line, has `timeouts.startup`; once something was kept, at most twice its slowest
  start and the slack, and 30 s at least, since libraries may have to be read from a cold disk. A script that was never
  seen to print progress has startup and training together;
- training, from the first progress line to the end, is killed at 110% of its budget and 1.5 times the slack:
  "timeout". For a budget in tokens that is its cap on time. Without an `evaluate` command the script measures
  itself too: while it still prints progress it has no longer, and after that `timeouts.evaluation` more, or, once
  something was kept, twice what that took at most and the slack, and 30 s at least;
- what ends by itself, but past 105% of a budget in time and the slack, trained on: "violation". The slack is
  for saving the model and for the end of the process: 4 to 5 s were seen on a GPU with compiled code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from agent import uptime
from agent.commands import arguments, filled
from agent.errors import MachineFault
from agent.run.advice import advice
from agent.run.cache import CompileCache, ModuleCache
from agent.run.device_use import DeviceUse
from agent.run.feed import READY, Feed
from agent.run.leftovers import remove
from agent.run.log import Log
from agent.run.process import Cancel, Ended, Limit, run_process
from agent.run.progress import NoMetric, Progress, explain_exit, find_metric
from agent.run.rooms import make_room
from agent.run.sandbox import Room, Sandbox
from agent.run.task import Task

REFUSED = 3  # exit code of an evaluation that refuses: its last line says `violation: <reason>`
SHORT_START = 30.0  # seconds that a start, or an end, may always take, however fast those before it were
LOAD_SLACK = 10.0  # seconds, beyond twice those of the incumbent, in which an evaluation may load a model
STOPPED = "stopped by the person who runs it"
GIB = 1 << 30


class Bad(Exception):
    """The trial has no metric, and why."""

    def __init__(self, outcome: Literal["crash", "timeout", "violation", "interrupted"], reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


@dataclasses.dataclass
class Job:
    """One task at work. The slot's folder holds the commit's files three times: its `source`, the `tree` that is
    trained in, and the `pristine` copy that is evaluated in."""

    task: Task
    sandbox: Sandbox
    cancel: Cancel
    log: Log
    report: Callable[[str, Progress], None] = lambda phase, progress: None
    """Is told how far the task is: "startup", "training" or "evaluation", and what was printed."""
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the measurement, as they become known."""

    @property
    def compiled(self) -> CompileCache:
        return CompileCache(Path(self.task.home, "compiled"))

    @property
    def modules(self) -> ModuleCache:
        return ModuleCache(Path(self.task.home, "modules"))

    @property
    def fills_modules(self) -> bool:
        """Whether this trial compiles Python's modules for all later ones: the first of the unchanged program."""
        own = self.task.interpreter is not None  # of another interpreter nothing is known
        return self.task.experiment == 0 and not own and self.modules.needed and not self.modules.filled

    @property
    def read_modules(self) -> Path | None:
        """Where compiled modules lie that a trial can use."""
        return self.modules.folder if self.modules.filled and self.task.interpreter is None else None


def measure(job: Job) -> dict[str, Any]:
    """Train and evaluate: the fields of a records.Measurement. Raises MachineFault where the GPU does not answer, or
    what feeds the training fails."""
    task = job.task
    try:
        if job.cancel.asked:
            raise Bad("interrupted", STOPPED)
        train(job)
        if task.evaluate or task.protect:
            fill(job, "pristine", (*task.data, *task.holdout))
            check_protected(job)
        text = job.found.pop("text")
        if task.evaluate:
            started = uptime.now()
            numbers, text = score(job, task.evaluate)
            job.found["evaluation_seconds"] = uptime.now() - started
            job.found["numbers"].update(numbers)
            job.found["evaluated"] = sorted(numbers)
        try:
            metric = find_metric(task.metric, text)
        except ValueError as error:
            job.found["certain"] = isinstance(error, NoMetric)
            raise Bad("crash", str(error)) from None
        if missing := unreported(job):
            job.found["certain"] = True
            raise Bad("crash", missing)
        job.found.update(outcome="ok", metric=metric)
    except Bad as bad:
        job.found.update(outcome=bad.outcome, reason=bad.reason)
        job.found.pop("text", None)
        remove(task.output)
    job.found.setdefault("numbers", {}).pop(task.metric.name, None)
    return {**job.found, "log_tail": job.log.tail}


def unreported(job: Job) -> str:
    """Why the limits of program.md can't be held, seen at the unchanged program; "" where they can."""
    task, numbers = job.task, job.found["numbers"]
    told = job.found.get("evaluated", sorted(numbers))
    for name in task.limits if task.experiment == 0 else ():
        if name not in (*told, "peak_memory_gb", task.metric.name):
            who = f"`{task.evaluate}`" if task.evaluate else "training"
            where = ", as training does, which the agent may change" if name in numbers else ""
            return f"program.md limits {name}, but {who} does not print it{where}: print it there, or leave it out"
    return ""


def test(job: Job) -> dict[str, float]:
    """Score the held-out split on the output that the trial left: each number that the `test` command prints.
    Raises Bad."""
    task = job.task
    if not task.test:
        raise Bad("crash", "program.md names no `test` command")
    if not task.output.is_dir():
        raise Bad("crash", f"experiment {task.experiment} has left no output to test")
    fill(job, "pristine", (*task.data, *task.holdout))
    return score(job, task.test)[0]


def train(job: Job) -> None:
    """Fills job.found but for the metric; `text` is what was printed. Raises Bad, and MachineFault."""
    task = job.task
    fill(job, "tree", () if task.feed else task.data)
    for folder in (task.output, task.folder / "compiled"):
        remove(folder)
        folder.mkdir(parents=True)
    task.output.chmod(0o777)  # where rooms are other users'; it lies below a folder that only its owner can enter
    room = make_room(job, "training")
    job.compiled.lend(task.experiment, task.builds_on, job.sandbox.compiled(room), task.folder / "compiled")
    progress, started, use = Progress(task.budget_seconds), uptime.now(), DeviceUse(task.card)
    ended, unfed = run_training(job, room, progress, use)
    begin = (progress.began or started) - started
    trained = max(0.0, ended.seconds - begin)  # begin counts from a moment before the process
    said = progress.numbers.get("peak_vram_mb", 0) * (1 << 20)  # it may be any number
    peak = max(use.most_bytes(ended), said if math.isfinite(said) else 0)
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
    if unfed and task.experiment:  # whatever was trained, it was on less than the budget allows
        raise MachineFault(unfed)
    if unfed:
        raise Bad("crash", unfed)
    check_end(ended, job.log.tail, task=task)
    if not use.seen:
        raise Bad("crash", use.not_seen)
    check_time(task, progress, trained)
    if job.fills_modules:
        job.modules.take(task.output / "modules")
    remove(task.output / "modules")
    job.compiled.take(task.experiment, job.sandbox.compiled(room), task.folder / "compiled")


def run_training(job: Job, room: Room, progress: Progress, use: DeviceUse) -> tuple[Ended, str]:
    """Run the training command within its time. How it ended, and why it was not fed, if it was not."""
    task = job.task
    most = task.budget_seconds * 1.1 + 1.5 * task.slack
    measures = 0 if task.evaluate else bounded(task.evaluation, task.slowest_end, task.slack)
    limit = first_limit(task, most + measures)
    too_long = f"training with a budget of {task.budget} did not end within"

    def on_line(line: str) -> None:
        waiting = not progress.began
        if feed and line == READY:
            progress.begin()
            feed.go()
        progress.feed(line)
        if waiting and progress.began:
            limit.within(most + measures, f"{too_long} {most + measures:.0f} s")
        if progress.began and progress.last > progress.began + most:
            limit.within(0, f"{too_long} {most:.0f} s")
        if progress.diverged:
            limit.within(0, progress.diverged)
        job.report("training" if progress.began else "startup", progress)

    feed = make_feed(job, task.feed) if task.feed else None
    try:
        ended = run(job, task.run, room, limit, on_line, use, stdin=feed.stdin if feed else subprocess.DEVNULL)
    finally:
        unfed = feed.close() if feed else ""
    return ended, unfed


def check_time(task: Task, progress: Progress, trained: float) -> None:
    """Raises Bad where it trained for longer than its budget, or where that can't be told."""
    if task.speaks and not progress.began:
        raise Bad("violation", "it prints no progress lines (step N, loss X), so its time can't be told")
    spent = trained if task.evaluate else progress.last - progress.began
    if progress.began and task.budget_tokens is None and spent > task.budget_seconds * 1.05 + task.slack:
        raise Bad("violation", f"it trained for {spent:.1f} s; its budget is {task.budget}")


def make_feed(job: Job, command: str) -> Feed:
    """What hands in the training data, by the protected files as they are."""
    fill(job, "pristine", job.task.data)
    room = make_room(job, "feed")
    return Feed(job.sandbox.wrap(argv(job.task, command), room), room, job.sandbox.guarded)


def first_limit(task: Task, most: float) -> Limit:
    """Until the first progress line; `most`: seconds for what follows it."""
    seconds, known = bounded(task.startup, task.slowest_start, task.slack), ""
    if seconds < task.startup:
        known = f"; the slowest start so far took {task.slowest_start:.1f} s"
    if task.speaks:
        return Limit(seconds, f"killed at {seconds:.0f} s without a progress line{known}")
    seconds += most
    return Limit(seconds, f"killed at {seconds:.0f} s without a progress line and without an end{known}")


def bounded(seconds: float, slowest: float | None, slack: float) -> float:
    """What the contract allows, or less once it is known how long that takes."""
    return seconds if slowest is None else min(seconds, max(2 * slowest + slack, SHORT_START))


def score(job: Job, command: str) -> tuple[dict[str, float], str]:
    """Run the evaluation in the pristine copy: its numbers, and its stdout. Raises Bad."""
    room, rooms = make_room(job, "evaluation"), None
    told = {}
    if job.task.what == "train" and job.task.incumbent is not None:
        told["RESEARCH_INCUMBENT"] = repr(job.task.incumbent)
    if job.task.slowest_load is not None:
        told["RESEARCH_LOAD_SECONDS"] = repr(2 * job.task.slowest_load + LOAD_SLACK)
    room = dataclasses.replace(room, env={**room.env, **told})
    if job.sandbox.guarded:
        from agent.run.model_rooms import CLIENT, ModelRooms  # only evaluations need it

        remove(job.task.folder / "rooms")
        rooms = ModelRooms(job.sandbox, lambda n: make_room(job, "model", str(n)), job.task.folder / "rooms")
        env = {**room.env, "RESEARCH_MODEL_SANDBOX": json.dumps(rooms.prefix())}
        room = dataclasses.replace(room, env=env, rooms=job.task.folder / "rooms", data=(*room.data, CLIENT))
    seconds = job.task.evaluation
    limit = Limit(seconds, f"the evaluation took longer than {seconds:g} s")
    said = Progress(seconds)

    def on_line(line: str) -> None:
        said.feed(line)
        job.report("evaluation", said)

    try:
        ended = run(job, command, room, limit, on_line, apart=True)
    finally:
        if rooms:
            rooms.close()
    if ended.code == REFUSED and not ended.stopped:
        last = said.text.rpartition("\n")[2].strip()
        found, _, reason = last.partition("violation:")
        raise Bad("violation", reason.strip() if reason and not found else "the evaluation refused it")
    check_end(ended, job.log.tail, "evaluation: ", job.task)
    return said.numbers, said.text


def run(
    job: Job,
    command: str,
    room: Room,
    limit: Limit,
    on_line: Callable[[str], None],
    use: DeviceUse | None = None,
    apart: bool = False,
    stdin: int = subprocess.DEVNULL,
) -> Ended:
    """Run a command in its room."""
    return run_process(
        job.sandbox.wrap(argv(job.task, command), room),
        cwd=room.workdir,
        env=dict(room.env),
        log=job.log,
        limit=limit,
        cancel=job.cancel,
        on_line=on_line,
        apart=apart,
        sample=(use or DeviceUse(None)).look,
        record=job.task.folder / "process.json",
        guarded=job.sandbox.guarded,
        stdin=stdin,
    )


def argv(task: Task, command: str) -> list[str]:
    """The command with its values filled in, by the project's own interpreter where it has one."""
    values = {"seed": str(task.seed), "seconds": f"{task.budget_seconds:g}", "output": str(task.output)}
    words = filled(arguments(command), values)
    if task.interpreter and words[0] in ("python", "python3"):
        return [task.interpreter.python, *words[1:]]
    here = Path(task.root, task.project, words[0])  # of the project, but no part of the commit, like .venv/bin/python
    if os.sep in words[0] and here.exists() and not (task.place("source") / words[0]).exists():
        return [str(here), *words[1:]]
    return words


def fill(job: Job, name: str, data: list[str] | tuple[str, ...]) -> None:
    """A fresh copy of the commit; data folders that lie untracked in the repository are linked in."""
    folder = job.task.folder / name
    remove(folder)
    shutil.copytree(job.task.folder / "source", folder, symlinks=True)
    for path in map(Path, data):
        if path.is_relative_to(job.task.root) and not (link := folder / path.relative_to(job.task.root)).exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def check_end(ended: Ended, tail: str, prefix: str = "", task: Task | None = None) -> None:
    """Raises Bad where the command did not end by itself and well; of the unchanged program with what to do."""
    if ended.stopped == "interrupted":
        raise Bad("interrupted", STOPPED)
    if ended.stopped:
        raise Bad("timeout", ended.stopped)
    if ended.code:
        said = explain_exit(ended.code, tail)
        advised = advice(task, said) if task and task.experiment == 0 else ""
        raise Bad("crash", advised + prefix + said)


def check_protected(job: Job) -> None:
    """Raises Bad where a protected file is not as the commit has it."""
    for name in job.task.protect:
        if digest(job.task.place("tree") / name) != digest(job.task.place("pristine") / name):
            raise Bad("violation", f"{name} is protected, but was changed while training")


def digest(path: Path) -> str:
    """SHA-256 of a file, of a link's target, or of all that a folder holds; empty: there is nothing."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        listing = [f"{entry.name} {digest(entry)}" for entry in sorted(path.iterdir())]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
