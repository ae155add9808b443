"""agent/run/local.py under the executor protocol: a thread for each job, its results as events.

This file stands in until the local executor speaks the protocol itself, and is then deleted.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from typing import Any

from agent import events as ev
from agent import live
from agent.errors import Failure
from agent.protocols import Emit, Job
from agent.records import Trial
from agent.run.local import LocalExecutor, _Job, _remove
from agent.run.log import Log
from agent.run.process import Cancel
from agent.run.sandbox import adopt_cache


class LocalSlots(LocalExecutor):
    """See protocols.Executor."""

    def submit(self, job: Job, emit: Emit) -> None:  # type: ignore[override]
        cancel = Cancel()
        with self._lock:
            self._running[job.experiment, job.number] = cancel

        def work() -> None:
            try:
                event = self._event(job, cancel)
            except Exception as error:  # what runs a trial must not end the night
                key: dict[str, Any] = {"experiment": job.experiment, "attempt": job.attempt}
                reason = f"{type(error).__name__}: {error}"
                told = traceback.format_exc()
                failed = ev.TrialFailed(**key, number=job.number, reason=reason, traceback=told)
                event = failed if job.what == "train" else ev.Tested(**key, reason=reason)
            with self._lock:
                self._running.pop((job.experiment, job.number), None)
                cancel.close()
            emit(event)

        threading.Thread(target=work, name=f"slot {job.slot}", daemon=True).start()

    def cancel(self, experiment: int, number: int, why: str) -> None:
        with self._lock:
            if cancel := self._running.get((experiment, number)):
                cancel.ask()

    def forget(self, experiment: int, number: int, kept: bool) -> None:  # type: ignore[override]
        output = self.home / "outputs" / f"{experiment}-{number}"
        if kept and (output / "cache").is_dir() and not (output / "cache").is_symlink():
            adopt_cache(output / "cache", self.home / "cache")
        _remove(output)

    def close(self, now: bool = False) -> None:
        with self._lock:
            for cancel in self._running.values():
                cancel.ask(now)

    @property
    def _running(self) -> dict[tuple[int, int], Cancel]:
        return self.__dict__.setdefault("running", {})

    def _event(self, job: Job, cancel: Cancel) -> ev.Event:
        trial = Trial(experiment=job.experiment, number=job.number, commit=job.commit, seed=job.seed)
        label, name = f"{job.experiment}-{job.number}", "-test" if job.what == "test" else ""
        path = self.home / "logs" / f"{label}{name}.log"
        key: dict[str, Any] = {"experiment": job.experiment, "attempt": job.attempt}
        live.write(self.home, live.Live(
            slot=job.slot, what=job.what, experiment=job.experiment, number=job.number, since=time.time(),
            log=str(path), pid=os.getpid(),
        ))  # fmt: skip
        try:
            with Log(path) as log:
                folder, output = self.home / "slots" / str(job.slot), self.home / "outputs" / label
                gpu = self._gpus[job.slot] if self._gpus else None
                work = _Job(trial, job.program, job.slot, folder, output, cancel, log, gpu)
                if job.what == "test":
                    try:
                        return ev.Tested(**key, figures=self._test(work))
                    except Failure as failure:
                        return ev.Tested(**key, reason=str(failure))
                measurement = self._measure(work)
        finally:
            live.clear(self.home, job.slot)
        if measurement.outcome == "interrupted":
            return ev.TrialCancelled(**key, number=job.number, reason=measurement.reason)
        return ev.Measured(**key, number=job.number, measurement=measurement)
