"""What runs in each slot at this moment: one small file per slot, replaced as a whole, never journaled.

Whoever runs a trial writes it as often as it likes; observers read it when they want to.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Live:
    """One job at work."""

    slot: int
    what: str
    """train, or test."""
    experiment: int
    number: int
    since: float
    """Unix time of its start."""
    log: str
    """Path of the log that grows."""
    phase: str = "startup"
    """startup, training or evaluation."""
    share: float = 0.0
    """Of the budget."""
    loss: float | None = None
    """The last one that training printed."""


def write(home: Path, live: Live) -> None:
    folder = home / "live"
    folder.mkdir(exist_ok=True)
    aside = folder / f".{live.slot}.part"
    aside.write_text(json.dumps(dataclasses.asdict(live)), encoding="utf-8")
    os.replace(aside, folder / f"{live.slot}.json")


def clear(home: Path, slot: int) -> None:
    (home / "live" / f"{slot}.json").unlink(missing_ok=True)


def read(home: Path) -> list[Live]:
    """By slot; a file that is no such record is left out."""
    found = []
    for path in sorted((home / "live").glob("*.json")):
        try:
            found.append(Live(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return found
