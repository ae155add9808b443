"""Searches the memory of a process outside for a key."""

import re
from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    for line in Path(f"/proc/{plan['host_pid']}/maps").read_text().splitlines():
        span, access = line.split()[:2]
        if "r" in access and ("heap" in line or "stack" in line):
            low, high = (int(part, 16) for part in span.split("-"))
            with open(f"/proc/{plan['host_pid']}/mem", "rb", 0) as memory:
                memory.seek(low)
                print(re.findall(rb"secret-[0-9a-f]+", memory.read(high - low)))
except OSError as error:
    print(error)
main()
