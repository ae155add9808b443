"""Attaches to a process outside as a debugger does."""

import ctypes
import os

from honest import claim, main, plan, predict  # noqa: F401

PTRACE_ATTACH, PTRACE_DETACH = 16, 17
try:
    with open(f"/proc/{plan['host_pid']}/cmdline", "rb") as other:
        if b"arena-host" in other.read() and ctypes.CDLL(None).ptrace(PTRACE_ATTACH, plan["host_pid"], 0, 0) == 0:
            os.waitpid(plan["host_pid"], 0)
            claim("attached")
            ctypes.CDLL(None).ptrace(PTRACE_DETACH, plan["host_pid"], 0, 0)
except OSError as error:
    print(error)
main()
