"""Whether the files of this program are still those that this process was started from. A worker of a newer version
would not understand an older loop, and what it then says would look like the fault of the experiment.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def files() -> dict[str, tuple[int, int]]:
    """Size and time of each module of this program."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in PACKAGE.rglob("*.py")}


AT_START = files()


def changed() -> str:
    """Why this process can't begin another trial; "" where nothing changed."""
    try:
        same = files() == AT_START
    except OSError:  # one went away between the listing and the look
        same = False
    return "" if same else "this program was updated while the night ran"
