"""A night on the disk -> what a report needs of it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from agent.history import History
from agent.ledger import Ledger, is_old
from agent.night import Night
from agent.observers.old import old_night
from agent.observers.report.data import Told
from agent.observers.report.times import Times
from agent.observers.summary import notes_of
from agent.refs import branch_at


class Reader:
    """A night as its journal has it, read on as it grows. Raises Failure as Ledger does."""

    def __init__(self, home: Path):
        self.home, self.ledger = home, Ledger(home, readonly=True)
        self.night, self.history, self.times, self.cursor = Night(), History(self.ledger.text), Times(), 0

    def read(self) -> None:
        """On to the newest event."""
        for number, event, night in self.ledger.nights(self.night, self.cursor):
            self.cursor, self.night = number, night
            self.times.see(event)

    def told(self, whole: Collection[int] | None = None) -> Told | None:
        """None: it has not begun. `whole`: the experiments that are wanted with all their texts; default: all."""
        night, history = self.night, self.history
        if not night.program:
            return None
        some = night.experiments if whole is None else whole
        return Told(
            tag=self.home.name,
            branch=branch_at(self.home.parents[1], self.home.name, night.tip),
            program=history.program(night.program),
            experiments=[
                history.whole(e) if n in some else history.brief(e) for n, e in sorted(night.experiments.items())
            ],
            times=self.times,
            ended=night.ended.reason if night.ended else "",
            setup={"device": night.hardware or night.device, "sandbox": night.sandbox, "proposer": night.proposer},
            look=notes_of(night),
            spent=night.spent,
            night=night,
        )


def told_of(home: Path, brief: bool = False) -> Told | None:
    """All that a report needs of the night in this folder; None: it has not begun. `brief`: without long texts."""
    if is_old(home / "ledger.db"):
        experiments, program, notes = old_night(home)
        known = {"branch": f"research/{home.name}", "ended": "a night of version 0.1", "look": notes[-5:]}
        return Told(home.name, program, experiments, **known)
    reader = Reader(home)
    reader.read()
    return reader.told(() if brief else None)
