"""What runs in each slot at this moment: one small file per slot, replaced as a whole, never journaled.

Whoever runs a trial writes it as often as it likes; observers read it when they want to.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Curve = Sequence[Sequence[float]]
"""(share of the budget, training loss), by share."""
POINTS = 80  # of a curve in the file
NEAR = 0.03  # of the budget: the loss at a point is the mean over so much before it


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
    trains_since: float = 0.0
    """Unix time of its first progress line; 0: there was none yet."""
    curve: Curve = ()
    gpu: str = ""
    """UUID of the card; "" where it runs on the CPU."""

    @property
    def share(self) -> float:
        """Of the budget."""
        return self.curve[-1][0] if self.curve else 0.0


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


def thinned(curve: Curve, points: int = POINTS) -> list[Sequence[float]]:
    """No more than can be seen; the last point always stays."""
    every = max(1, math.ceil(len(curve) / points))
    return [*curve[: len(curve) - 1 : every], *curve[-1:]]


def loss_at(curve: Curve, share: float) -> float | None:
    """The loss of a curve at this share of the budget, without the noise of single steps; None where it has none so
    far."""
    near = [y for x, y in curve if share - NEAR <= x <= share]
    if near:
        return math.fsum(near) / len(near)
    before, after = ([p for p in curve if p[0] < share], [p for p in curve if p[0] > share])
    if not before or not after:
        return None
    (x0, y0), (x1, y1) = before[-1], after[0]
    return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
