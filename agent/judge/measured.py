"""What an audit or a rerun has measured so far, on disk: one that is interrupted goes on from there, with the same
seeds."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.ledger import digest
from agent.program import Program

SEEDS_FROM, SEEDS_TO = 10**8, 2**31 - 1  # a night's seeds are below


class Measured:
    """A file with a line of JSON for each seed that was drawn and each trial that has ended; gone with the end of the
    audit, because the next one shall draw fresh seeds. `what`: each kind has a file of its own."""

    def __init__(self, home: Path, what: str = "audit"):
        self.path = home / f"{what}.jsonl"
        self.lines: list[dict[str, Any]] = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    break  # cut off in the middle of a line: what follows is nothing

    def part(self, program: Program, commits: Sequence[str]) -> Part:
        return Part(self, digest("\n".join([program.model_dump_json(), *commits])))

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


class Part:
    """What was measured of the same commits under the same contract."""

    def __init__(self, whole: Measured, key: str):
        self.whole, self.key = whole, key

    def seeds(self, rounds: int) -> list[int]:
        """One for each round: those of before, and fresh ones."""
        known = [line["seed"] for line in self.whole.lines if line["key"] == self.key and "seed" in line]
        for _ in range(len(known), rounds):
            known.append(SEEDS_FROM + secrets.randbelow(SEEDS_TO - SEEDS_FROM))
            self.whole.add({"key": self.key, "seed": known[-1]})
        return known[:rounds]

    def found(self) -> dict[tuple[str, int, str], dict[str, Any]]:
        """(arm, round, "train" or "test") -> what was told of it."""
        mine = (line for line in self.whole.lines if line["key"] == self.key and "arm" in line)
        return {(line["arm"], line["round"], line["what"]): line for line in mine}

    def add(self, arm: str, number: int, what: str, **told: Any) -> None:
        self.whole.add({"key": self.key, "arm": arm, "round": number, "what": what, **told})
