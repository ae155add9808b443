"""Whether the files of this program are still those that this process was started from. A worker of a newer version
would not understand an older loop, and what it then says would look like the fault of the experiment.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parent


def stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


AT_START = {str(path): stamp(str(path)) for path in PACKAGE.rglob("*.py")}


def changed() -> str:
    """Why this process can't begin another trial; "" where nothing changed."""
    try:
        same = all(stamp(path) == known for path, known in AT_START.items())
    except OSError:  # one is gone
        same = False
    return "" if same else "this program was updated while the night ran"
