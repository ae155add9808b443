"""One trial in a process of its own: `python -m agent.run.worker FOLDER`.

It waits for a line on stdin, the path of a job description; the commit's files lie beside that in FOLDER. Out come
lines of JSON on stdout, the last of which is one of

    {"measured": {...}}      the fields of a records.Measurement, good or bad
    {"cancelled": reason}
    {"fault": reason, "slot_lost": bool}    the machine failed, and says nothing about the code
    {"tested": {...}} or {"untested": reason}

A process that ends without one has broken. How far it is stands in a small file beside (agent/live.py). A byte more on
stdin asks it to end the trial, `n` at once, and so does the end of stdin. Whatever code under test prints or leaves
reaches only this process.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from agent import live
from agent.errors import MachineFault
from agent.run import trial
from agent.run.log import Log
from agent.run.process import Cancel
from agent.run.progress import Progress
from agent.run.sandbox import described
from agent.run.syscalls import PARENT, die_with_parent
from agent.run.task import Task

RESERVE_BYTES = 256 << 20  # of disk: with less a trial is not begun
STRANGERS_SHARE = 0.1  # of a GPU's memory, taken by other programs since the start: a trial is not begun
STRANGERS_SECONDS = 20.0  # how long a process that has ended may take to give its memory back
LIVE_SECONDS = 0.5  # between two writings of how far it is
# What drivers print when a GPU fails, and code under test as well may print: such a trial counts as a fault, is run
# again, and is a crash only where the incumbent runs in between. After every other crash the probe kernel decides.
DRIVER_FAILED = re.compile(
    r"(?i)no CUDA-capable device|no CUDA GPUs are available|ECC error|busy or unavailable|system not yet initialized|"
    r"driver shutting down|CUDA error: unknown error|hardware stack error|GPU is lost|fallen off the bus"
)


def work(task: Task, cancel: Cancel) -> dict[str, Any]:
    """Do the task; what the last line says."""
    with Log(task.log) as log:
        job = trial.Job(task, described(task.sandbox), cancel, log, Reporter(task))
        try:
            return test(job) if task.what == "test" else train(job)
        except MachineFault as fault:
            return {"fault": str(fault), "slot_lost": True}
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return {"fault": f"the disk of {task.home} is full ({error}): make room", "slot_lost": True}


def train(job: trial.Job) -> dict[str, Any]:
    """After a crash the machine is looked at before the code is blamed. Raises MachineFault."""
    check_machine(job)
    measured = trial.measure(job)
    if measured["outcome"] == "interrupted" or job.cancel.asked:
        return {"cancelled": trial.STOPPED}
    if measured["outcome"] in ("crash", "timeout"):
        check_machine(job)
        check_device(job)
        if sign := DRIVER_FAILED.search(measured["log_tail"]):
            return {"fault": f"the trial ended as if the GPU had failed: {sign[0]}", "slot_lost": False}
    return {"measured": measured}


def test(job: trial.Job) -> dict[str, Any]:
    try:
        return {"tested": trial.test(job)}
    except (trial.Bad, MachineFault) as bad:
        return {"untested": str(bad)}


def check_machine(job: trial.Job) -> None:
    """Raises MachineFault where a trial should not begin: the disk is full, or others took the GPU's memory."""
    free = shutil.disk_usage(job.task.home).free
    if free < RESERVE_BYTES:
        wanted = f"{free >> 20} MiB are free, and a trial needs {RESERVE_BYTES >> 20}"
        raise MachineFault(f"the disk of {job.task.home} is nearly full ({wanted}): make room")
    if card := job.task.card:
        from agent.run.gpu import gpu_of

        gpu = gpu_of(card.uuid)
        allowed = card.used_at_start + STRANGERS_SHARE * gpu.total_bytes()
        until = time.monotonic() + STRANGERS_SECONDS
        while (used := gpu.used_bytes()) > allowed and not job.cancel.asked:
            if time.monotonic() > until:
                raise MachineFault(
                    f"another program has taken memory of GPU {gpu.index} ({gpu.name}) since the start: "
                    f"{used / 1e9:.1f} GB are in use before the trial begins; nvidia-smi shows whose they are"
                )
            job.cancel.wait(0.5)


def check_device(job: trial.Job) -> None:
    """Raises MachineFault where a small program does not run on the device, in the trial's own kind of room."""
    for folder in (job.task.folder / "tree", job.task.output):
        folder.mkdir(parents=True, exist_ok=True)
    from agent.run.probe import device_fault  # only after crashes

    fault = device_fault(job.sandbox, trial.make_room(job, "training"), job.task.device)
    trial.remove(job.task.output)
    if fault:
        raise MachineFault(fault)


class Reporter:
    """Writes how far the task is, at most so often."""

    def __init__(self, task: Task):
        self._task, self._since, self._next = task, time.time(), 0.0
        self._trains_since = 0.0
        self._curve: live.Curve = ()
        self("startup", Progress(1.0))

    def __call__(self, phase: str, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LIVE_SECONDS
            task = self._task
            if phase == "training":  # what the evaluation prints is no curve
                self._curve = live.thinned(progress.curve)
                self._trains_since = self._trains_since or time.time()
            live.write(
                Path(task.home),
                live.Live(
                    slot=task.slot,
                    what=task.what,
                    experiment=task.experiment,
                    number=task.number,
                    since=self._since,
                    log=str(task.log),
                    phase=phase,
                    trains_since=self._trains_since,
                    curve=self._curve,
                    gpu=task.card.uuid if task.card else "",
                ),
            )


def listen(cancel: Cancel) -> None:
    """Until stdin ends, which it does when the loop does. Reads the descriptor itself: a thread that holds sys.stdin
    would keep the interpreter from ending."""
    while (asked := os.read(0, 1)) and asked != b"n":
        cancel.ask()
    cancel.ask(now=True)


def main() -> None:
    die_with_parent(int(os.environ.pop(PARENT)), signal.SIGKILL)
    path = b""
    while (byte := os.read(0, 1)) and byte != b"\n":
        path += byte
    if not byte:
        return  # nothing was left to do
    task, cancel = Task.from_json(Path(os.fsdecode(path)).read_text()), Cancel()
    threading.Thread(target=listen, args=(cancel,), daemon=True).start()
    said = work(task, cancel)
    live.clear(Path(task.home), task.slot)
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
