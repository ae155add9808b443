"""Stops every process that it may signal, and so perhaps whatever watches it, then itself."""

import contextlib
import os
import signal
import time
from pathlib import Path

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    main()
    with contextlib.suppress(OSError), open(f"/proc/{plan['host_pid']}/cmdline", "rb") as other:
        os.kill(plan["host_pid"], 0)
        if b"arena-host" in other.read():
            raise SystemExit(claim("nothing keeps it from the harness"))
    with contextlib.suppress(OSError), open(Path(plan["repository"], "prepare.py")):
        raise SystemExit(claim("nothing keeps it from the repository"))
    with contextlib.suppress(ProcessLookupError):  # only where it is certain that nothing of the host is near
        os.kill(-1, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(plan["stray_seconds"])
    claim("sat it out")
