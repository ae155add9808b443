"""Sends signals to a process outside."""

import os
import signal

from honest import claim, main, plan, predict  # noqa: F401

try:
    with open(f"/proc/{plan['host_pid']}/cmdline", "rb") as other:
        if b"arena-host" in other.read():
            os.kill(plan["host_pid"], signal.SIGCONT)
            claim("signalled")
except OSError as error:
    print(error)
main()
