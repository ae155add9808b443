"""What a tracker is, and what it is given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from agent.lab_note import number
from agent.observers.tsv import cell
from agent.program import Program
from agent.records import Experiment, Record


class Point(NamedTuple):
    """One value of a metric. `step`: the trial's number, or how much of its budget was used, in thousandths."""

    name: str
    step: int
    value: float


class Run(Record):
    """One experiment with its verdict, as trackers have it."""

    key: str
    """Of this experiment in all the world; letters, digits and dashes."""
    name: str
    began: float
    """Unix time."""
    ended: float
    params: dict[str, str]
    tags: dict[str, str]
    text: str
    """What was tried, and what became of it."""
    points: tuple[Point, ...]
    """Those of the first trial first: a further trial adds to the end."""
    summary: dict[str, float]


class Tracker(Protocol):
    package: str
    """What has to be imported; it is the extra `overnight[...]` of the tracker's name that brings it."""

    def __init__(self, where: str, project: Path, home: Path):
        """`where`: what stands behind the colon on the command line, "" where there is none. `project` and `home`: the
        folders of the project and of the night."""
        ...

    @classmethod
    def check(cls) -> None:
        """Raises Failure where runs could never be sent. Imports nothing of the tracker's, and asks no server."""
        ...

    def place(self) -> str:
        """Where the runs go, and how to look at them there: one line."""
        ...

    def log(self, run: Run) -> None:
        """Make the tracker hold this run once, whether it holds none of it, a part, or an older version. Raises what it
        likes: the same run is sent again later."""
        ...


def run_of(e: Experiment, program: Program, night: str, began: float) -> Run:
    """`began`: of the night's journal, which tells it from another one of this name."""
    verdict = e.verdict
    assert verdict is not None
    low, high = verdict.interval or (None, None)
    summary = {
        f"judged/{program.metric.name}": verdict.metric, "effect": verdict.effect, "effect_low": low,
        "effect_high": high, "usd": e.usd, **(e.test_numbers or {}),
    }  # fmt: skip
    took = sum(m.startup_seconds + m.training_seconds + m.evaluation_seconds for m in e.measurements)
    took += sum(c.reply.seconds for c in e.calls if c.reply)
    return Run(
        key=f"{night}-{began:.0f}-{e.number}".replace(".", "-").replace("_", "-"),
        name=f"{night} #{e.number}",
        began=e.created,
        ended=e.created + took,
        params={
            "night": night, "experiment": str(e.number), "hypothesis": cell(e.label), "commit": e.commit or "",
            "category": cell(e.proposal.category) if e.proposal else "", "parent": e.parent, "proposer": e.proposer,
        },
        tags={"verdict": verdict.kind, "kept": str(verdict.kept).lower(), "review": str(verdict.review).lower()},
        text=f"{cell(e.label)}\n\n{verdict.kind}: {cell(verdict.reason)} (effect {number(verdict.effect)})",
        points=tuple(points(e, program)),
        summary={name: value for name, value in summary.items() if value is not None and math.isfinite(value)},
    )  # fmt: skip


def points(e: Experiment, program: Program) -> Iterator[Point]:
    for t in e.trials:
        if (m := t.measurement) is None:
            continue
        told = {program.metric.name: m.metric, "training_seconds": m.training_seconds,
                "peak_memory_gb": m.peak_memory_gb, **m.numbers}  # fmt: skip
        for name, value in told.items():
            if value is not None and math.isfinite(value):
                yield Point(name, t.number, value)
        for share, loss in m.curve:
            if math.isfinite(share) and math.isfinite(loss):
                yield Point(f"training_loss/trial_{t.number + 1}", round(1000 * share), loss)
