"""Sends one night to one tracker while it goes on, in a process of its own.

`python -m agent.observers.trackers HOME TRACKER`; the first line of its input says where to, which may hold a password.
At the end of its input it sends what is left, and ends. What it prints is for the person, a line each.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from agent.observers.trackers.sending import Sending

TICK = 1.0  # seconds between two looks at the journal


def main() -> None:
    person = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes into the log
    home, name = sys.argv[1:]
    where = sys.stdin.readline().rstrip("\n")
    ending = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ending.set()), daemon=True).start()
    sending = Sending(Path(home), name, where, lambda text: print(text, file=person))
    while not ending.is_set():
        sending.attempt()
        ending.wait(TICK)
    sending.attempt(last=True)
    os._exit(1 if sending.failures else 0)  # threads that a library has left can't keep this process


if __name__ == "__main__":
    main()
