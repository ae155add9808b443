"""The clock by which limits of time are counted: seconds in which this process could run.

A process may be stopped (SIGSTOP, Ctrl-Z, a suspended or migrated machine), and what it waits for may have been
stopped with it. To count that time would be to blame a trial, or a model, for it. So a thread looks at the clock twice
a second, and a look that comes far too late shows a stop, which is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TICK = 0.5  # seconds between two looks
LATE = 2.0  # seconds without a look that mean a stop; a busy machine delays one for less


class Uptime:
    """Seconds as `clock` gives them, without those in which nobody could look at it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.last, self.stopped = clock(), 0.0
        self.lock = threading.Lock()

    def now(self) -> float:
        with self.lock:
            time_now = self.clock()
            if (gap := time_now - self.last) > LATE:
                self.stopped += gap - TICK
            self.last = time_now
            return time_now - self.stopped

    def watch(self) -> None:
        """Look at the clock for ever."""
        pause = threading.Event()
        while True:
            self.now()
            pause.wait(TICK)


def now() -> float:
    """Seconds that this process could run, from no particular moment on."""
    global _watched
    with _begin:
        if _watched is None:
            _watched = Uptime()
            threading.Thread(target=_watched.watch, name="uptime", daemon=True).start()
    return _watched.now()


class Alarm:
    """Calls `ring` in a thread of its own once this process could run for `seconds`, unless it was cancelled."""

    def __init__(self, seconds: float, ring: Callable[[], object]):
        self._cancelled = threading.Event()
        self._until, self._ring = now() + seconds, ring
        threading.Thread(target=self._wait, name="alarm", daemon=True).start()

    def cancel(self) -> None:
        self._cancelled.set()

    def _wait(self) -> None:
        while (left := self._until - now()) > 0:
            if self._cancelled.wait(min(left, TICK)):
                return
        self._ring()


_begin = threading.Lock()
_watched: Uptime | None = None
