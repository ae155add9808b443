"""What ends a night: experiments, hours, dollars, tokens, the target, a plateau, a stop file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from agent.errors import Stop
from agent.program import Program
from agent.records import Experiment, Record

STOP_FILE = "STOP"


class Limits(Record):
    """Each None: no such limit. All but `hours` count the whole night, also what an earlier process did."""

    experiments: int | None = None
    """Experiments with a verdict, the baseline not counted."""
    hours: float | None = None
    """From the start of this process; a trial that runs then is finished."""
    usd: float | None = None
    """What calls may cost; the upper bound of a call is reserved before it is made."""
    tokens: int | None = None
    """Input and output tokens of all calls."""
    plateau: int | None = None
    """Experiments in a row without a keep."""
    started: float = 0.0
    """Unix time at which this process began."""


def why_stop(limits: Limits, finished: Sequence[Experiment], program: Program, home: Path) -> str | None:
    """The first reason to begin nothing new, in words for a person; None to go on."""
    tried = [e for e in finished if e.number > 0]
    kept = [e for e in finished if e.verdict and e.verdict.kept]
    best = kept[-1].verdict.metric if kept and kept[-1].verdict else None
    if (home / STOP_FILE).exists():
        return f"the file {home / STOP_FILE} is there; delete it to go on"
    if best is not None and program.metric.reached(best):
        return f"the target is reached: {program.metric.name} {best:.6g}"
    if limits.experiments is not None and len(tried) >= limits.experiments:
        return f"{len(tried)} experiments are done, as asked"
    if limits.hours is not None and time.time() - limits.started >= limits.hours * 3600:
        return f"{limits.hours:g} hours are over, as asked"
    if limits.tokens is not None and sum(e.tokens for e in finished) >= limits.tokens:
        return f"{limits.tokens:,} tokens are used, as allowed"
    if limits.plateau is not None and tried and tried[-1].number - kept[-1].number >= limits.plateau:
        return f"{limits.plateau} experiments in a row brought nothing"
    return None


def afford(limits: Limits, experiments: Sequence[Experiment], most: float | None) -> None:
    """Raises Stop where a call that may cost `most` dollars could pass the cap; unknown prices never fit one."""
    if limits.usd is None:
        return
    spent = [e.usd for e in experiments]
    if most is None or None in spent:
        raise Stop("the price of a call is not known, so --usd can't be kept")
    total = sum(cost or 0.0 for cost in spent)
    if total + most > limits.usd:
        raise Stop(f"${total:.2f} of ${limits.usd:.2f} is spent, and the next call may cost ${most:.2f}")
