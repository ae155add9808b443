"""A night on the disk -> what a report needs of it."""

from __future__ import annotations

from pathlib import Path

from agent.history import History
from agent.ledger import Ledger, is_old
from agent.night import Night
from agent.observers.old import old_night
from agent.observers.report.data import Told
from agent.observers.report.times import Times
from agent.observers.summary import notes_of


def told_of(home: Path, brief: bool = False) -> Told | None:
    """All that a report needs of the night in this folder; None: it has not begun. `brief`: without long texts."""
    if is_old(home / "ledger.db"):
        experiments, program, notes = old_night(home)
        return Told(home.name, program, experiments, ended="a night of version 0.1", look=notes[-5:])
    ledger = Ledger(home, readonly=True)
    night, history, times = Night(), History(ledger.text), Times()
    for event, night in ledger.nights():  # noqa: B007 (the last one counts)
        times.see(event)
    if not night.program:
        return None
    return Told(
        tag=home.name,
        program=history.program(night.program),
        experiments=[history.whole(night.experiments[number], brief) for number in sorted(night.experiments)],
        times=times,
        ended=night.ended.reason if night.ended else "",
        setup={"device": night.hardware or night.device, "sandbox": night.sandbox, "proposer": night.proposer},
        look=notes_of(night),
        spent=night.spent,
        night=night,
    )
