"""Ignores SIGTERM and every other signal that it can, and sleeps."""

import contextlib
import signal
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    main()
    time.sleep(plan["stray_seconds"])
    claim("sat it out")
