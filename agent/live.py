"""What runs in each slot at this moment: one small file per slot, replaced as a whole, never journaled.

Whoever runs a trial writes it as often as it likes; observers read it when they want to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from agent.records import Record


class Live(Record):
    """One job at work."""

    slot: int
    what: Literal["train", "test"]
    experiment: int
    number: int
    since: float
    """Unix time of its start."""
    log: str
    """Path of the log that grows."""
    pid: int = 0


def write(home: Path, live: Live) -> None:
    folder = home / "live"
    folder.mkdir(exist_ok=True)
    aside = folder / f".{live.slot}.part"
    aside.write_text(live.model_dump_json(), encoding="utf-8")
    os.replace(aside, folder / f"{live.slot}.json")


def clear(home: Path, slot: int) -> None:
    (home / "live" / f"{slot}.json").unlink(missing_ok=True)


def read(home: Path) -> list[Live]:
    """By slot; a file that is no such record is left out."""
    found = []
    for path in sorted((home / "live").glob("*.json")):
        try:
            found.append(Live.model_validate_json(path.read_text(encoding="utf-8")))
        except (OSError, ValidationError):
            continue
    return found
