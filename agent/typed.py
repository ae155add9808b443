"""What a person types to run a command, for texts that name one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

SCRIPT, MODULE = "overnight", "python -m agent"
CALLED = "OVERNIGHT_CALLED"  # tells a process that a command has started how that one was called


def program() -> str:
    """The name under which this program was called."""
    if called := os.environ.get(CALLED):
        return called
    if Path(sys.argv[0]).name != SCRIPT:
        return MODULE
    return SCRIPT if shutil.which(SCRIPT) else sys.argv[0]


def typed(command: str) -> str:
    """`run --tag x` -> `overnight run --tag x`, or `python -m agent.loop --tag x` where no script was called."""
    name, _, flags = command.partition(" ")
    if name == "run" and program() == MODULE:
        return f"{MODULE}.loop {flags}".rstrip()
    return f"{program()} {command}"
