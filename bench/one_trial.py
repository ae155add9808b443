"""One trial on an executor, waited for: for benchmarks that look at single trials."""

from __future__ import annotations

import queue

from agent import events as ev
from agent.protocols import Executor, Job
from agent.records import Measurement


def run_one(executor: Executor, job: Job, seconds: float) -> Measurement:
    """The job's measurement; a crash that says so where there is none. Raises queue.Empty after `seconds`."""
    ended: queue.SimpleQueue[ev.Event] = queue.SimpleQueue()
    executor.submit(job, ended.put)
    event = ended.get(timeout=seconds)
    if isinstance(event, ev.Measured):
        return event.measurement
    return Measurement(outcome="crash", reason=f"{type(event).__name__}: {getattr(event, 'reason', '')}")
