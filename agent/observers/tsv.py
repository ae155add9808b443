"""results.tsv: the table of the original autoresearch, with further columns to the right; made anew each time."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from agent import state
from agent.events import Event, Published, Requested
from agent.history import History
from agent.night import Night
from agent.program import Program
from agent.records import Experiment

COLUMNS = ("commit", "METRIC", "memory_gb", "status", "description")
FURTHER = (
    "experiment",
    "category",
    "effect",
    "interval_low",
    "interval_high",
    "trials",
    "seconds",
    "tokens",
    "usd",
    "proposer",
    "reason",
)


class Results:
    """Keeps results.tsv of one night as the journal has it."""

    name = "results"

    def __init__(self, home: Path):
        self.path = home / "results.tsv"
        self.rows: dict[int, tuple[state.Experiment | None, str]] = {}

    def start(self, night: Night, history: History) -> None:
        if night.order:
            self.write(night, history)

    def see(self, event: Event, night: Night, history: History) -> None:
        if isinstance(event, Published | Requested):  # a veto changes what was published before
            self.write(night, history)

    def write(self, night: Night, history: History) -> None:
        """On a full disk the table stays as it was until the next experiment is over."""
        for number in night.order:
            e, before = night.experiments[number], self.rows.get(number)
            if before is None or before[0] is not None and before[0] is not e:  # run again, tested or vetoed
                self.rows[number] = e if may_change(e) else None, line(row(history.whole(e, brief=True)))
        with contextlib.suppress(OSError):
            lines = [self.rows[number][1] for number in sorted(night.order)]
            write_lines(self.path, lines, history.program(night.program))

    def tick(self) -> None: ...
    def close(self) -> None: ...


def may_change(e: state.Experiment) -> bool:
    """What was kept, or is held for review, may be run again; of all else only the line stays in memory."""
    return e.kept or e.verdict is not None and e.verdict.kind == "held"


def write_lines(path: Path, lines: Sequence[str], program: Program) -> None:
    """Write aside, then rename: a reader never sees half a table."""
    aside = path.with_suffix(".tmp")
    names = line([program.metric.name if name == "METRIC" else name for name in COLUMNS + FURTHER])
    aside.write_text("".join([names, *lines]), encoding="utf-8", newline="")
    os.replace(aside, path)


def line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\").writerow(cells)
    return text.getvalue()


def row(experiment: Experiment) -> list[str]:
    """One line; a field that was not measured stays empty, and no field holds a tab or a newline."""
    verdict = experiment.verdict
    assert verdict is not None
    low, high = verdict.interval or (None, None)
    memory = [m.peak_memory_gb for m in experiment.measurements if m.peak_memory_gb is not None]
    metric = verdict.metric if verdict.metric is not None else next(iter(experiment.metrics), None)
    cells = [
        (experiment.commit or "")[:7],
        metric,
        max(memory, default=None),
        verdict.kind,
        experiment.label,
        experiment.number,
        experiment.proposal.category if experiment.proposal else None,
        verdict.effect,
        low,
        high,
        experiment.counted,
        seconds(experiment),
        experiment.tokens,
        experiment.usd,
        experiment.proposer,
        verdict.reason,
    ]
    return [cell(value) for value in cells]


def seconds(experiment: Experiment) -> float:
    """Wall seconds of all its trials: startup, training and evaluation."""
    return sum(m.startup_seconds + m.training_seconds + m.evaluation_seconds for m in experiment.measurements)


def cell(value: object) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
