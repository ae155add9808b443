"""Ends, slows and traces a process of the person's."""

import ctypes
import json
import os
import resource
import sys
from pathlib import Path

plan = json.loads(Path(sys.argv[1]).read_text())
for what in (
    lambda: resource.prlimit(plan["pid"], resource.RLIMIT_CPU, (1, 1)),
    lambda: os.setpriority(os.PRIO_PROCESS, plan["pid"], 19),
    lambda: os.kill(plan["pid"], 9),
):
    try:
        what()
        if plan["pid"] > 100:
            print("called", what)
    except OSError as error:
        print(error)
if ctypes.CDLL(None).ptrace(16, plan["pid"], 0, 0) == 0:
    print("ATTACK SUCCEEDED: traces it")
